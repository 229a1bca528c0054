"""IKEA ASM: furniture, cameras, videos and pictures, segments whose last frame is included."""

import json
import shutil

import more_trees
import pytest

from training.datasets.ikea_asm import READER
from training.support.command import UserError

KALLAX = "Kallax_Shelf_Drawer/0001_black_table_02_01_2019_08_16_14_00"
PICTURES = "Kallax_Shelf_Drawer/0002_white_floor_05_04_2019_08_19_17_47"
TABLE = "Lack_Side_Table/0003_oak_floor_01_01_2019_08_20_10_05"
SEGMENTS = [[3, 8, "pick up side panel"], [10, 12, "other"]]


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_ikea_asm(tmp_path / "ikea")


def entries(data_set):
    return {clip.name: clip.entry for clip in data_set.clips}


def entry(split, view="dev3", action="Kallax_Shelf_Drawer"):
    return {"action": action, "split": split, "view": view, "segments": SEGMENTS}


def test_kallax_drawers_from_above_by_default(tree):
    data_set = more_trees.read(READER, tree)
    video, pictures = f"{KALLAX}/dev3.avi", f"{PICTURES}/dev3"
    assert entries(data_set) == {video: entry("train"), pictures: entry("test")}
    sources = {clip.name: (clip.source, clip.fps) for clip in data_set.clips}
    assert sources == {
        video: (tree / KALLAX / "dev3" / "images" / "scan_video.avi", None),
        pictures: (tree / PICTURES / "dev3" / "images", 24),
    }
    assert data_set.classes == {"Kallax_Shelf_Drawer": ["other", "pick up side panel"]}
    assert not data_set.missing
    assert not data_set.unused
    assert not data_set.remarks


def test_other_furniture_and_cameras(tree):
    data_set = more_trees.read(READER, tree, "--furniture", "all", "--device", "dev1", "dev3")
    assert entries(data_set) == {
        f"{KALLAX}/dev1.avi": entry("train", "dev1"),
        f"{KALLAX}/dev3.avi": entry("train"),
        f"{PICTURES}/dev3": entry("test"),
        f"{TABLE}/dev3.avi": entry("train", action="Lack_Side_Table"),
    }
    assert data_set.missing == {
        f"{PICTURES}/dev1/images": "no scan_video.avi and no pictures",
        f"{TABLE}/dev1/images": "no scan_video.avi and no pictures",
    }


def test_na_can_be_a_phase(tree):
    data_set = more_trees.read(READER, tree, "--na", "phase")
    assert data_set.classes == {"Kallax_Shelf_Drawer": ["NA", "other", "pick up side panel"]}
    for found in entries(data_set).values():
        assert found["segments"] == [
            [0, 3, "NA"],
            [3, 8, "pick up side panel"],
            [8, 10, "NA"],
            [10, 12, "other"],
        ]


def test_segments_past_the_end_unlisted_and_unannotated_scans(tree):
    path = tree / "annotations/action_annotations/gt_segments.json"
    content = json.loads(path.read_text())
    longer = [{"label": "other", "segment": [10, 19]}]
    content["database"][KALLAX]["annotation"] = longer
    content["database"][PICTURES]["annotation"] = longer
    content["database"]["Kallax_Shelf_Drawer/0009"] = {"annotation": []}
    path.write_text(json.dumps(content))
    with open(tree / "indexing_files/test_cross_env.txt", "a") as file:
        file.write("Kallax_Shelf_Drawer/0008\n")
    data_set = more_trees.read(READER, tree)
    for found in entries(data_set).values():
        assert found["segments"] == [[10, 12, "other"]]
    (names,) = data_set.remarks.values()
    assert names == [f"{KALLAX}/dev3", f"{PICTURES}/dev3"]
    assert data_set.missing == {"Kallax_Shelf_Drawer/0008": "not in gt_segments.json"}
    assert list(data_set.unused) == ["Kallax_Shelf_Drawer/0009"]


def test_wrong_annotations_and_layouts(tree):
    path = tree / "annotations/action_annotations/gt_segments.json"
    content = json.loads(path.read_text())
    content["database"][KALLAX]["annotation"][0]["segment"] = [0, 2.5]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf'{KALLAX}: expected "segment": \[first frame'):
        more_trees.read(READER, tree)
    (tree / "indexing_files/test_cross_env.txt").write_text(f"{KALLAX}\n")
    del content["database"][KALLAX]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"line 1: .* is also in train_cross_env.txt"):
        more_trees.read(READER, tree)
    shutil.rmtree(tree / "annotations")
    with pytest.raises(UserError, match=r"no gt_segments.json; it contains indexing_files/"):
        more_trees.read(READER, tree)
