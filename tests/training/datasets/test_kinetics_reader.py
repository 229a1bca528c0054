"""Kinetics: CVDF's folders and class folders."""

import shutil

import more_trees
import pytest

from training.datasets.kinetics import READER
from training.labels import main
from training.support.command import UserError


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_kinetics(tmp_path / "k400")


def entries(data_set):
    return {clip.name: (clip.entry["action"], clip.entry["split"]) for clip in data_set.clips}


def test_labels_and_splits_of_the_csv_files(tree):
    data_set = more_trees.read(READER, tree)
    assert entries(data_set) == {
        "train/-A_bcdefghi_000005_000015.mp4": ("air drumming", "train"),
        "train/AbCdEfGhIjK_000001_000011.mp4": ("abseiling", "train"),
        "val/0wR5jVB-WPk_000417_000427.mp4": ("abseiling", "val"),
        "test/zzzzzzzzzzz_000000_000010.mp4": ("abseiling", "test"),
    }
    assert data_set.missing == {"train/_4YTwq0-73Y_000027_000037.mp4": "no such file"}
    assert not data_set.unused
    assert not data_set.remarks
    assert not data_set.classes


def test_damaged_second_and_unlisted_copies(tree):
    (tree / "train" / "_4YTwq0-73Y_000027_000037.mp4").write_bytes(b"")
    more_trees.place(tree / "replacement/replacement_for_corrupted_k400/-A_bcdefghi.mp4")
    more_trees.place(tree / "val" / "abcdefghijk_000000_000010.mp4")
    data_set = more_trees.read(READER, tree)
    second = "replacement/replacement_for_corrupted_k400/-A_bcdefghi.mp4"
    assert entries(data_set)[second] == ("air drumming", "train")
    assert "train/-A_bcdefghi_000005_000015.mp4" not in entries(data_set)
    assert data_set.remarks == {"CVDF's second copy is used": [second]}
    assert data_set.missing == {
        "train/_4YTwq0-73Y_000027_000037.mp4": "empty file (0 bytes): download it again"
    }
    assert data_set.unused == {"val/abcdefghijk_000000_000010.mp4": "not in val.csv"}


def test_class_folders_need_no_csv(tree):
    for split in ("train", "val"):
        (tree / "annotations" / f"{split}.csv").unlink()
    shutil.rmtree(tree / "train")
    more_trees.place(tree / "videos_train" / "air_drumming" / "-A_bcdefghi_000005_000015.mp4")
    with pytest.raises(UserError, match=r"no val.csv, and val/0wR5jVB-WPk_\S+ does not lie in"):
        more_trees.read(READER, tree)
    shutil.rmtree(tree / "val")
    more_trees.place(tree / "val" / "air_drumming" / "0wR5jVB-WPk_000417_000427.mp4")
    assert entries(more_trees.read(READER, tree)) == {
        "videos_train/air_drumming/-A_bcdefghi_000005_000015.mp4": ("air_drumming", "train"),
        "val/air_drumming/0wR5jVB-WPk_000417_000427.mp4": ("air_drumming", "val"),
        "test/zzzzzzzzzzz_000000_000010.mp4": ("abseiling", "test"),
    }


def test_class_folders_are_spelt_like_the_labels_of_a_csv_file(tree):
    (tree / "annotations" / "val.csv").unlink()
    shutil.rmtree(tree / "val")
    more_trees.place(tree / "val" / "air_drumming" / "0wR5jVB-WPk_000417_000427.mp4")
    name = "val/air_drumming/0wR5jVB-WPk_000417_000427.mp4"
    assert entries(more_trees.read(READER, tree))[name] == ("air drumming", "val")


def test_a_split_without_videos_and_rows_without_labels(tree):
    shutil.rmtree(tree / "val")
    more_trees.write(
        tree / "annotations" / "test.csv", "youtube_id,time_start,time_end\nzzzzzzzzzzz,0,10\n"
    )
    data_set = more_trees.read(READER, tree)
    (remark,) = data_set.remarks
    assert remark == "no videos of this split: its annotations are not read"
    assert data_set.remarks[remark] == [f"val ({tree / 'annotations/val.csv'})"]
    assert data_set.unused == {"test/zzzzzzzzzzz_000000_000010.mp4": "no label in the csv file"}


def test_missing_videos_change_the_exit_status(tree, capsys):
    assert main(["kinetics", str(tree), "--out", str(tree.parent / "out"), "--dry-run"]) == 3
    out = capsys.readouterr().out
    assert "splits: test 1, train 2, val 1" in out
    assert "missing: no such file (1): train/_4YTwq0-73Y_000027_000037.mp4" in out


def test_wrong_rows_and_layouts(tree, tmp_path):
    more_trees.write(
        tree / "annotations" / "val.csv",
        "label,youtube_id,time_start,time_end,split\nabseiling,0wR5jVB-WPk,soon,427,validate\n",
    )
    with pytest.raises(UserError, match=r"val.csv:\n  line 2: time_start 'soon'"):
        more_trees.read(READER, tree)
    more_trees.write(tmp_path / "empty" / "train.csv", "label\n")
    with pytest.raises(UserError, match=r"no videos in train/, val/ or test/; it contains train"):
        more_trees.read(READER, tmp_path / "empty")
