"""scl_loss: wrong input, and choice of the backend."""

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.scl.op import resolve_backend


def _arguments(**change):
    z = torch.zeros(2, 4, 3)
    return {"z1": z, "z2": z, **change}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"z1": [[1.0]]}, TypeError, "z1 must be a torch.Tensor, got list"),
        ({"z1": torch.zeros(2, 4, 3).long()}, TypeError, "got torch.int64"),
        ({"z1": torch.zeros(4)}, ValueError, r"got \(4,\)"),
        ({"z1": torch.zeros(2, 4, 0), "z2": torch.zeros(2, 4, 0)}, ValueError, "D >= 1"),
        ({"z2": torch.zeros(3, 4, 3)}, ValueError, r"\(2, 4, 3\) and \(3, 4, 3\)"),
        ({"z2": torch.zeros(2, 4, 5)}, ValueError, "agree in N and D"),
        ({"t1": torch.arange(4)}, ValueError, "both t1 and t2 or neither"),
        ({"t1": torch.arange(5), "t2": torch.arange(4)}, ValueError, r"got \(5,\)"),
        ({"t1": [0, 1, 2, 3], "t2": torch.arange(4)}, TypeError, "t1 must be a torch.Tensor"),
        ({"lengths1": [4, 5]}, ValueError, "between 0 and T = 4, got 5"),
        ({"lengths1": [4, -1]}, ValueError, "got -1"),
        ({"lengths1": [4]}, ValueError, r"shape \(2,\), got \(1,\)"),
        ({"lengths2": torch.tensor([1.0, 2.0])}, TypeError, "integers, got torch.float32"),
        ({"lengths2": [4, None]}, TypeError, r"lengths2 must be integers, got \[4, None\]"),
        ({"valid1": torch.ones(2, 4)}, TypeError, "bool tensor"),
        ({"valid1": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"shape \(2, 4\)"),
        (
            {"valid1": torch.ones(2, 4, dtype=torch.bool), "lengths1": [4, 4]},
            ValueError,
            "not both",
        ),
        ({"temperature": 0}, ValueError, "greater than 0, got 0"),
        ({"temperature": float("nan")}, ValueError, "finite"),
        ({"temperature": "0.1"}, TypeError, "must be a number, got str"),
        ({"variance": -1.0}, ValueError, "variance"),
        ({"variance": 1e-40}, ValueError, "1e-30 to 1e30"),
        ({"variance": "10"}, TypeError, "variance must be a number, got str"),
        ({"normalize": "false"}, TypeError, "True or False, got 'false'"),
        ({"objective": "mse"}, ValueError, "'kl', 'ce'"),
        ({"negatives": "all"}, ValueError, "'cross', 'video', 'batch'"),
        ({"target": "cauchy"}, ValueError, "'gauss', 'laplace', 'sigmoid', 'box'"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum', 'paper'"),
        ({"backend": "cuda"}, ValueError, "unknown backend 'cuda'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.scl_loss(**_arguments(**change))


def test_backends_asked_for_by_name_never_fall_back():
    z = torch.zeros(2, 4, 3)
    with pytest.raises(RuntimeError, match="float64"):
        fastseq.scl_loss(z.double(), z.double(), backend="triton")


def test_choice_of_backend(monkeypatch):
    from fastseq.ops.common import dispatch

    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    ready = dispatch.BackendStatus(True, "", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: ready)
    assert resolve_backend("auto", "cuda", torch.bfloat16)[0] == "triton"
    assert resolve_backend("auto", "cuda", torch.float64)[0] == "torch"
    missing = dispatch.BackendStatus(False, "no triton", "pip install triton")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: missing)
    name, reason = resolve_backend("auto", "cuda", torch.float32)
    assert name == "torch"
    assert "no triton; to fix: pip install triton" in reason
    with pytest.raises(RuntimeError, match="pip install triton"):
        resolve_backend("triton", "cuda", torch.float32)
    monkeypatch.setenv("FASTSEQ_BACKEND", "reference")
    assert resolve_backend("auto", "cpu", torch.float32) == (
        "reference",
        "FASTSEQ_BACKEND",
    )
    monkeypatch.setenv("FASTSEQ_BACKEND", "torch")
    assert resolve_backend("reference", "cpu", torch.float32)[0] == "reference"
    monkeypatch.setenv("FASTSEQ_BACKEND", "")  # the same as not set
    assert resolve_backend("auto", "cpu", torch.float32) == ("torch", "preferred here")
    monkeypatch.setenv("FASTSEQ_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTSEQ_BACKEND"):
        resolve_backend("auto", "cpu", torch.float32)


def test_numpy_numbers_are_numbers():
    z = torch.eye(4)
    want = fastseq.scl_loss(z, z, variance=4.0, temperature=0.5)
    got = fastseq.scl_loss(z, z, variance=np.int64(4), temperature=np.float32(0.5))
    assert got == want


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_meta_tensors_give_shapes(backend):
    z = torch.zeros(2, 4, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    loss = fastseq.scl_loss(z, z, lengths1=[4, 2], reduction="none", backend=backend)
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (2,), torch.float32)
    assert torch.autograd.grad(loss.sum(), z)[0].shape == z.shape


def test_function_transforms_need_the_reference():
    z1, z2 = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda **kw: torch.func.grad(lambda x: fastseq.scl_loss(x, z2, **kw))(z1),
        lambda **kw: torch.vmap(lambda x, y: fastseq.scl_loss(x, y, **kw))(z1, z2),
        lambda **kw: torch.func.jvp(lambda x: fastseq.scl_loss(x, z2, **kw), (z1,), (z2,))[1],
    ):
        assert call(backend="reference").isfinite().all()
        with pytest.raises(RuntimeError, match=r'torch.func transforms.*backend="reference"'):
            call(backend="torch")


def test_a_backend_is_named_by_a_string():
    z = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"scl_loss: backend must be a string, got \['torch'\]"):
        fastseq.scl_loss(z, z, backend=["torch"])
