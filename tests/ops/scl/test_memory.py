"""Peak memory of a loss and of its backward."""

import torch
from peak import assert_linear

import fastseq


def test_blockwise_memory_is_linear_in_frames():
    def prepare(frames, backend):
        z1, z2 = (torch.randn(1, frames, 128).requires_grad_() for _ in range(2))
        return lambda: fastseq.scl_loss(z1, z2, backend=backend)

    assert_linear(prepare)
