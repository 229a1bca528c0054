"""HMDB51: marks 0, 1 and 2 of the split files."""

import shutil

import more_trees
import pytest

from training.datasets.hmdb51 import READER
from training.support.command import UserError


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_hmdb51(tmp_path / "hmdb")


def test_marks_are_splits_and_zero_is_left_out(tree):
    data_set = more_trees.read(READER, tree)
    assert {clip.name: clip.entry for clip in data_set.clips} == {
        f"{action}/April_09_{action}_u_nm_np1_ba_goo_{k}.avi": {"action": action, "split": split}
        for action in ("brush_hair", "wave")
        for k, split in enumerate(("train", "test"))
    }
    assert data_set.unused == {
        f"hmdb51_org/{action}/Rick&Mary's_#1_[full]_{action}_f_cm_np1_ba_med_0.avi": (
            "neither train nor test in split 1 (mark 0)"
        )
        for action in ("brush_hair", "wave")
    }
    assert not data_set.missing
    assert not data_set.classes


def test_missing_and_unlisted_videos(tree):
    folder = tree / "hmdb51_org" / "wave"
    (folder / "April_09_wave_u_nm_np1_ba_goo_1.avi").rename(folder / "other.avi")
    data_set = more_trees.read(READER, tree)
    assert list(data_set.missing) == ["wave/April_09_wave_u_nm_np1_ba_goo_1.avi"]
    assert data_set.unused["hmdb51_org/wave/other.avi"] == "not in the files of the split"


def test_wrong_marks_and_layouts(tree):
    with pytest.raises(UserError, match=r"no CLASS_test_split2.txt"):
        more_trees.read(READER, tree, "--split-number", "2")
    more_trees.write(tree / "testTrainMulti_7030_splits" / "wave_test_split1.txt", "a.avi 3\n")
    with pytest.raises(UserError, match=r"wave_test_split1.txt:\n  line 1: 'a.avi 3' is not"):
        more_trees.read(READER, tree)


def test_archives_have_to_be_unpacked(tree):
    shutil.rmtree(tree / "hmdb51_org")
    more_trees.write(tree / "hmdb51_org" / "wave.rar", "Rar!")
    with pytest.raises(UserError, match=r"\(wave.rar\) are not read; unpack .* unrar x"):
        more_trees.read(READER, tree)
