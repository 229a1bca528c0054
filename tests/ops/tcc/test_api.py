"""tcc_loss: wrong input, and which backend serves a call."""

import numpy as np
import pytest
import torch

import fastseq
from fastseq.nn import TCCLoss
from fastseq.ops.common import dispatch
from fastseq.ops.common.dispatch import BackendStatus
from fastseq.ops.tcc import op


def _arguments(**change):
    z = torch.zeros(2, 4, 3)
    return {"x": z, "y": z, **change}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.zeros(2, 4, 3).long()}, TypeError, "got torch.int64"),
        ({"x": torch.zeros(4, 3), "y": None}, ValueError, r"without y, x must.*got \(4, 3\)"),
        ({"y": None, "ty": torch.arange(4)}, ValueError, "ty passed without y"),
        ({"y": None, "lengths_y": [4, 4]}, ValueError, "lengths_y passed without y"),
        ({"y": None, "duration_y": 4.0}, ValueError, "duration_y passed without y"),
        ({"y": torch.zeros(3, 4, 3)}, ValueError, r"\(2, 4, 3\) and \(3, 4, 3\)"),
        ({"y": torch.zeros(2, 4, 5)}, ValueError, "agree in N and D"),
        ({"tx": torch.arange(4)}, ValueError, "both tx and ty or neither"),
        ({"tx": torch.arange(5), "ty": torch.arange(4)}, ValueError, r"tx must.*got \(5,\)"),
        ({"lengths_x": [4, 5]}, ValueError, "lengths_x must lie between 0 and T = 4, got 5"),
        ({"lengths_y": torch.tensor([1.0, 2.0])}, TypeError, "integers, got torch.float32"),
        ({"duration_x": [4.0]}, ValueError, r"duration_x must have shape \(2,\), got \(1,\)"),
        ({"duration_x": [4.0, 0.0]}, ValueError, "greater than 0, got 0.0"),
        ({"duration_y": float("nan")}, ValueError, "duration_y must be finite.*got nan"),
        ({"duration_x": [4, None]}, TypeError, r"duration_x must be numbers, got \[4, None\]"),
        ({"duration_x": torch.ones(2, dtype=torch.bool)}, TypeError, "got torch.bool"),
        ({"loss_type": "mse"}, ValueError, "'regression_mse_var', 'regression_mse', "),
        ({"similarity": "l1"}, ValueError, "'l2', 'cosine'"),
        ({"temperature": 0}, ValueError, "greater than 0, got 0"),
        ({"variance_lambda": -0.1}, ValueError, "at least 0, got -0.1"),
        ({"variance_lambda": "0"}, TypeError, "variance_lambda must be a Python number, got str"),
        ({"variance_lambda": torch.tensor(0.1)}, TypeError, "Python number, got Tensor"),
        ({"label_smoothing": 1.0}, ValueError, "at least 0 and below 1, got 1.0"),
        ({"label_smoothing": float("nan")}, ValueError, "got nan"),
        ({"huber_delta": 0.0}, ValueError, "huber_delta"),
        ({"normalize_indices": 1}, TypeError, "True or False, got 1"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "cuda"}, ValueError, "unknown backend 'cuda'.*'torch', 'reference', 'triton'"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.tcc_loss(**_arguments(**change))


def test_choice_of_backend(monkeypatch):
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    here = BackendStatus(True, "here", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: here)
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    half, double = torch.bfloat16, torch.float64
    assert op.resolve_backend("auto", "cuda", half) == ("triton", "preferred here")
    assert op.resolve_backend("auto", "cpu", half) == ("torch", "preferred here")
    name, reason = op.resolve_backend("auto", "cuda", double)
    assert name == "torch"
    assert "not triton: no kernel for float64" in reason
    for device, dtype, text in (("cuda", double, "float32 inputs"), ("cpu", half, "CUDA device")):
        with pytest.raises(RuntimeError, match=f"'triton'.*does not support.*to fix: .*{text}"):
            op.resolve_backend("triton", device, dtype)
    monkeypatch.setattr(dispatch, "interpreting", lambda: True)
    assert op.resolve_backend("triton", "cpu", half)[0] == "triton"
    assert op.resolve_backend("auto", "cpu", half)[0] == "torch"
    monkeypatch.setenv("FASTSEQ_BACKEND", "reference")
    assert op.resolve_backend("auto", "cuda", half) == ("reference", "FASTSEQ_BACKEND")
    assert op.resolve_backend("torch", "cuda", half)[0] == "torch"
    # A default for all ops; this one has no such backend.
    monkeypatch.setenv("FASTSEQ_BACKEND", "cuda")
    assert op.resolve_backend("auto", "cuda", half)[0] == "triton"


def test_triton_missing_falls_back_only_when_not_asked_for(monkeypatch):
    missing = BackendStatus(False, "no triton", "get some")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: missing)
    name, reason = op.resolve_backend("auto", "cuda", torch.float32)
    assert (name, "not triton: no triton; to fix: get some" in reason) == ("torch", True)
    with pytest.raises(RuntimeError, match="no triton; to fix: get some"):
        op.resolve_backend("triton", "cuda", torch.float32)


def test_module_passes_everything_on():
    x, y = torch.randn(2, 2, 6, 3, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.arange(6) * 2
    options = {
        "loss_type": "regression_huber",
        "similarity": "cosine",
        "temperature": 0.3,
        "variance_lambda": 0.0,
        "label_smoothing": 0.0,
        "huber_delta": 0.02,
        "normalize_indices": False,
        "reduction": "none",
        "backend": "reference",
    }
    frames = {"lengths_x": [6, 4], "lengths_y": [3, 6], "duration_x": 9.0, "duration_y": [7, 8]}
    loss = TCCLoss(**options)
    want = fastseq.tcc_loss(x, y, t, t, **frames, **options)
    assert torch.equal(loss(x, y, t, t, **frames), want)
    assert "loss_type='regression_huber'" in repr(loss)
    with pytest.raises(ValueError, match="TCCLoss: label_smoothing"):
        TCCLoss(label_smoothing=1.5)


def test_numpy_numbers_are_numbers():
    z = torch.eye(4)
    want = fastseq.tcc_loss(z, z, temperature=0.5, variance_lambda=0.0, duration_x=8.0)
    got = fastseq.tcc_loss(
        *(z, z), temperature=np.float32(0.5), variance_lambda=np.float64(0), duration_x=np.int64(8)
    )
    assert got == want


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_meta_tensors_give_shapes(backend):
    z = torch.zeros(2, 4, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    loss = fastseq.tcc_loss(z, lengths_x=[4, 2], reduction="none", backend=backend)
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (2,), torch.float32)
    assert torch.autograd.grad(loss.sum(), z)[0].shape == z.shape


def test_function_transforms_need_the_reference():
    x, y = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda **kw: torch.func.grad(lambda a: fastseq.tcc_loss(a, y, **kw))(x),
        lambda **kw: torch.vmap(lambda a, b: fastseq.tcc_loss(a, b, **kw))(x, y),
        lambda **kw: torch.func.jvp(lambda a: fastseq.tcc_loss(a, y, **kw), (x,), (y,))[1],
    ):
        assert call(backend="reference").isfinite().all()
        with pytest.raises(RuntimeError, match=r'torch.func transforms.*backend="reference"'):
            call(backend="torch")
