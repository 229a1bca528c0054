"""Which CPU calls keep a number for each pair of frames."""

import pytest
import torch

from fastseq.ops.common.short import KEPT_BYTES, kept_pairs


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 4), (torch.float16, 4)],
)
def test_bytes_of_all_pairs_decide(dtype, size):
    frames = KEPT_BYTES // size // 128
    z1, z2 = torch.zeros(2, 64, 3, dtype=dtype), torch.zeros(2, frames + 1, 3, dtype=dtype)
    assert kept_pairs(z1, z2[:, :frames], [True, False]) == (2, 64, frames)
    assert kept_pairs(z1, z2, [True, False]) is None
    assert kept_pairs(z1[:1], z2[:1], [True, False]) == (1, 64, frames + 1)


def test_only_where_a_gradient_is_wanted_and_on_the_cpu():
    z = torch.zeros(2, 4, 3)
    assert kept_pairs(z, z, [False, True]) == (2, 4, 4)
    assert kept_pairs(z, z, [False, False]) is None
    assert kept_pairs(z.to("meta"), z.to("meta"), [True, True]) is None
