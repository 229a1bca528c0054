"""Peak memory of sinkhorn_alignment and of its backward."""

import torch
from peak import assert_linear

import fastseq


def prepare(frames, backend):
    x, y = (torch.randn(1, frames, 16).requires_grad_() for _ in range(2))
    kw = {"virtual_cost": 0.5, "prior_width": 0.1, "iterations": 2, "backend": backend}
    return lambda: fastseq.sinkhorn_alignment(x, y, **kw)


def test_memory_is_linear_in_frames():
    assert_linear(prepare, 1536)
