"""column_lse on the CPU against its definition, and its memory."""

import torch
from peak import assert_linear
from torch.nn.functional import normalize

from fastseq.ops.column_lse import column_lse
from fastseq.ops.column_lse import torch as blocks
from fastseq.ops.column_lse.op import backend_beside
from fastseq.ops.common import dispatch
from ops.column_lse.cases import inputs, plain, value_and_grads
from ops.soft_dtw.cases import randn


def test_the_definition():
    x, y, grad = inputs(3, 9, 7, 5, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 1]), torch.tensor([7, 3, 5])
    for rate in (1.0, 100.0):
        got = value_and_grads(x, y, grad, *lengths, rate=rate, backend="reference")
        for found, want in zip(got, plain(x, y, grad, *lengths, rate=rate), strict=True):
            assert torch.allclose(found, want, rtol=1e-12, atol=1e-13)


def test_blocks_of_columns(monkeypatch):
    """Several blocks give what one gives."""
    u, v = (normalize(randn(2, n, 9, seed=n, dtype=torch.float64), dim=-1) for n in (50, 77))
    lengths, g = torch.tensor([50, 20]), randn(2, 77, seed=3, dtype=torch.float64)

    monkeypatch.setattr(blocks, "ELEMENTS", 1)  # 32 columns each
    for rate in (1.0, 10.0, 1000.0):
        call = u, v, g, lengths
        got, want = (value_and_grads(*call, rate=rate, backend=b) for b in ("torch", "reference"))
        for found, exact in zip(got, want, strict=True):
            assert torch.allclose(found, exact, rtol=1e-11, atol=1e-12)


def test_lengths_that_the_host_does_not_read(monkeypatch):
    """What runs on other devices: masks in place of slices."""
    u, v = (normalize(randn(3, n, 9, seed=n, dtype=torch.float64), dim=-1) for n in (12, 15))
    lengths = torch.tensor([12, 5, 0]), torch.tensor([15, 7, 15])
    g = randn(3, 15, seed=3, dtype=torch.float64)
    u[1, 5:], v[1, 7:] = torch.nan, torch.nan
    monkeypatch.setattr(blocks, "_host_has", lambda x: False)
    for rate in (10.0, 1000.0):
        call = u, v, g, *lengths
        got, want = (value_and_grads(*call, rate=rate, backend=b) for b in ("torch", "reference"))
        for found, exact in zip(got, want, strict=True):
            assert torch.allclose(found, exact, rtol=1e-11, atol=1e-12)


def test_memory_is_linear(monkeypatch):
    def prepare(frames, backend):
        x, y = (randn(1, frames, 16, seed=k).requires_grad_() for k in (1, 2))
        u, v = normalize(x, dim=-1), normalize(y, dim=-1)
        return lambda: column_lse(u, v, None, None, 10.0, backend).sum()

    monkeypatch.setattr(blocks, "ELEMENTS", 1 << 14)
    assert_linear(prepare)


def test_choice_of_the_backend_beside(monkeypatch):
    ready = dispatch.BackendStatus(True, "", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: ready)
    assert backend_beside("numba", "cpu", torch.float32) == "torch"
    assert backend_beside("cuda", "cuda", torch.float32) == "triton"
    assert backend_beside("cuda", "cuda", torch.float64) == "torch"
    assert backend_beside("torch", "cuda", torch.float32) == "torch"
    assert backend_beside("reference", "cuda", torch.float32) == "reference"
