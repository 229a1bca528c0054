"""UCF101: lists, classes, missing and unlisted videos."""

import more_trees
import pytest

from training.datasets.ucf101 import READER
from training.labels import main
from training.support.command import UserError


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_ucf101(tmp_path / "ucf")


def entries(data_set):
    return {clip.name: (clip.entry["action"], clip.entry["split"]) for clip in data_set.clips}


def test_the_lists_of_split_1(tree):
    data_set = more_trees.read(READER, tree)
    assert entries(data_set) == {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "train"),
        "HandstandPushups/v_HandStandPushups_g09_c01.avi": ("HandstandPushups", "train"),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": ("ApplyEyeMakeup", "test"),
        "HandstandPushups/v_HandStandPushups_g01_c01.avi": ("HandstandPushups", "test"),
    }
    assert not data_set.missing
    assert not data_set.unused
    assert not data_set.classes
    for clip in data_set.clips:
        assert clip.source == tree / "UCF-101" / clip.name


def test_another_split_leaves_out_the_videos_that_it_does_not_list(tree):
    data_set = more_trees.read(READER, tree, "--split-number", "2")
    assert entries(data_set) == {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": ("ApplyEyeMakeup", "train"),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "test"),
    }
    assert set(data_set.unused.values()) == {"not in the lists of split 2"}
    assert len(data_set.unused) == 2


def test_missing_and_converted_videos(tree):
    folder = tree / "UCF-101" / "ApplyEyeMakeup"
    (folder / "v_ApplyEyeMakeup_g08_c01.avi").unlink()
    (folder / "v_ApplyEyeMakeup_g01_c01.avi").unlink()
    more_trees.place(folder / "v_ApplyEyeMakeup_g01_c01.mp4")
    more_trees.place(folder / "v_ApplyEyeMakeup_g01_c01.webm")
    data_set = more_trees.read(READER, tree)
    assert list(data_set.missing) == ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"]
    assert "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4" in entries(data_set)
    assert data_set.unused == {
        "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.webm": (
            "another file of the same name is used"
        )
    }


def test_the_command_counts(tree, capsys):
    assert main(["ucf101", str(tree), "--out", str(tree.parent / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "videos: 4" in out
    assert "splits: test 2, train 2" in out
    assert "actions: ApplyEyeMakeup 2, HandstandPushups 2" in out


def test_wrong_lists_and_layouts(tree, tmp_path):
    path = tree / "ucfTrainTestlist" / "trainlist01.txt"
    twice = "HandstandPushups/c.avi 37\n"
    path.write_text(f"HandstandPushups/a.avi 1\nb.avi 1\n{twice}{twice}")
    with pytest.raises(
        UserError, match=r"(?s)line 1: class 1 is ApplyEyeMakeup .*line 2: 'b.avi.*line 4: .*twice"
    ):
        more_trees.read(READER, tree)
    path.unlink()
    with pytest.raises(UserError, match=r"no trainlist01.txt; it contains UCF-101/.* Expected"):
        more_trees.read(READER, tree)
