"""Peak memory of a loss and of its backward."""

import torch
from peak import assert_kept, assert_linear

import fastseq


def prepare(frames, backend):
    z1, z2 = (torch.randn(1, frames, 128).requires_grad_() for _ in range(2))
    return lambda: fastseq.scl_loss(z1, z2, backend=backend)


def test_blockwise_memory_is_linear_in_frames():
    assert_linear(prepare, 2048)


def test_short_calls_keep_a_number_for_each_pair(monkeypatch):
    assert_kept(prepare, 2, monkeypatch)
