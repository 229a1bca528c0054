"""Penn Action: .mat files, key events, splits, and lengths that differ."""

import json
import math

import numpy as np
import pytest
import trees
from scipy.io import savemat

from training.datasets.penn_action import resampled
from training.labels import main


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on the tree: (exit status, videos of labels.json, what was printed)."""

    def command(*options: str, key_events: bool = True):
        source, out = tmp_path / "source", tmp_path / "out"
        if not source.exists():
            trees.build_penn_action(source, key_events)
        arguments = ["penn_action", str(source), "--out", str(out), "--overwrite", *options]
        status = main(arguments)
        printed = capsys.readouterr()
        path = out / "labels.json"
        return status, json.loads(path.read_text()) if path.exists() else None, printed

    return command


def test_key_events_become_phases(run):
    status, labels, printed = run()
    assert status == 0
    assert labels["classes"] == {
        "baseball_pitch": [f"phase {k}" for k in range(4)],
        "bowl": [f"phase {k}" for k in range(3)],
    }
    assert labels["videos"]["frames/0001"] == {
        "action": "baseball_pitch",
        "split": "train",
        "phases": [0] * 7 + [1] * 7 + [2] * 6,
        "fps": 25.0,
    }
    splits = {name: entry["split"] for name, entry in labels["videos"].items()}
    assert splits == {
        "frames/0001": "train",
        "frames/0002": "test",
        "frames/0003": "test",
        "frames/0004": "train",
    }
    assert "(2): 0003 (15 labels, 12 frames), 0004 (12 labels, 15 frames)" in printed.out
    assert "left out: strum_guitar has no key events" in printed.out
    assert "left out: has no key events; --keep-unlabelled keeps such videos (1): 0005" in (
        printed.out
    )


def test_lengths_that_differ_are_resolved_as_by_carls_script(run):
    """floor(j L / F) in CARL's script, for labels or for the frames that it keeps."""
    fifteen, twelve = [*range(15)], [*range(12)]
    assert resampled(fifteen, 12) == [fifteen[math.floor(j * 15 / 12)] for j in range(12)]
    more = resampled(twelve, 15)
    kept = [math.floor(j * 15 / 12) for j in range(12)]
    assert [more[k] for k in kept] == twelve
    assert all(more[k] == more[max(one for one in kept if one <= k)] for k in range(15))
    assert resampled([5, 7], 2) == [5, 7]
    _, labels, _ = run()
    assert labels["videos"]["frames/0003"]["phases"] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len(labels["videos"]["frames/0004"]["phases"]) == 15


def test_official_split_and_videos_without_key_events(run):
    _, labels, _ = run("--splits", "official", "--keep-unlabelled", "--fps", "30")
    splits = {name[-4:]: entry["split"] for name, entry in labels["videos"].items()}
    assert splits == {
        "0001": "train",
        "0002": "test",
        "0003": "train",
        "0004": "test",
        "0005": "train",
        "0006": "train",
    }
    assert labels["videos"]["frames/0006"] == {
        "action": "strum_guitar",
        "split": "train",
        "fps": 30.0,
    }


def test_without_key_events(run):
    status, labels, printed = run(key_events=False)
    assert (status, len(labels["videos"]), labels["classes"]) == (0, 6, {})
    assert "with phase labels: 0" in printed.out
    status, _, printed = run("--splits", "lav", key_events=False)
    assert status == 2
    assert "--splits lav needs LAV's labels" in printed.err


def test_key_events_elsewhere(run, tmp_path):
    run()
    source = tmp_path / "source"
    (tmp_path / "lav").mkdir()
    for split in ("train", "val"):
        (source / "labels" / split).rename(tmp_path / "lav" / split)
    _, labels, _ = run("--key-events", str(tmp_path / "lav"))
    assert len(labels["videos"]) == 4
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "no such folder"), ("empty", 'no folder "train" or "val"')):
        status, _, printed = run("--key-events", str(tmp_path / folder))
        assert status == 2
        assert message in printed.err


def test_missing_files_are_named(run, tmp_path):
    run()
    source = tmp_path / "source"
    (source / "labels/0001.mat").unlink()
    for picture in (source / "frames/0002").iterdir():
        picture.unlink()
    (source / "frames/0004").rename(source / "frames/0009")
    status, labels, printed = run()
    assert status == 3
    assert labels["videos"].keys() == {"frames/0003"}
    for line in (
        f"left out: no .mat file in {source / 'labels'} (2): 0001, 0009",
        f"missing: no pictures in this folder in {source / 'frames'} (1): 0002",
        f"missing: no such folder in {source / 'frames'} (1): 0004",
    ):
        assert line in printed.out
    trees.write_pictures(source / "more", 13)
    (source / "more/000013.jpg").rename(source / "frames/0003/000013.jpg")
    _, _, printed = run()
    assert "all pictures are used (1): 0003 (13 pictures, 12 frames)" in printed.out


def test_each_picture_keeps_the_label_of_its_number(run, tmp_path):
    run()
    frames = tmp_path / "source/frames"
    for number in (*range(1, 11), 20):  # the labels are 0 * 7, 1 * 7, 2 * 6
        (frames / f"0001/{number:06}.jpg").unlink()
    (frames / "0003/000005.jpg").unlink()  # 12 frames, 15 labels
    whole = resampled([0] * 5 + [1] * 5 + [2] * 5, 12)
    status, labels, printed = run()
    assert status == 0
    assert labels["videos"]["frames/0001"]["phases"] == [1] * 4 + [2] * 5
    assert labels["videos"]["frames/0003"]["phases"] == whole[:4] + whole[5:]
    assert (
        "remark: pictures are missing; each of the others has the label of its number (2): "
        "0001 (9 of 20), 0003 (11 of 12)"
    ) in printed.out
    assert "resampled as by CARL's script (2): 0003 (15 labels, 12 frames), 0004" in printed.out
    (frames / "0001/000012.jpg").rename(frames / "0001/000021.jpg")
    status, labels, printed = run()
    assert status == 3
    assert "frames/0001" not in labels["videos"]
    assert "missing: pictures are missing" in printed.out
    assert "(1): 0001 (9 of 20)" in printed.out
    (frames / "0001/000021.jpg").rename(frames / "0001/a12.jpg")
    assert run()[0] == 3


def test_numbers_of_phases_are_compared_with_those_of_carls_code(run, tmp_path):
    _, _, printed = run()
    assert "all are named (1): baseball_pitch (4 listed, 3 in the labels)" in printed.out
    assert "does not list" not in printed.out
    np.save(tmp_path / "source/labels/val/bowling/0003.npy", np.arange(12) * 8 // 12)
    status, labels, printed = run()
    assert (status, len(labels["classes"]["bowl"])) == (0, 8)
    assert (
        "remark: labels have phases that CARL's code does not list for the action; kept (1): "
        "0003 (bowl: 7, expected 0 to 2)"
    ) in printed.out


def test_a_lost_folder_of_key_events_is_named(run, tmp_path):
    _, _, printed = run()
    assert "no key events in this folder" not in printed.out
    labels = tmp_path / "source/labels"
    for split, missing in (("val", "test"), ("train", "train")):
        (labels / split).rename(tmp_path / split)
        _, _, printed = run()
        assert f'no video has the split "{missing}" (1): {labels / split}' in printed.out
        (tmp_path / split).rename(labels / split)


def test_all_damaged_files_are_named_at_once(run, tmp_path):
    run()
    labels = tmp_path / "source/labels"
    before = (tmp_path / "out/labels.json").read_text()
    (labels / "0001.mat").write_bytes((labels / "0001.mat").read_bytes()[:200])
    savemat(labels / "0002.mat", {"action": "bowl", "train": 0})
    (labels / "train/bowling/0004.npy").write_bytes(b"x")
    status, _, printed = run()
    assert status == 2
    assert printed.err.startswith(f"error: {tmp_path / 'source'}:\n")
    for name in ("0001.mat is not a readable", "0002.mat: train is 0", "0004.npy is not a"):
        assert name in printed.err
    assert (tmp_path / "out/labels.json").read_text() == before


def test_wrong_layouts_and_files(run, tmp_path):
    run()
    source = tmp_path / "source"
    mat, npy = source / "labels/0001.mat", source / "labels/val/bowling/0003.npy"
    good = mat.read_bytes()
    for write, message in (
        (lambda: savemat(mat, {"action": "bowl", "nframes": 3}), "0001.mat has no train"),
        (lambda: savemat(mat, {"action": "bowl", "train": 0}), "train is 0, expected 1"),
        (lambda: mat.write_bytes(good[:200]), "0001.mat is not a readable .mat file"),
    ):
        write()
        status, _, printed = run()
        assert status == 2
        assert message in printed.err
    mat.write_bytes(good)
    for value, message in (
        (np.array([0, 1.5]), "1.5 is no phase"),
        (np.array([0, -2]), "-2 is no phase"),
        (np.array([0, 1 << 40]), "1099511627776 is no phase"),
        (np.zeros((3, 2)), "float64 of shape (3, 2)"),
        (np.array([{}], dtype=object), "is not a readable .npy file"),
    ):
        np.save(npy, value, allow_pickle=True)
        status, _, printed = run()
        assert status == 2
        assert message in printed.err
    (source / "frames").rename(source / "frame")
    status, _, printed = run()
    assert status == 2
    assert f'{source}: no folder "frames"; it contains frame/, labels/. Expected:' in printed.err
    assert "SOURCE/frames/0001/000001.jpg" in printed.err
