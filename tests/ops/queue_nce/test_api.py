"""queue_nce: wrong input, and choice of the backend."""

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.queue_nce.op import resolve_backend

ARGS = {"q": torch.ones(2, 4), "positives": torch.ones(2, 4), "queue": torch.ones(5, 4)}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": [[1.0]]}, TypeError, "q must be a torch.Tensor, got list"),
        ({"q": torch.zeros(2, 4).long()}, TypeError, "q must be float64.*got torch.int64"),
        ({"queue": torch.zeros(5, 4).int()}, TypeError, "queue must be float64"),
        ({"q": torch.zeros(4)}, ValueError, r"q must have shape \(N, D\).*got \(4,\)"),
        ({"q": torch.zeros(2, 0)}, ValueError, "D >= 1"),
        ({"positives": torch.zeros(3, 4)}, ValueError, r"\(2, 4\) or \(2, P, 4\).*got \(3, 4\)"),
        ({"positives": torch.zeros(2, 3, 5)}, ValueError, r"got \(2, 3, 5\)"),
        ({"positives": torch.zeros(2, 0, 4)}, ValueError, "P >= 1"),
        ({"queue": torch.zeros(5, 3)}, ValueError, r"queue must have shape \(K, 4\), got \(5, 3\)"),
        ({"queue": torch.zeros(4, 99)}, ValueError, r"got \(4, 99\); to fix: queue.mT"),
        ({"queue": torch.zeros(5, 4, requires_grad=True)}, ValueError, r"to fix: queue.detach\(\)"),
        ({"queue": torch.zeros(5, 4, device="meta")}, ValueError, "on one device, got q on cpu"),
        ({"temperature": 0}, ValueError, "temperature must be finite"),
        ({"temperature": "0.1"}, TypeError, "temperature must be a number, got str"),
        ({"normalize": 1}, TypeError, "normalize must be True or False"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "cuda"}, ValueError, "unknown backend 'cuda'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.queue_nce(**(ARGS | change))


@pytest.mark.parametrize(
    ("options", "error"), [({"temperature": -1}, ValueError), ({"normalize": "l2"}, TypeError)]
)
def test_the_module_checks_its_options(options, error):
    with pytest.raises(error, match="QueueNCE"):
        fastseq.nn.QueueNCE(**options)


def test_the_module_is_the_function():
    q, positives, queue = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    module = fastseq.nn.QueueNCE(temperature=0.3, reduction="sum", normalize=False)
    want = fastseq.queue_nce(q, positives, queue, temperature=0.3, reduction="sum", normalize=False)
    assert module(q, positives, queue) == want
    assert "temperature=0.3" in repr(module)


def test_choice_of_backend(monkeypatch):
    from fastseq.ops.common import dispatch

    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    ready = dispatch.BackendStatus(True, "", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: ready)
    assert resolve_backend("auto", "cuda", torch.bfloat16)[0] == "triton"
    name, reason = resolve_backend("auto", "cuda", torch.float64)
    assert name == "torch"
    assert "no kernel for float64" in reason
    assert resolve_backend("auto", "cpu", torch.float32) == ("torch", "preferred here")
    missing = dispatch.BackendStatus(False, "no triton", "pip install triton")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: missing)
    with pytest.raises(RuntimeError, match="no triton; to fix: pip install triton"):
        resolve_backend("triton", "cuda", torch.float32)
    monkeypatch.setenv("FASTSEQ_BACKEND", "reference")
    assert resolve_backend("auto", "cpu", torch.float32) == ("reference", "FASTSEQ_BACKEND")


def test_a_backend_asked_for_by_name_never_falls_back():
    with pytest.raises(RuntimeError, match="float64"):
        fastseq.queue_nce(*(z.double() for z in ARGS.values()), backend="triton")


def test_numpy_numbers_are_numbers():
    want = fastseq.queue_nce(**ARGS, temperature=0.5)
    assert fastseq.queue_nce(**ARGS, temperature=np.float32(0.5)) == want


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_meta_tensors_give_shapes(backend):
    q = torch.zeros(2, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    positives, queue = (torch.zeros(*s, device="meta") for s in ((2, 5, 3), (700, 3)))
    loss = fastseq.queue_nce(q, positives, queue, reduction="none", backend=backend)
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (2, 5), torch.float32)
    assert torch.autograd.grad(loss.sum(), q)[0].shape == q.shape


def test_function_transforms_need_the_reference():
    q, positives, queue = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))

    for call in (
        lambda **kw: torch.func.grad(lambda x: fastseq.queue_nce(x, positives, queue, **kw))(q),
        lambda **kw: torch.func.jvp(
            lambda x: fastseq.queue_nce(x, positives, queue, **kw), (q,), (q,)
        )[1],
    ):
        assert call(backend="reference").isfinite().all()
        with pytest.raises(RuntimeError, match=r'torch.func transforms.*backend="reference"'):
            call(backend="torch")
