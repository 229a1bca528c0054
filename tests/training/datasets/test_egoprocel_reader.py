"""EgoProceL: tasks, cameras, key-steps in seconds."""

import more_trees
import pytest

from training.datasets.egoprocel import READER
from training.support.command import UserError

BROWNIE = "CMU-MMAC/Brownie/S07_Brownie_Video/S07_Brownie_7150991-1431"


@pytest.fixture
def tree(tmp_path):
    return more_trees.build_egoprocel(tmp_path / "egoprocel")


def test_tasks_views_and_key_steps(tree):
    data_set = more_trees.read(READER, tree)
    steps = ["1 break egg", "3 add water"]
    assert data_set.classes == {
        "CMU-MMAC_Brownie": steps,
        "EGTEA_Gaze+_Pizza": steps,
        "EPIC-Tents": ["1 pole"],
        "MECCANO": steps,
    }
    segments = [[0.0, 0.2, 0], [0.2, 0.4, 1]]

    def entry(action, view, segments):
        part = {"action": action, "split": "train", "view": view}
        return {**part, "unit": "seconds", "segments": segments}

    assert {clip.name: clip.entry for clip in data_set.clips} == {
        f"{BROWNIE}.mp4": entry("CMU-MMAC_Brownie", "ego", segments),
        "CMU-MMAC/Brownie/S07_Brownie_Video/S07_Brownie_6510211-1103.avi": entry(
            "CMU-MMAC_Brownie", "back", segments
        ),
        "EGTEA_Gaze+/Pizza/OP01-R03-Pizza.mp4": entry("EGTEA_Gaze+_Pizza", "ego", segments),
        "EPIC-Tents/01.tent.090617.gopro.MP4": entry("EPIC-Tents", "ego", [[0.0, 0.4, 0]]),
        "MECCANO/0003.mp4": entry("MECCANO", "ego", segments),
    }
    assert not data_set.missing
    assert not data_set.unused
    assert not data_set.remarks


def test_names_of_one_step_and_rows_that_overlap(tree):
    table = tree / "annotations" / f"{BROWNIE}.csv"
    table.write_text("0.1,0.3,3 add  Water\n0.2,0.9,1. break egg\n0.1,0.12,2\n")
    data_set = more_trees.read(READER, tree)
    # The two names of key-step 3 are equally frequent; the first one of the tables is used.
    assert data_set.classes["CMU-MMAC_Brownie"] == ["1 break egg", "2", "3 add water"]
    found = {clip.name: clip.entry["segments"] for clip in data_set.clips}
    assert found[f"{BROWNIE}.mp4"] == [[0.12, 0.2, 2], [0.2, pytest.approx(0.48), 0]]
    assert data_set.remarks == {
        "key-steps of one number with several names": ["CMU-MMAC_Brownie 3"],
        "segments cut to the length of the video": [f"{BROWNIE}.mp4"],
        "segments overlap: the later one gets the frames of both": [f"{BROWNIE}.mp4"],
        "segments without a frame dropped": [f"{BROWNIE}.mp4"],
    }


def test_videos_in_other_folders_missing_and_unannotated(tree):
    videos = tree / "videos"
    (videos / "MECCANO/0003.mp4").rename(videos / "0003.mp4")
    (videos / f"{BROWNIE}.mp4").unlink()
    more_trees.place(videos / "backup/OP01-R03-Pizza.mp4")
    more_trees.place(videos / "pc_assembly/0003.mp4")
    more_trees.place(videos / "pc_assembly/Head_5.mp4")
    data_set = more_trees.read(READER, tree)
    names = {clip.name for clip in data_set.clips}
    assert "0003.mp4" in names
    assert len(names) == 4
    assert data_set.missing == {BROWNIE: "no such file"}
    assert "EGTEA_Gaze+/Pizza/OP01-R03-Pizza.mp4" in names
    assert data_set.unused == {
        "backup/OP01-R03-Pizza.mp4": "another file of the same name is used",
        "pc_assembly/0003.mp4": "another file of the same name is used",
        "pc_assembly/Head_5.mp4": "no annotation of this name",
    }


def test_wrong_rows_and_layouts(tree, tmp_path):
    table = tree / "annotations" / f"{BROWNIE}.csv"
    table.write_text("0,1,1 break egg\nstart,2,2 mix\n1,2,mix\n1,2\n")
    with pytest.raises(UserError, match=r"1431.csv:\n  line 2: .*\n  line 3: .*\n  line 4: "):
        more_trees.read(READER, tree)
    (tree / "videos").rename(tree / "clips")
    with pytest.raises(UserError, match=r"no videos in videos/; it contains annotations/, clips/"):
        more_trees.read(READER, tree)
