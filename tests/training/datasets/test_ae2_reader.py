"""AE2: both layouts, views, phases and lengths that differ."""

import pickle

import more_trees
import numpy as np
import pytest

from training.datasets.ae2 import READER
from training.support.command import UserError

PHASES = [0] * 4 + [1] * 4 + [2] * 4


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_ae2(tmp_path / "AE2_data")


def relabel(folder, **labels):
    path = folder / "label.pickle"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | labels))


def test_both_layouts(tree):
    data_set = more_trees.read(READER, tree)
    assert data_set.classes == {
        "break_eggs": ["phase 0", "phase 1", "phase 2"],
        "pour_milk": ["phase 0", "phase 1"],
    }
    expected = {}
    for view in ("ego", "exo"):
        for split in ("train", "val", "test"):
            entry = {"split": split, "view": view}
            expected[f"break_eggs/{view}/{view}_{split}.mp4"] = {
                "action": "break_eggs",
                **entry,
                "phases": PHASES,
            }
            expected[f"pour_milk/{split}/{view}/subject1_{view}_{split}.mp4"] = {
                "action": "pour_milk",
                **entry,
                "phases": [phase % 2 for phase in PHASES],
            }
    assert {clip.name: clip.entry for clip in data_set.clips} == expected
    assert not data_set.missing
    assert not data_set.unused
    assert not data_set.remarks


def test_one_of_the_four_sets(tree):
    data_set = more_trees.read(READER, tree / "pour_milk")
    assert len(data_set.clips) == 6
    assert data_set.clips[0].name == "test/ego/subject1_ego_test.mp4"
    assert {clip.entry["action"] for clip in data_set.clips} == {"pour_milk"}


def test_lengths_that_differ_are_reported(tree):
    more = np.array([*PHASES, 2, 2])
    relabel(tree / "break_eggs", ego_train=more, exo_train=more[:9], ego_val=list(range(12)))
    data_set = more_trees.read(READER, tree)
    found = {clip.name: clip.entry["phases"] for clip in data_set.clips}
    assert found["break_eggs/ego/ego_train.mp4"] == PHASES
    assert found["break_eggs/exo/exo_train.mp4"] == [*PHASES[:9], -1, -1, -1]
    (names,) = data_set.remarks.values()
    assert names == [
        "break_eggs/ego/ego_train.mp4 (14 labels, 12 frames)",
        "break_eggs/exo/exo_train.mp4 (9 labels, 12 frames)",
    ]
    assert len(data_set.classes["break_eggs"]) == 12


def test_missing_unlisted_and_unlabelled(tree):
    (tree / "break_eggs/ego/ego_train.mp4").unlink()
    (tree / "pour_milk/test/exo/subject1_exo_test.mp4").unlink()
    more_trees.place(tree / "break_eggs/exo/unlisted.mp4")
    more_trees.place(tree / "pour_milk/train/exo/unlabelled.mp4")
    data_set = more_trees.read(READER, tree)
    assert data_set.missing == {
        "break_eggs/ego/ego_train.mp4": "no such file",
        "pour_milk/subject1_exo_test": "in label.pickle, but no such file",
    }
    assert list(data_set.unused) == ["break_eggs/exo/unlisted.mp4"]
    assert data_set.remarks == {
        "not in label.pickle: used without labels": ["pour_milk/train/exo/unlabelled.mp4"]
    }


class Harmful:
    def __reduce__(self):
        return (print, ("it ran",))


def test_the_pickle_is_read_without_running_it(tree, capsys):
    relabel(tree / "break_eggs", ego_train=Harmful())
    with pytest.raises(UserError, match=r"label.pickle is not a pickle of labels, .*print"):
        more_trees.read(READER, tree)
    assert "it ran" not in capsys.readouterr().out


def test_wrong_labels_and_layouts(tree, tmp_path):
    relabel(tree / "break_eggs", ego_train=np.array([0.5, 1]))
    with pytest.raises(UserError, match=r"ego_train: expected one whole number a frame"):
        more_trees.read(READER, tree)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"no label.pickle; it is empty. Expected"):
        more_trees.read(READER, tmp_path / "other")
    relabel(tree / "break_eggs", ego_train=np.array(PHASES))
    for path in (tree / "break_eggs").glob("*/*.csv"):
        path.unlink()
    with pytest.raises(UserError, match=r"break_eggs: no {ego,exo}/train.csv, no train/ego"):
        more_trees.read(READER, tree)
