"""Events transferred by DTW: the frame, its source, and which results are doubtful."""

import json
from dataclasses import replace

import numpy as np
import pytest

from training.data.index import Index, VideoRecord
from training.data.labels import read_labels
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.propagation import (
    LabelsFile,
    Proposal,
    combine,
    errors_of,
    events_of,
    find_clip,
    propose,
)
from training.support.command import UserError

NAMES = ("up", "top", "down")


def record(name="a.mp4", frames=20, boundaries=None, **others) -> VideoRecord:
    phases = None
    if boundaries is not None:
        phases = np.searchsorted(boundaries, np.arange(frames), side="right")
    return VideoRecord(name, f"/clips/{name}", frames, 10.0, 8, 8, phases=phases, **others)


def clip(states, name="a.mp4", gaps=()) -> EmbeddedVideo:
    """A video whose embeddings turn with the state: 0 to 1 is a quarter of a circle."""
    angle = np.asarray(states) * np.pi / 2
    embeddings = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    sound = np.ones(len(states), dtype=bool)
    for first, stop in gaps:
        sound[first:stop] = False
    return EmbeddedVideo(record(name, len(states), gaps=gaps), embeddings[sound])


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        ([3, 7, 12], [3, 7, 12]),
        ([0, 7, 12], [None, 7, 12]),  # begins within phase 1
        ([3, 7, 20], [3, 7, None]),  # never reaches phase 3
        ([3, 7], [3, 7, None]),
        ([3, 3, 12], [3, 3, 12]),  # phase 1 is empty
    ],
)
def test_events_are_where_phases_begin(boundaries, expected):
    assert events_of(record(boundaries=boundaries), 3) == expected


def test_events_need_labelled_frames_before_them():
    video = record(boundaries=[3, 7, 12])
    video.phases[:5] = -1
    video.phases[15:] = -1
    assert events_of(video, 3) == [None, 7, 12]
    assert events_of(record(), 3) == [None] * 3
    video.phases[10] = 0
    with pytest.raises(UserError, match=r"a\.mp4: its phases go backwards at frame 10"):
        events_of(video, 3)


def test_events_follow_the_path():
    """The target shows the same states, each for twice as long, after a longer wait."""
    source = clip([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    target = clip([0] * 7 + [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1], "b.mp4")
    found = propose(source, [3, 5, None], target)
    assert found.frames == [7, 11, None]  # the first of two equal frames: (7 + 8) // 2
    assert not any(found.outside)
    assert found.similarity == pytest.approx(1)


def test_frames_are_numbers_in_the_video_where_some_are_not_sound():
    source = clip([0, 0, 0, 0.25, 0.5, 0.75, 1], gaps=((1, 3),))
    target = clip([9, 9, 0, 0.25, 0.5, 0.75, 1], "b.mp4", gaps=((0, 2),))
    assert propose(source, [2, 4, 5], target).frames == [3, 4, 5]  # 2 is not sound, so 3


def test_open_ends_leave_out_what_the_target_does_not_show():
    source = clip([0, 0.2, 0.4, 0.6, 0.8, 1])
    target = clip([0.4, 0.6, 0.8, -1, -1.2, -1.4], "b.mp4")
    found = propose(source, [1, 3, 5], target, opened=True)
    assert found.frames == [0, 1, 2]
    assert found.outside == [True, False, True]
    carried = combine(target.record, NAMES, [found])
    assert carried.doubts == [
        "up is outside the part that the clips share",
        "down is outside the part that the clips share",
    ]


def proposal(*frames, outside=(False,) * 3, similarity=0.5):
    return Proposal(frames, outside, similarity)


def test_several_sources_give_the_median_and_how_far_they_differ():
    found = combine(record(), NAMES, [proposal(2, 5, 9), proposal(3, 9, 9), proposal(4, 6, 9)])
    assert (found.boundaries, found.spread, found.doubts) == ([3, 6, 9], [2, 4, 0], [])
    two = combine(record(), NAMES, [proposal(2, 5, 9), proposal(3, 6, 12)])
    assert two.boundaries == [2, 5, 10]


def test_an_event_within_a_path_counts_more_than_one_outside():
    outside = proposal(1, 5, 9, outside=(True, False, False))
    assert combine(record(), NAMES, [outside, proposal(4, 6, 9)]).boundaries == [4, 5, 9]
    assert combine(record(), NAMES, [outside]).boundaries == [1, 5, 9]


def test_events_that_no_source_shows_lie_at_the_ends():
    found = combine(record(), NAMES, [proposal(None, 5, None)])
    assert found.boundaries == [0, 5, 20]
    assert found.doubts == ["up is in no source", "down is in no source"]
    assert found.urgency < combine(record(), NAMES, [proposal(1, 5, 9)]).urgency


def test_boundaries_do_not_decrease():
    """Medians of events from different sources may be out of order."""
    found = combine(record(), NAMES, [proposal(12, 13, None), proposal(None, None, 9)])
    assert found.boundaries == [12, 13, 13]
    assert found.doubts == ["down was found before the event that precedes it"]
    between = combine(record(), NAMES, [proposal(4, None, None), proposal(None, None, 9)])
    assert between.boundaries == [4, 4, 9]


def test_errors_are_in_frames_and_seconds():
    labelled = record(boundaries=[3, 7, 20])
    carried = {"a.mp4": combine(labelled, NAMES, [proposal(5, 7, 9)])}
    assert errors_of([labelled], carried, 0) == [(2, 0.2)]
    assert errors_of([labelled], carried, 1) == [(0, 0.0)]
    times = np.append(np.arange(19) / 10, 5.0)  # the last frame comes late
    uneven = replace(labelled, times=times)
    late = {"a.mp4": combine(uneven, NAMES, [proposal(5, 19, 20)])}
    assert errors_of([uneven], late, 1) == [(12, pytest.approx(5 - 0.7))]
    assert errors_of([labelled], carried, 2) == []  # its label says that the event is never reached
    unseen = {"a.mp4": combine(labelled, NAMES, [proposal(None, 7, 9)])}
    assert errors_of([labelled], unseen, 0) == []  # no source shows the event


def test_clips_are_found_by_name_and_path(tmp_path):
    file = tmp_path / "swing_1.mp4"
    index = Index(tmp_path, [replace(record("swing_1.mp4"), path=str(file))])
    assert find_clip(index, "swing_1.mp4") is find_clip(index, str(file)) is index.videos[0]
    with pytest.raises(UserError, match=r"swing_2\.mp4 is not among .* did you mean swing_1\.mp4"):
        find_clip(index, "swing_2.mp4")


def test_labels_are_kept_and_those_carried_over_are_added(tmp_path):
    content = {
        "about": "mine",
        "classes": {"swing": ["still", *NAMES]},
        "videos": {
            "a.mp4": {"action": "swing", "boundaries": [3, 7, 12]},
            "cafe\u0301.mp4": {"split": "test", "view": "left", "remark": "dark"},
        },
    }
    (tmp_path / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    names = ("a.mp4", "caf\xe9.mp4", "new.mp4")
    index = Index(tmp_path, [record(name) for name in names])
    labels = LabelsFile.read(tmp_path / "labels.json", index)
    assert [labels.has_action(video) for video in index.videos] == [True, False, False]
    carried = {name: combine(record(name), NAMES, [proposal(1, 2, 3)]) for name in names[1:]}
    labels.write(tmp_path / "out.json", carried, "swing", ["a.mp4"])
    written = read_labels(tmp_path / "out.json").content
    remark = "carried over from a.mp4: to be checked"
    new = {"action": "swing", "boundaries": [1, 2, 3], "remark": remark}
    old = {"split": "test", "view": "left", "remark": f"dark; {remark}"}
    assert written == content | {
        "videos": {
            "a.mp4": content["videos"]["a.mp4"],
            "cafe\u0301.mp4": new | old,
            "new.mp4": new,
        }
    }
    lines = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert sum('"boundaries"' in line for line in lines) == 3  # one line each


def test_events_are_added_in_frames_to_labels_in_seconds(tmp_path):
    """The videos have 20 frames, 10 in a second."""
    content = {
        "unit": "seconds",
        "classes": {"swing": ["still", *NAMES]},
        "videos": {
            "a.mp4": {"action": "swing", "boundaries": [0.3, 0.7, 1.2]},
            "b.mp4": {"action": "swing", "trim": [0.2, 1.5], "sync": {"group": "g", "offset": 0.5}},
        },
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    index = Index(tmp_path, [record(name) for name in ("a.mp4", "b.mp4", "new.mp4")])
    labels = LabelsFile.read(tmp_path / "labels.json", index)
    carried = {n: combine(record(n), NAMES, [proposal(1, 2, 3)]) for n in ("b.mp4", "new.mp4")}
    labels.write(tmp_path / "out.json", carried, "swing", ["a.mp4"])
    videos = read_labels(tmp_path / "out.json").content["videos"]
    assert videos["a.mp4"] == content["videos"]["a.mp4"]
    new = {"unit": "frames", "action": "swing", "boundaries": [1, 2, 3]}
    new["remark"] = "carried over from a.mp4: to be checked"
    assert videos["b.mp4"] == new | {"trim": [2, 15], "sync": {"group": "g", "offset": 5}}
    assert videos["new.mp4"] == new


def test_events_are_added_to_one_class_set(tmp_path):
    coarse = {"boundaries": []}
    content = {
        "class_sets": {"fine": {"swing": ["still", *NAMES]}, "coarse": {"swing": ["all"]}},
        "videos": {
            "a.mp4": {"action": "swing", "labels": {"fine": {"boundaries": [3, 7, 12]}}},
            "b.mp4": {"action": "swing", "labels": {"coarse": coarse, "fine": {"split": "val"}}},
        },
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    records = [record(name) for name in ("a.mp4", "b.mp4")]
    index = Index(tmp_path, records, class_set="fine")
    labels = LabelsFile.read(tmp_path / "labels.json", index)
    carried = {"b.mp4": combine(record("b.mp4"), NAMES, [proposal(1, 2, 3)])}
    labels.write(tmp_path / "out.json", carried, "swing", ["a.mp4"])
    written = read_labels(tmp_path / "out.json").content
    fine = {"split": "val", "boundaries": [1, 2, 3]}
    assert written["videos"]["b.mp4"]["labels"] == {"coarse": coarse, "fine": fine}
    assert written["videos"]["a.mp4"] == content["videos"]["a.mp4"]
    assert written["class_sets"] == content["class_sets"]

    (tmp_path / "labels.json").write_text(json.dumps({"videos": {}}))
    with pytest.raises(UserError, match="does not declare the class set 'fine' of the index"):
        LabelsFile.read(tmp_path / "labels.json", index)
