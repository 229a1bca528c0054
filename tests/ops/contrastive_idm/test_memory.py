"""Peak memory of a loss and of its backward."""

import pytest
import torch
from peak import assert_linear

import fastseq


@pytest.mark.parametrize(("channels", "distance"), [(128, "sqeuclidean"), (16, "euclidean")])
def test_blockwise_memory_is_linear_in_frames(channels, distance):
    def prepare(frames, backend):
        z = torch.nn.functional.normalize(torch.randn(1, frames, channels), dim=-1)
        kw = {"distance": distance, "kind": "sfa", "backend": backend}
        z.requires_grad_()
        return lambda: fastseq.contrastive_idm(z, **kw)

    assert_linear(prepare)
