"""Something-Something V2: templates, answers, both spellings of the files."""

import json
import shutil

import more_trees
import pytest

from training.datasets.ssv2 import READER
from training.support.command import UserError

FOLDER = "20bn-something-something-v2"


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_ssv2(tmp_path / "ssv2")


def entries(data_set):
    return {clip.name: (clip.entry["action"], clip.entry["split"]) for clip in data_set.clips}


EXPECTED = {
    f"{FOLDER}/1.webm": ("Holding something", "train"),
    f"{FOLDER}/2.webm": ("Moving part of something", "train"),
    f"{FOLDER}/3.webm": ("Holding something", "val"),
    f"{FOLDER}/5.webm": ("Moving part of something", "test"),
}


def test_templates_become_labels(tree):
    data_set = more_trees.read(READER, tree)
    assert entries(data_set) == EXPECTED
    assert data_set.unused == {
        f"{FOLDER}/4.webm": "no label in something-something-v2-test.json or test-answers.csv"
    }
    assert not data_set.missing
    assert not data_set.classes


def test_the_new_names_of_the_files(tree):
    folder = tree / "labels"
    (tree / "annotations").rename(folder)
    for path in folder.glob("*.json"):
        path.rename(folder / path.name.removeprefix("something-something-v2-"))
    assert entries(more_trees.read(READER, tree)) == EXPECTED


def test_missing_unlisted_and_unknown(tree):
    (tree / FOLDER / "1.webm").unlink()
    more_trees.place(tree / FOLDER / "9.webm")
    path = tree / "annotations" / "something-something-v2-labels.json"
    path.write_text(json.dumps({"Holding something": "0"}))
    data_set = more_trees.read(READER, tree)
    assert entries(data_set) == {f"{FOLDER}/3.webm": ("Holding something", "val")}
    assert data_set.missing == {"1.webm": "no such file"}
    assert data_set.unused[f"{FOLDER}/9.webm"] == "in no list"
    unknown = "the label 'Moving part of something' is not in labels.json"
    assert data_set.unused[f"{FOLDER}/2.webm"] == unknown


def test_wrong_lists_and_layouts(tree):
    path = tree / "annotations" / "something-something-v2-validation.json"
    path.write_text('[{"id": "3"}]')
    with pytest.raises(UserError, match=r"entry 0 \(id 3\) has no template"):
        more_trees.read(READER, tree)
    path.write_text('[{"id": "1", "template": "Holding [something]"}]')
    with pytest.raises(UserError, match=r"the id 1 is also in something-something-v2-train.json"):
        more_trees.read(READER, tree)
    path.write_text('{"id": "3"}')
    with pytest.raises(UserError, match=r"expected a list of objects"):
        more_trees.read(READER, tree)
    shutil.rmtree(tree / "annotations")
    with pytest.raises(UserError, match=r"no train.json and no validation.json; it contains 20bn"):
        more_trees.read(READER, tree)
