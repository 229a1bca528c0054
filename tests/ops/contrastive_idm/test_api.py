"""contrastive_idm: argument forms, dtypes, wrong input, warnings, choice of the backend."""

import warnings

import numpy as np
import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from fastseq.ops.contrastive_idm import op
from fastseq.ops.contrastive_idm.op import resolve_backend
from ops.contrastive_idm.cases import BACKENDS, loss_and_grad, randn


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"z": [[1.0]]}, TypeError, "z must be a torch.Tensor, got list"),
        ({"z": torch.zeros(2, 4, 3).long()}, TypeError, "got torch.int64"),
        ({"z": torch.zeros(4)}, ValueError, r"got \(4,\)"),
        ({"z": torch.zeros(2, 4, 0)}, ValueError, "D >= 1"),
        ({"t": torch.arange(5)}, ValueError, r"t must have shape \(4,\) or \(2, 4\), got \(5,\)"),
        ({"t": [0, 1, 2, 3]}, TypeError, "t must be a torch.Tensor"),
        ({"lengths": [4, 5]}, ValueError, "between 0 and T = 4, got 5"),
        ({"lengths": [4]}, ValueError, r"shape \(2,\), got \(1,\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "integers, got torch.float32"),
        ({"window": -1}, ValueError, "window must be finite and at least 0, got -1"),
        ({"window": float("nan")}, ValueError, "window must be finite"),
        ({"window": "10"}, TypeError, "got str"),
        ({"window": torch.ones(3)}, ValueError, r"number or have shape \(2,\), got \(3,\)"),
        ({"window": torch.tensor([1.0, -2.0])}, ValueError, "at least 0, got -2.0"),
        ({"window": torch.tensor([True, True])}, TypeError, "got torch.bool"),
        ({"margin": 0}, ValueError, "margin must be finite"),
        ({"margin": torch.tensor(2.0)}, TypeError, r"pass float\(margin\)"),
        ({"kind": "cidm"}, ValueError, "'contrastive', 'idm', 'sfa'"),
        ({"weights": "one"}, ValueError, "'paper', 'code'"),
        ({"distance": "cosine"}, ValueError, "'sqeuclidean', 'euclidean'"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "cuda"}, ValueError, "unknown backend 'cuda'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.contrastive_idm(**({"z": torch.zeros(2, 4, 3)} | change))


@pytest.mark.parametrize(
    ("options", "error"), [({"window": -1}, ValueError), ({"kind": "x"}, ValueError)]
)
def test_the_module_checks_its_options(options, error):
    with pytest.raises(error, match="ContrastiveIDM"):
        fastseq.nn.ContrastiveIDM(**options)


def test_the_scale_of_the_papers_form_is_said_once():
    op._warn_large_scale.cache_clear()
    quiet = [{"kind": "sfa"}, {"weights": "code"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastseq.contrastive_idm(torch.zeros(128, 2))
        for kw in [*quiet, {"t": torch.arange(129) / 30}]:
            fastseq.contrastive_idm(torch.zeros(129, 2), **kw)
    with pytest.warns(UserWarning, match="6e8 at T = 480") as caught:
        fastseq.contrastive_idm(torch.zeros(129, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastseq.contrastive_idm(torch.zeros(129, 2), kind="idm")
    assert caught[0].filename == __file__


def test_the_figure_in_the_warning():
    """The sum of the weights for random directions at T = 480."""
    z = torch.randn(480, 128, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(z, dim=-1)
    # A hinge on distances around the margin of 2 leaves about 0.07.
    weights = sum(2 * (480 - g) * (g * g + 1) for g in range(11, 480))
    assert 2 * weights > 1.7e10
    got = fastseq.contrastive_idm(z, reduction="sum").item()
    assert 3e8 < got < 1.2e9


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
    monkeypatch.setenv("FASTSEQ_BACKEND", "numba")  # a backend of other ops
    assert resolve_backend("auto", "cpu", torch.float32)[0] == "torch"


def test_a_backend_asked_for_by_name_never_falls_back():
    z = torch.zeros(2, 4, 3).double()
    with pytest.raises(RuntimeError, match="float64"):
        fastseq.contrastive_idm(z, backend="triton")


def test_numpy_numbers_are_numbers():
    z = torch.eye(4)
    want = fastseq.contrastive_idm(z, window=2.0, margin=3.0)
    assert fastseq.contrastive_idm(z, window=np.int64(2), margin=np.float32(3)) == want


@pytest.mark.parametrize("backend", BACKENDS)
def test_forms_of_the_same_call(backend):
    z = randn(2, 20, 4)
    kw = {"backend": backend, "window": 3.0}
    loss = fastseq.contrastive_idm(z, lengths=[20, 6], **kw)
    for lengths in (torch.tensor([20, 6]), torch.tensor([20, 6], dtype=torch.int32)):
        assert fastseq.contrastive_idm(z, lengths=lengths, **kw) == loss
    each = fastseq.contrastive_idm(z, reduction="none", **kw)
    for t in (torch.arange(20), torch.arange(20.0) + 7, torch.arange(20).expand(2, 20)):
        torch.testing.assert_close(fastseq.contrastive_idm(z, t, reduction="none", **kw), each)
    for window in (torch.tensor(3), torch.tensor([3.0, 3.0]), torch.tensor([3, 3])):
        got = fastseq.contrastive_idm(z, window=window, reduction="none", backend=backend)
        torch.testing.assert_close(got, each)
    one = fastseq.contrastive_idm(z[0], reduction="none", **kw)
    assert one.shape == ()
    torch.testing.assert_close(one, each[0])
    torch.testing.assert_close(fastseq.contrastive_idm(z, **kw), each.mean() / 400)
    cut = fastseq.contrastive_idm(z[1], lengths=6, **kw)
    torch.testing.assert_close(cut, fastseq.contrastive_idm(z[1, :6], **kw))
    module = fastseq.nn.ContrastiveIDM(backend=backend, window=3.0, kind="sfa")
    assert module(z) == fastseq.contrastive_idm(z, kind="sfa", **kw)
    assert "kind='sfa'" in repr(module)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_float32_loss_and_their_own_gradients(backend, dtype):
    z = (randn(2, 60, 16) / 4).to(dtype)
    got, plain = (loss_and_grad(z, backend=b) for b in (backend, "reference"))
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    as_accurate_as(got, plain, loss_and_grad(z.double(), backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    z = randn(2, 30, 8, dtype=torch.float32)
    plain = loss_and_grad(z, backend=backend)
    a = z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fastseq.contrastive_idm(a, backend=backend)
        if backend == "torch":  # its backward is fastseq's own and may run under autocast too
            (inside,) = torch.autograd.grad(loss, a, retain_graph=True)
            assert torch.equal(plain[1], inside)
    assert all(map(torch.equal, plain, (loss, *torch.autograd.grad(loss, a))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_meta_tensors_give_shapes(backend):
    z = torch.zeros(2, 4, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    loss = fastseq.contrastive_idm(z, lengths=[4, 2], reduction="none", backend=backend)
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (2,), torch.float32)
    assert torch.autograd.grad(loss.sum(), z)[0].shape == z.shape


def test_function_transforms_need_the_reference():
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda **kw: torch.func.grad(lambda x: fastseq.contrastive_idm(x, **kw))(z),
        lambda **kw: torch.vmap(lambda x: fastseq.contrastive_idm(x, **kw))(z),
        lambda **kw: torch.func.jvp(lambda x: fastseq.contrastive_idm(x, **kw), (z,), (z,))[1],
    ):
        assert call(backend="reference").isfinite().all()
        with pytest.raises(RuntimeError, match=r'torch.func transforms.*backend="reference"'):
            call(backend="torch")


def test_changing_an_input_before_backward_is_an_error():
    z = randn(1, 4, 3).requires_grad_()
    lengths, window = torch.tensor([4]), torch.tensor([2.0])
    loss = fastseq.contrastive_idm(z * 1, lengths=lengths, window=window, backend="torch")
    lengths.fill_(1)  # lengths are copied, so the caller may reuse the buffer
    window.fill_(0)
    loss.backward()
    middle = z * 1
    loss = fastseq.contrastive_idm(middle, backend="torch")
    middle.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_differentiating_twice_is_an_error_not_a_wrong_number():
    z = randn(1, 4, 3).requires_grad_()
    loss = fastseq.contrastive_idm(z, backend="torch")
    (dz,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dz.square().sum().backward()
