"""DALI reads members of tars as it reads files."""

import tarfile

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from dali_cases import plain, reading_of, run, vp9

from fastseq.video import VideoError


def test_a_member_of_a_tar(engine, tmp_path):
    path, tar = vp9(tmp_path / "a.webm", 12), tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        file.add(path, "first.webm")
        file.add(path, "a.webm")
    with tarfile.open(tar) as file:
        member = file.getmembers()[1]
    locator = f"{tar}#{member.offset_data}+{member.size}"
    frames, draws = np.array([[3, 11, 0]]), [plain(144, 160)]
    (alone,) = run(engine, [reading_of(path, frames, draws)])
    (inside,) = run(engine, [reading_of(locator, frames, draws)])
    assert torch.equal(inside, alone)
    reading = reading_of(locator, frames, draws)
    with tarfile.open(tar, "w") as file:
        file.add(path, "another_name_of_more_than_a_block.webm")
        file.add(__file__, "a.webm")
    with pytest.raises(VideoError, match=r"a\.tar#.*: the tar has changed since it was indexed"):
        run(engine, [reading])
