"""Peak memory of a loss and of its backward."""

import torch
from peak import growth

import fastseq


def test_blockwise_memory_is_linear_in_frames():
    def prepare(frames, backend):
        z1, z2 = (torch.randn(1, frames, 128).requires_grad_() for _ in range(2))
        return lambda: fastseq.scl_loss(z1, z2, backend=backend)

    # Beside all else, a matrix of one byte a pair would make it 2.3 at least.
    assert max(growth(lambda n: prepare(n, "torch"), 1024)) < 2.2
    # The measurement sees matrices.
    assert min(growth(lambda n: prepare(n, "reference"), 256)) > 3.5
