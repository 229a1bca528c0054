"""Seconds, segments and class sets in labels.json: as frames of a video, and what is wrong."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from training.data.footage import begins_past_the_end, footage_of
from training.data.labels import LabelError, Labels, in_frames, phases_of, read_labels

CLASSES = {"s": ["x", "y", "z"]}


@dataclass
class Info:
    frames: int = 100
    fps: float = 25.0
    times: np.ndarray | None = None
    width: int = 64
    height: int = 48
    gaps: tuple = ()


def uneven():
    """Ten frames in the first second, then ten in 0.1 s; 18.2 frames per second on average."""
    times = np.concatenate([np.arange(10) / 10, 1 + np.arange(10) / 100])
    return Info(20, 20 / 1.1, times)


def read(path, entry, classes=CLASSES, **top):
    videos = {"a.mp4": {"action": "s", **entry}}
    path.write_text(json.dumps({"classes": classes, "videos": videos, **top}))
    return read_labels(path)


def phases(entry, info, damaged=()):
    labels = Labels({"": CLASSES}, {"a": {"action": "s", **entry}})
    return phases_of(None, labels, {"a": info}, damaged)[0][""]["a"].tolist()


@pytest.mark.parametrize("times", [None, np.arange(100) / 25])
@pytest.mark.parametrize(
    ("seconds", "frame"),
    [
        (0, 0),
        (2.4, 60),
        (2.40001, 60),
        (2.4001, 61),
        (2.39, 60),
        (1 / 3, 9),
        (3.96, 99),
        (3.97, 100),
    ],
)
def test_a_boundary_in_seconds(seconds, frame, times):
    """The first frame whose time is the boundary or later; 0.00004 s is a thousandth of a frame."""
    made = in_frames({"unit": "seconds", "boundaries": [seconds]}, Info(times=times))
    assert made == {"boundaries": [frame]}
    assert type(made["boundaries"][0]) is int


def test_times_of_a_variable_rate():
    entry = {"unit": "seconds", "boundaries": [0.45, 1.05], "trim": [0.1, 1.055], "remark": 1.5}
    made = in_frames(entry, uneven())
    assert made == {"boundaries": [5, 15], "trim": [1, 15], "remark": 1.5}
    assert in_frames(entry, Info(20, 20 / 1.1))["boundaries"] == [9, 20]
    assert phases(entry, uneven()) == [-1] + [0] * 4 + [1] * 10 + [2] + [-1] * 4


def test_all_times_of_an_entry():
    entry = {
        "unit": "seconds",
        "labels": {"fine": {"segments": [[0.4, 0.8, "x"]]}, "coarse": {"boundaries": [1]}},
        "unlabelled_from": 3.2,
        "trim": [0.41, 3.99],
        "sync": {"group": "g", "offset": -0.11},
    }
    assert in_frames(entry, Info()) == {
        "labels": {"fine": {"segments": [[10, 20, "x"]]}, "coarse": {"boundaries": [25]}},
        "unlabelled_from": 80,
        "trim": [11, 99],
        "sync": {"group": "g", "offset": -3},
    }
    assert entry["unlabelled_from"] == 3.2
    footage, cut = footage_of(entry, Info(), damaged=False)
    assert (footage.trim, footage.sync, cut) == ((11, 99), ("g", -3), False)
    assert footage.gaps == ((0, 11),)


@pytest.mark.parametrize("times", [None, np.arange(100) / 25])
@pytest.mark.parametrize(("end", "last"), [(3.91, 97), (3.92, 98), (3.95, 98), (3.96, 99)])
def test_the_last_frame_of_trim(end, last, times):
    entry = {"unit": "seconds", "trim": [0, end]}
    assert in_frames(entry, Info(times=times))["trim"] == [0, last]


def test_frames_stay_frames():
    entry = {"unit": "frames", "boundaries": [3, 700], "trim": [1, 2], "sync": {"group": "g"}}
    assert in_frames(entry, Info()) == {key: entry[key] for key in ("boundaries", "trim", "sync")}


def test_segments():
    """Half-open, in any order, by number or name; frames outside are unlabelled."""
    entry = {"segments": [[6, 8, 2], [2, 4, "x"], [4, 6, "y"]]}
    assert phases(entry, Info(10)) == [-1, -1, 0, 0, 1, 1, 2, 2, -1, -1]
    assert phases({**entry, "unlabelled_from": 5, "trim": [3, 9]}, Info(10)) == (
        [-1] * 3 + [0, 1] + [-1] * 5
    )
    timed = {"unit": "seconds", "segments": [[0.08, 0.16, 0], [0.16, 0.4, 1]]}
    assert phases(timed, Info(10)) == [-1, -1, 0, 0] + [1] * 6
    assert phases({"segments": []}, Info(3)) == [-1] * 3


def test_class_sets(tmp_path):
    path = tmp_path / "labels.json"
    videos = {
        "a.mp4": {
            "action": "s",
            "split": "train",
            "labels": {
                "coarse": {"boundaries": [2]},
                "fine": {"segments": [[1, 3, "q"]], "split": "val"},
            },
        },
        "b.mp4": {"action": "s", "trim": [0, 2], "labels": {"fine": {"phases": [0, 1, 2, 2]}}},
        "c.mp4": {"split": "test"},
    }
    sets = {"fine": {"s": ["p", "q", "r"]}, "coarse": {"s": ["x", "y"]}}
    path.write_text(json.dumps({"class_sets": sets, "videos": videos}))
    labels = read_labels(path)
    assert labels.class_sets == sets
    assert labels.classes == sets["fine"]
    found, changed = phases_of(path, labels, dict.fromkeys(videos, Info(4)))
    assert {name: {k: v.tolist() for k, v in one.items()} for name, one in found.items()} == {
        "fine": {"a.mp4": [-1, 1, 1, -1], "b.mp4": [0, 1, 2, -1]},
        "coarse": {"a.mp4": [0, 0, 1, 1]},
    }
    assert changed == []
    splits = [[labels.split_of(name, one) for name in videos] for one in ("fine", "coarse")]
    assert splits == [["val", "train", "test"], ["train", "train", "test"]]
    with pytest.raises(LabelError, match=r"a.mp4: labels of 'coarse': boundary 2 lies past"):
        phases_of(path, labels, {"a.mp4": Info(1)})


def test_the_unit_of_the_file(tmp_path):
    path = tmp_path / "labels.json"
    labels = read(path, {"boundaries": [1.2]}, unit="seconds")
    assert in_frames(labels.videos["a.mp4"], Info())["boundaries"] == [30]
    assert "unit" not in labels.content["videos"]["a.mp4"]
    labels = read(path, {"boundaries": [12], "unit": "frames"}, unit="seconds")
    assert in_frames(labels.videos["a.mp4"], Info())["boundaries"] == [12]
    assert read(path, {}, unit="frames").videos["a.mp4"] == {"action": "s"}
    assert read(path, {"split": "val"}).split_of("a.mp4", "") == "val"


WRONG = [
    ({"unit": "second"}, "a.mp4: unit is \"second\", did you mean 'seconds'"),
    ({"unit": "minutes"}, 'unit is "minutes"; known: frames, seconds'),
    ({"unit": "seconds", "boundaries": [-0.5]}, r"boundaries \[-0.5\] must be seconds from 0"),
    ({"unit": "seconds", "boundaries": [3.5, 2.5]}, r"boundaries \[3.5, 2.5\] must not decrease"),
    ({"unit": "seconds", "boundaries": [1, float("nan")]}, "of seconds, got NaN at place 1"),
    ({"unit": "seconds", "boundaries": ["1.5"]}, 'of seconds, got "1.5" at place 0'),
    ({"boundaries": [1.5]}, 'whole numbers, got 1.5 at place 0; for seconds, write "unit"'),
    ({"unit": "seconds", "phases": [0.5]}, "'phases' must be a list of whole numbers, got 0.5"),
    ({"unit": "seconds", "trim": [3.5, 1.5]}, r"trim \[3.5, 1.5\] must be .* in this order"),
    ({"trim": [0.5, 1.5]}, r'trim is \[0.5, 1.5\], .*\[12, 96\]; for seconds, write "unit"'),
    ({"unit": "seconds", "trim": [0.5, None]}, r"trim is \[0.5, null\], expected the times of"),
    (
        {"sync": {"group": "g", "offset": 0.5}},
        'offset of sync is 0.5, .*; for seconds, write "unit"',
    ),
    ({"unit": "seconds", "sync": {"group": "g", "offset": "1"}}, "offset of sync is .*seconds"),
    (
        {"unit": "seconds", "boundaries": [1], "unlabelled_from": -1},
        "unlabelled_from is -1, .*secon",
    ),
    ({"fps": "25"}, 'fps is "25", expected the frames per second of a folder'),
    ({"fps": float("inf")}, "fps is Infinity"),
    ({"segments": [[5, 2, "x"]]}, r"segment 0 is \[5, 2, \"x\"\]: its stop.* write \[2, 5, ...\]"),
    ({"segments": [[5, 5, "x"]]}, "must lie after its start; remove it"),
    ({"segments": [[-1, 5, "x"]]}, "segment 0 is .* but times count from 0"),
    ({"segments": [[0, 5, "x"], [4, 9, "y"]]}, r"\[0, 5, \"x\"\] and \[4, 9, \"y\"\] overlap"),
    ({"segments": [[4, 9, "y"], [0, 5, "x"]]}, r"\[0, 5, \"x\"\] and \[4, 9, \"y\"\] overlap"),
    ({"segments": [[0, 5, "yy"]]}, "action 's' has no phase 'yy', did you mean 'y'"),
    ({"segments": [[0, 5, 3]]}, "segment 0: phase 3 is out of range: the action 's' has 3 phases"),
    ({"segments": [[0, 5]]}, r"segment 0 is \[0, 5\], expected \[start, stop, phase\]"),
    ({"segments": [[0, 5, None]]}, "with the number or the name of a phase"),
    ({"segments": [[0, 2.5, "x"]]}, "whole frame numbers, got 2.5; for seconds, write"),
    ({"segments": {"x": [0, 5]}}, "'segments' must be a list such as"),
    ({"segments": [], "boundaries": []}, "has both 'boundaries' and 'segments'; remove one"),
    ({"labels": {"fine": {}}}, '"labels" needs "class_sets" at the top of the file'),
]


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_wrong_entries(entry, message, tmp_path):
    with pytest.raises(LabelError, match=message):
        read(tmp_path / "labels.json", entry)


SETS = {"gym99": {"s": ["x", "y"]}, "gym288": {"s": ["p"], "t": ["q"]}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"labels": {"gym9": {}}}, "a.mp4: labels of 'gym9': .*declare.*did you mean 'gym99'"),
        (
            {"labels": {"gym99": {"phases": [2]}}},
            "'gym99': phase 2 at frame 0 is out of range.*0 to 1",
        ),
        (
            {"labels": {"gym99": {"bounds": [2]}}},
            "'gym99': unknown key 'bounds', did you .*'boundaries'",
        ),
        (
            {"labels": {"gym99": {"split": "eval"}}},
            "'gym99': split is 'eval', expected 'train', 'val'",
        ),
        (
            {"labels": {"gym99": {}}, "boundaries": [1]},
            "both \"labels\" and 'boundaries'; move the",
        ),
        ({"labels": [1]}, r'"labels" is \[1\], expected an object such as {"gym99"'),
        (
            {"segments": [[0, 1, 0]]},
            r'beside the class sets of the file .*"labels": {"gym99": {"segm',
        ),
        (
            {"action": "t", "labels": {"gym99": {"boundaries": []}}},
            '"class_sets" does not list .* \'t\'; add "class_sets": {"gym99": {"t": .*}}$',
        ),
    ],
)
def test_wrong_class_sets(entry, message, tmp_path):
    content = {"class_sets": SETS, "videos": {"a.mp4": {"action": "s", **entry}}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"classes": {}, "class_sets": {"a": {}}}', 'has both "classes" and "class_sets"'),
        ('{"class_sets": {}}', '"class_sets" must map the name of each class set'),
        ('{"class_sets": {"a": {"s": "x"}}}', "\"class_sets\" 'a' must map each action"),
        ('{"class_sets": {"a": {}, "a": {}}}', "\"class_sets\": the key 'a' is there twice"),
        ('{"class_sets": {"a": {"s": ["x"], "s": ["y"]}}}', "'a': the key 's' is there twice"),
        ('{"class_set": {"a": {}}}', 'unknown key "class_set"; did you mean "class_sets"'),
        ('{"unit": "sec"}', 'unit is "sec"'),
        (
            '{"class_sets": {"a": {}}, "videos": {"v": {"labels": {"a": {}, "a": {}}}}}',
            "v: labels: the key 'a' is there twice",
        ),
        (
            '{"class_sets": {"a": {}},"videos": {"v": {"labels": {"a": {"split": 1,"split": 2}}}}}',
            "v: labels of 'a': the key 'split' is there twice",
        ),
    ],
)
def test_wrong_files(text, message, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / "labels.json")


def test_only_the_first_problems_are_listed(tmp_path):
    videos = {f"{k}.mp4": {"unit": "sec"} for k in range(25)}
    (tmp_path / "labels.json").write_text(json.dumps({"videos": videos}))
    with pytest.raises(LabelError) as caught:
        read_labels(tmp_path / "labels.json")
    assert str(caught.value).count("\n") == 21
    assert str(caught.value).endswith("and 5 more")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"boundaries": [4.09]},
            "boundary 4.09 s lies past the video's 100 frames, which end at 4 s",
        ),
        (
            {"segments": [[1, 4.5, 0]]},
            "the stop of segment .1, 4.5, 0., 4.5 s lies past .* end at 4 s",
        ),
        ({"segments": [[1.001, 1.002, 0]]}, ".* contains no frame: .* 25 at 1 s and 26 at 1.04 s"),
        ({"boundaries": [1], "unlabelled_from": 5}, "unlabelled_from 5 s lies past"),
    ],
)
def test_times_past_the_end(entry, message):
    """The end may be exceeded by one frame, as annotations round durations."""
    with pytest.raises(LabelError, match=f"a: {message}"):
        phases({"unit": "seconds", **entry}, Info())


def test_a_phase_between_two_frames():
    """As a segment without a frame; equal numbers mean a phase that the video skips."""
    times = np.arange(40) / 10
    entry = {"unit": "seconds", "boundaries": [0.31, 0.33]}
    message = (
        r"a: phase 1 \(y\) has no frame: it begins at 0.31 s and ends at 0.33 s, and the nearest "
        "frames are 3 at 0.3 s and 4 at 0.4 s; move a boundary, or write both as the same number"
    )
    for info in (Info(40, 10.0), Info(40, 10.0, times)):
        with pytest.raises(LabelError, match=message):
            phases(entry, info)
        with pytest.raises(ValueError, match="phase 1 has no frame"):
            in_frames(entry, info)
        skipped = {**entry, "boundaries": [0.31, 0.31]}
        assert phases(skipped, info) == [0] * 4 + [2] * 36
        assert in_frames(skipped, info) == {"boundaries": [4, 4]}
        assert phases({**entry, "boundaries": [0.3, 0.1 + 0.2]}, info)[2:4] == [0, 2]
        assert phases({**entry, "boundaries": [4.0, 4.05]}, info) == [0] * 40
    assert phases({"boundaries": [4, 4]}, Info(40)) == [0] * 4 + [2] * 36
    with pytest.raises(ValueError, match="phase 1 has no frame"):  # of a damaged video too
        footage_of(entry, Info(40, 10.0), damaged=True)


def test_all_problems_of_a_video_are_listed(tmp_path):
    """Those of the entry together, and then those of its frames, with those of other videos."""
    entry = {"action": 3, "unit": "minutes", "split": "eval", "view": "", "fps": 0}
    with pytest.raises(LabelError) as caught:
        read(tmp_path / "labels.json", entry)
    for word in ("action is 3", "unit is", "split is", "view is", "fps is"):
        assert word in str(caught.value)
    segments = [[0, 5, "q"], [1, 2], [3, 0.5, "x"], [9, "a", "y"]]
    with pytest.raises(LabelError) as caught:
        read(tmp_path / "labels.json", {"segments": segments, "boundaries": [5, 3, 8]})
    for word in ("segment 1 is", "segment 2 is", "segment 3 is", "has both", "decrease", "make 4"):
        assert word in str(caught.value)
    with pytest.raises(LabelError) as caught:
        read(tmp_path / "labels.json", {"action": "t", "segments": [[0, 5, "q"], [4, 3, "x"]]})
    assert "phases of the action 't'" in str(caught.value)
    assert "must lie after its start" in str(caught.value)
    with pytest.raises(LabelError) as caught:
        read(tmp_path / "labels.json", {"segments": [[0, 5, "q"], [4, 9, "x"]]})
    assert "no phase 'q'" in str(caught.value)
    assert "overlap" in str(caught.value)

    videos = {
        "a": {"action": "s", "unit": "seconds", "boundaries": [4.5, 5.5], "unlabelled_from": 9},
        "b": {
            "action": "s",
            "unit": "seconds",
            "segments": [[1.001, 1.002, 0], [2.001, 2.002, 0], [3, 6, 1]],
        },
    }
    for entry in videos.values():  # an error here would stop `prepare` before the phases
        assert footage_of(entry, Info(), damaged=False)[0].gaps == ()
    with pytest.raises(LabelError) as caught:
        phases_of(None, Labels({"": CLASSES}, videos), {"a": Info(), "b": Info()})
    a, b = str(caught.value).splitlines()[1:]
    for word in ("boundary 4.5 s", "boundary 5.5 s", "unlabelled_from 9 s"):
        assert word in a
    for word in ("[1.001, 1.002, 0] contains", "[2.001, 2.002, 0] contains", "6, 1], 6 s lies"):
        assert word in b
    many = [[k + 0.001, k + 0.002, 0] for k in range(4)] * 2
    with pytest.raises(LabelError, match=r"and 3 more like these$"):
        phases({"unit": "seconds", "segments": many}, Info())


def test_times_just_past_the_end():
    assert phases({"unit": "seconds", "boundaries": [4.04]}, Info()) == [0] * 100
    assert phases({"unit": "seconds", "segments": [[3.9, 4.04, 1]]}, Info()) == [-1] * 98 + [1] * 2
    footage, _ = footage_of({"unit": "seconds", "trim": [3.9, 4.04]}, Info(), damaged=False)
    assert footage.trim == (98, 99)


@pytest.mark.parametrize("end", [4.2, 1e300])
def test_labels_of_a_damaged_video_are_cut(end):
    entry = {"unit": "seconds", "segments": [[1, end, 2]], "trim": [0, end]}
    labels = Labels({"": CLASSES}, {"a": {"action": "s", **entry}})
    found, changed = phases_of(None, labels, {"a": Info()}, ["a"])
    assert found[""]["a"].tolist() == [-1] * 25 + [2] * 75
    assert changed == ["a"]
    footage, cut = footage_of(entry, Info(gaps=((3, 5),)), damaged=True)
    assert (footage.trim, footage.gaps, cut) == ((0, 99), ((3, 5),), True)
    with pytest.raises(
        ValueError, match=r"trim .* lies past the end .* 100 frames and ends at 4 s"
    ):
        footage_of(entry, Info(), damaged=False)


def test_no_usable_frame():
    entry = {"unit": "seconds", "trim": [4.2, 5]}
    assert begins_past_the_end(entry, Info(), True) == (
        "no usable frame: trim begins at 4.2 s, but only 100 frames can be decoded"
    )
    assert begins_past_the_end({"unit": "seconds", "trim": [3.9, 5]}, Info(), True) == ""
    assert begins_past_the_end(entry, Info(), False) == ""
    with pytest.raises(ValueError, match=r"trim .* contains no frame: .* 0 at 0 s and 1 at 0.04 s"):
        in_frames({"unit": "seconds", "trim": [0.01, 0.02]}, Info())


def test_gaps_join_the_frames_outside_trim():
    info = Info(gaps=((5, 7), (9, 12), (20, 25), (40, 60)))
    trimmed = footage_of({"trim": [6, 45]}, info, damaged=True)[0].gaps
    assert trimmed == ((0, 7), (9, 12), (20, 25), (40, 100))
    assert footage_of({"trim": [0, 99]}, info, damaged=True)[0].gaps == info.gaps
    assert footage_of({"trim": [12, 19]}, info, damaged=True)[0].gaps == ((0, 12), (20, 100))
