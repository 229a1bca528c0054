"""ActivityNet: subsets, segments in seconds, overlaps."""

import json
import shutil

import more_trees
import pytest

from training.datasets.activitynet import READER
from training.support.command import UserError


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_activitynet(tmp_path / "anet")


def test_subsets_and_segments(tree):
    data_set = more_trees.read(READER, tree)
    assert data_set.classes == {"all": ["Rock climbing", "Zumba"]}
    found = {clip.name: clip.entry for clip in data_set.clips}
    train, val = "v1-3/train_val/v_--1DO2V4K74.mp4", "v1-3/train_val/v_v_bcdefghij.mkv"
    assert found == {
        train: {
            "action": "all",
            "split": "train",
            "unit": "seconds",
            # Zumba from 0.05 to 0.2 s starts first; the later segment gets the frames of both.
            "segments": [[0.05, 0.1, "Zumba"], [0.1, 0.3, "Rock climbing"]],
        },
        val: {
            "action": "all",
            "split": "val",
            "unit": "seconds",
            "segments": [[0.0, 0.25, "Zumba"], [0.3, pytest.approx(0.48), "Rock climbing"]],
        },
        "v1-3/test/v_0wR5jVB-WPk.webm": {"action": "all", "split": "test"},
    }
    assert data_set.remarks == {
        "segments overlap: the later one gets the frames of both": [train],
        "segments cut to the length of the video": [val],
    }
    assert not data_set.missing
    assert not data_set.unused


def change(tree, text):
    path = tree / "json" / "activity_net.v1-3.min.json"
    content = json.loads(path.read_text())
    text(content["database"])
    path.write_text(json.dumps(content))


def test_of_two_segments_with_one_start_the_shorter_keeps_its_frames(tree):
    segments = [{"segment": [0, end], "label": f"to {end}"} for end in (0.2, 0.4)]
    change(tree, lambda database: database["v_bcdefghij"].update(annotations=segments))
    found = {clip.name: clip.entry for clip in more_trees.read(READER, tree).clips}
    assert found["v1-3/train_val/v_v_bcdefghij.mkv"]["segments"] == [
        [0, 0.2, "to 0.2"],
        [0.2, 0.4, "to 0.4"],
    ]


def test_missing_and_unlisted_videos(tree):
    (tree / "v1-3/test/v_0wR5jVB-WPk.webm").rename(tree / "v1-3/test/v_other.webm")
    data_set = more_trees.read(READER, tree)
    assert data_set.missing == {"v_0wR5jVB-WPk": "no such file"}
    assert data_set.unused == {"v1-3/test/v_other.webm": "not in activity_net.v1-3.min.json"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subset": "holdout"}, 'expected "subset"'),
        ({"annotations": None}, 'expected a list "annotations"'),
        ({"annotations": [{"segment": [1], "label": "a"}]}, r'expected "segment": \[start'),
        ({"annotations": [{"segment": [1, "2"], "label": "a"}]}, r'expected "segment": \[start'),
        ({"annotations": [{"segment": [1, 2]}]}, 'expected a "label"'),
    ],
)
def test_wrong_annotations_name_the_video(tree, wrong, message):
    change(tree, lambda database: database["v_bcdefghij"].update(wrong))
    with pytest.raises(UserError, match=f"v_bcdefghij: {message}"):
        more_trees.read(READER, tree)


def test_wrong_layouts(tree):
    path = tree / "json" / "activity_net.v1-3.min.json"
    shutil.copy(path, path.with_name("activity_net.v1-2.min.json"))
    with pytest.raises(UserError, match=r"v1-2.min.json, .* lie side by side"):
        more_trees.read(READER, tree)
    shutil.rmtree(tree / "json")
    with pytest.raises(UserError, match=r"no activity_net.v1-3.min.json; it contains v1-3/"):
        more_trees.read(READER, tree)
