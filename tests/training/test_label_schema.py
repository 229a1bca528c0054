"""labels.schema.json agrees with read_labels on good and wrong files and on the documentation."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from training.data.labels import LabelError, read_labels

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "training/data/labels.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CLASSES = {"s": ["x", "y", "z"]}
SETS = {"coarse": {"s": ["x", "y"]}, "fine": {"s": ["p", "q", "r"]}}


def entry(**keys):
    return {"classes": CLASSES, "videos": {"a.mp4": {"action": "s", **keys}}}


def in_sets(**parts):
    return {"class_sets": SETS, "videos": {"a.mp4": {"action": "s", "labels": parts}}}


GOOD = {
    "nothing": {},
    "schema": {"$schema": "labels.schema.json", "source": "anything", "videos": {"a.mp4": {}}},
    "boundaries": entry(split="val", boundaries=[0, 4], unlabelled_from=9, remark=["any", 1]),
    "segments": entry(segments=[[10, 20, "z"], [0, 10, 0]], view="ego", trim=[0, 30]),
    "phases": entry(phases=[-1, 0, 0, 2, 1], crop=[0, 0, 8, 8], sync={"group": "g", "offset": -3}),
    "seconds": entry(
        unit="seconds", segments=[[0.5, 2, 1]], trim=[0.2, 9], sync={"group": "g", "offset": 0.25}
    ),
    "pictures": entry(fps=29.97),
    "seconds by default": {
        "unit": "seconds",
        "classes": CLASSES,
        "videos": {
            "a.mp4": {"action": "s", "boundaries": [1.5, 2.5]},
            "b.mp4": {"action": "s", "unit": "frames", "boundaries": [40, 60]},
        },
    },
    "class sets": in_sets(coarse={"boundaries": [5]}, fine={"split": "test", "segments": []}),
    "a class set without labels": in_sets(coarse={"split": "val"}),
}
BAD = {
    "no object": [],
    "both": {"classes": {}, "class_sets": SETS},
    "no phases": {"classes": {"s": []}},
    "no class set": {"class_sets": {}},
    "class set without actions": {"class_sets": {"fine": ["p"]}},
    "class set without a name": {"class_sets": {" ": {}}},
    "no videos": {"videos": []},
    "unit of the file": {"unit": "second"},
    "unknown key": entry(boundary=[3]),
    "split": entry(split="validation"),
    "unit": entry(unit="s", boundaries=[1]),
    "action": {"videos": {"a.mp4": {"action": 3}}},
    "view": entry(view=" "),
    "fps": entry(fps=0),
    "two forms": entry(boundaries=[3], phases=[0, 1]),
    "boundaries and segments": entry(boundaries=[3], segments=[]),
    "negative": entry(boundaries=[-1]),
    "no list": entry(boundaries=3),
    "half a frame": entry(boundaries=[0.5]),
    "a truth value": entry(boundaries=[True]),
    "half a frame beside seconds": {"unit": "seconds", **entry(unit="frames", boundaries=[0.5])},
    "segment without a phase": entry(segments=[[0, 3]]),
    "segment with half a frame": entry(segments=[[0, 2.5, 1]]),
    "segment of a negative phase": entry(segments=[[0, 3, -1]]),
    "phase below -1": entry(phases=[-2]),
    "half a phase": entry(unit="seconds", phases=[0.5]),
    "trim": entry(trim=[1]),
    "trim with half a frame": entry(trim=[1, 2.5]),
    "crop": entry(crop=[0, 0, 0, 8]),
    "sync without a group": entry(sync={"offset": 1}),
    "sync with half a frame": entry(sync={"group": "g", "offset": 0.5}),
    "sync with another key": entry(sync={"group": "g", "of": 1}),
    "unlabelled_from alone": entry(unlabelled_from=3),
    "class sets without a declaration": entry(labels={"fine": {"boundaries": [1]}}),
    "phases beside class sets": {"class_sets": SETS, "videos": {"a.mp4": {"boundaries": [1]}}},
    "unknown key in a class set": in_sets(fine={"bounds": [1]}),
    "two forms in a class set": in_sets(fine={"boundaries": [1], "phases": []}),
    "half a frame in a class set": in_sets(fine={"boundaries": [1.5]}),
    "split of a class set": in_sets(fine={"split": "none"}),
    "a list of class sets": {"class_sets": SETS, "videos": {"a.mp4": {"labels": ["fine"]}}},
}
# Rules on several values at once, on spelling and on JSON itself, which JSON Schema cannot express.
BEYOND = {
    "decreasing": entry(boundaries=[5, 3]),
    "too many boundaries": entry(boundaries=[1, 2, 3]),
    "phase out of range": entry(phases=[3]),
    "no such phase": entry(segments=[[0, 3, "w"]]),
    "swapped": entry(segments=[[3, 0, "x"]]),
    "swapped trim": entry(trim=[9, 3]),
    "overlapping": entry(segments=[[0, 5, "x"], [4, 9, "y"]]),
    "action without phases": entry(action="t", boundaries=[1]),
    "undeclared class set": in_sets(finer={"boundaries": [1]}),
    "misspelt key of the file": {"video": {}},
    "a whole number as a float": entry(boundaries=[3.0]),
    "no number": entry(unit="seconds", boundaries=[float("nan")]),
}


def accepted(content, path):
    path.write_text(json.dumps(content))
    try:
        read_labels(path)
    except LabelError:
        return False
    return True


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", GOOD)
def test_good_files(name, tmp_path):
    assert accepted(GOOD[name], tmp_path / "labels.json")
    VALIDATOR.validate(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_wrong_files(name, tmp_path):
    assert not accepted(BAD[name], tmp_path / "labels.json")
    assert not VALIDATOR.is_valid(BAD[name])


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_schema_cannot_express(name, tmp_path):
    assert not accepted(BEYOND[name], tmp_path / "labels.json")
    assert VALIDATOR.is_valid(BEYOND[name])


def examples():
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "training").rglob("*.md")]:
        for number, text in enumerate(re.findall(r"```json\n(.*?)```", path.read_text(), re.S)):
            if '"videos"' in text:
                yield pytest.param(text, id=f"{path.relative_to(ROOT)}, {number}")


@pytest.mark.parametrize("text", [*examples()])
def test_the_examples_of_the_documentation(text, tmp_path):
    content = json.loads(text)
    assert accepted(content, tmp_path / "labels.json")
    VALIDATOR.validate(content)


def test_all_keys_of_entries_are_in_the_schema():
    from training.data import label_entries

    assert {*SCHEMA["$defs"]["entry"]["properties"]} == {*label_entries.ENTRY_KEYS}
    assert {*SCHEMA["$defs"]["part"]["properties"]} == {*label_entries._PART_KEYS}
