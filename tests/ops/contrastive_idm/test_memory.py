"""Peak memory of a loss and of its backward."""

import pytest
import torch
from peak import assert_kept, assert_linear

import fastseq

VARIANTS = pytest.mark.parametrize(
    ("channels", "distance"), [(128, "sqeuclidean"), (16, "euclidean")]
)


def preparing(channels, distance):
    def prepare(frames, backend):
        z = torch.nn.functional.normalize(torch.randn(1, frames, channels), dim=-1)
        kw = {"distance": distance, "kind": "sfa", "backend": backend}
        z.requires_grad_()
        return lambda: fastseq.contrastive_idm(z, **kw)

    return prepare


@VARIANTS
def test_blockwise_memory_is_linear_in_frames(channels, distance):
    assert_linear(preparing(channels, distance), 2048)


@VARIANTS
def test_short_calls_keep_a_number_for_each_pair(channels, distance, monkeypatch):
    assert_kept(preparing(channels, distance), 2, monkeypatch)
