"""Segments that overlap, exceed their video or are too short."""

import more_trees
import pytest

from training.datasets.dataset import DataSet
from training.datasets.segments import Length, lengths_of, usable_segments

OVERLAP = "segments overlap: the later one gets the frames of both"
CUT = "segments cut to the length of the video"
SHORT = "segments without a frame dropped"
VIDEO = Length(100, 25.0)  # 4 seconds


def made(segments, length=VIDEO, seconds=False):
    data_set = DataSet()
    usable = usable_segments(data_set, "a", segments, length, seconds=seconds)
    return usable, set(data_set.remarks)


@pytest.mark.parametrize(
    ("segments", "expected", "remarks"),
    [
        ([(0, 5, "a"), (5, 9, "b")], [[0, 5, "a"], [5, 9, "b"]], set()),
        ([(5, 9, "b"), (0, 5, "a")], [[0, 5, "a"], [5, 9, "b"]], set()),
        ([(0, 7, "a"), (5, 9, "b")], [[0, 5, "a"], [5, 9, "b"]], {OVERLAP}),
        ([(5, 9, "b"), (0, 7, "a")], [[0, 7, "a"], [7, 9, "b"]], {OVERLAP}),
        ([(0, 9, "a"), (3, 5, "b")], [[0, 3, "a"], [3, 5, "b"], [5, 9, "a"]], {OVERLAP}),
        ([(3, 5, "b"), (0, 9, "a")], [[0, 9, "a"]], {OVERLAP}),
        ([(0, 7, "a"), (5, 9, "a")], [[0, 5, "a"], [5, 9, "a"]], set()),
        ([(90, 102, "a")], [[90, 100, "a"]], {CUT}),
        ([(90, 101, "a")], [[90, 100, "a"]], set()),
        ([(-3, 4, "a")], [[0, 4, "a"]], {CUT}),
        ([(100, 104, "a"), (3, 3, "b")], [], {CUT, SHORT}),
    ],
)
def test_frames(segments, expected, remarks):
    assert made(segments) == (expected, remarks)


def test_seconds_are_cut_and_need_a_frame():
    frame = (0.08, 0.12, "b")  # a frame lasts 0.04 s; the difference is less by rounding
    assert frame[1] - frame[0] < 0.04
    segments = [(0, 0.08, "a"), frame, (1.04, 1.07, "c"), (3.5, 4.2, "d"), (3.99, 4.2, "e")]
    usable, remarks = made(segments, seconds=True)
    assert usable == [[0, 0.08, "a"], [*frame], [3.5, 3.99, "d"]]
    assert remarks == {CUT, SHORT, OVERLAP}


def test_an_unknown_length_cuts_nothing():
    assert made([(3, 9e9, "a")], length=None) == ([[3, 9e9, "a"]], set())


def test_lengths_are_those_of_the_files(tmp_path):
    files = {f"a.{ending}": tmp_path / f"a.{ending}" for ending in more_trees.CODECS}
    for path in files.values():
        more_trees.place(path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = lengths_of(files | {"broken.mp4": tmp_path / "broken.mp4"}, "test")
    assert found.keys() == files.keys()
    for length in found.values():
        assert (length.frames, length.fps) == (12, pytest.approx(25, rel=0.05))
