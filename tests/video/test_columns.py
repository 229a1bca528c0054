"""Items of a lazy sequence of videos: equal to those of a list, and nothing walks the sequence."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("av")

from benchmarks.many_videos import ManyVideos
from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    SynchronisedViews,
    TwoViews,
    VideoError,
    VideoPairs,
)
from fastseq.video.columns import column, having, numbered, special, take
from fastseq.video.engines import choose

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)
MAKE = {
    "views": lambda videos: TwoViews(videos, 6, PLAIN),
    "pairs": lambda videos: VideoPairs(videos, 6, PLAIN, sampling="segment"),
    "tuples": lambda videos: SegmentTuples(videos, PLAIN),
    "synchronised": lambda videos: SynchronisedViews(videos, 6, PLAIN),
}


def video(number, frames=40, action="all", **more):
    known = {"fps": 25.0, "width": 48, "height": 36}
    return SimpleNamespace(
        id=f"v{number}", path=f"v{number}.mp4", frames=frames, action=action, **known | more
    )


class Lazy:
    """A list of videos that counts how many are made, and does not iterate."""

    def __init__(self, videos):
        self.videos, self.made = videos, 0

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, position):
        assert position < len(self.videos)
        self.made += 1
        return self.videos[position]

    def __iter__(self):
        raise AssertionError("the sequence is walked")

    def column(self, name):
        if name != "special":
            return column(self.videos, name)
        found = [
            any(map(one.__dict__.get, ("gaps", "crop", "sync", "note"))) for one in self.videos
        ]
        return np.array(found, dtype=bool)

    def take(self, positions):
        return Lazy(take(self.videos, positions))


def mixed_videos():
    """90 videos of actions a to e and three without a partner, some with gaps, crops and a sync."""
    made = [video(k, 20 + k % 7, action="abcde"[k % 5]) for k in range(90)]
    made[3].gaps = ((0, 5), (9, 11))
    made[7].crop = (4, 0, 24, 36)
    made[11].gaps = ((0, made[11].frames),)  # no sound frame
    made[12].gaps = ((2, made[12].frames),)  # too short for tuples
    for k, offset in ((20, 0), (21, 3), (22, -4), (40, 0), (41, 1)):
        made[k].sync = ("one" if k < 40 else "two", offset)
    made += [video(90, action="x"), video(91, action="y"), video(92, action="z")]
    return made


def same(one, two):
    return one.id == two.id and all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("steps", "valid", "num_frames", "fps", "times")
    )


@pytest.mark.parametrize("kind", MAKE)
def test_items_of_a_lazy_sequence_are_those_of_a_list(kind):
    listed = MAKE[kind](mixed_videos())
    lazy = MAKE[kind](Lazy(mixed_videos()))
    assert isinstance(listed.videos, list)
    assert isinstance(lazy.videos, Lazy)
    assert lazy.left_out == listed.left_out
    assert len(lazy) == len(listed)
    bad = {"v5.mp4", "v10.mp4", "v20.mp4", "v0.mp4"}
    for epoch in range(3):
        for index in range(len(listed)):
            for out in ((), bad):
                one, two = (items.item(2, epoch, index, out) for items in (listed, lazy))
                assert same(one, two)
                assert not any(reading.path in out for reading in two.readings)
    states = [ClipLoader(items, 2, engine=PyAVEngine(16)).state_dict() for items in (listed, lazy)]
    assert states[0] == states[1]


def test_partners_are_uniform_over_the_other_videos_of_the_action():
    """The draw of every pair, against the list of candidates that it stands for."""
    videos = mixed_videos()
    items = MAKE["pairs"](videos)
    bad = {"v5.mp4", "v10.mp4", "v16.mp4", "v85.mp4", "v92.mp4"}
    for index in range(len(items)):
        first = items.videos[index]
        if first.path in bad:
            continue
        others = [
            other
            for place, other in enumerate(items.videos)
            if other.action == first.action and place != index and other.path not in bad
        ]
        drawn = np.random.default_rng([2, 0, index]).integers(len(others))
        assert items.item(2, 0, index, bad).id == f"{first.id} with {others[drawn].id}"
    everyone = {f"v{k}.mp4" for k in range(0, 90, 5)}
    assert items.item(2, 0, 0, everyone - {"v0.mp4"}).id.startswith("v1 ")  # no partner is left


@pytest.mark.parametrize("kind", ["views", "pairs", "tuples"])
def test_many_videos_are_never_walked(kind):
    videos = ManyVideos(np.arange(5000))
    items = MAKE[kind](videos)
    assert items.videos is videos
    assert videos.made == 1  # the one that is checked
    loader = ClipLoader(items, 8, engine=PyAVEngine(16))
    loader.items_of(0)
    assert videos.made == 1 + (16 if kind == "pairs" else 8)
    state = loader.state_dict()
    assert videos.made == 1 + (16 if kind == "pairs" else 8)
    with pytest.warns(RuntimeWarning, match=r"left out 7.mp4: broken \(1 of 5000 videos\)"):
        loader.set_aside(VideoError("/videos/7.mp4", "broken"))
    with pytest.warns(RuntimeWarning, match=r"left out 9.mp4: cut off \(2 of 5000 videos\)"):
        loader.set_aside(VideoError("/videos/9.mp4", "cut off"))
    assert loader.state_dict() == state | {"bad": {"7.mp4": "broken", "9.mp4": "cut off"}}
    again = ClipLoader(items, 8, engine=PyAVEngine(16))
    again.load_state_dict(loader.state_dict())
    assert again.bad == {"/videos/7.mp4": "broken", "/videos/9.mp4": "cut off"}
    assert items.item(0, 0, 7, again.bad.keys()).readings[0].path == "/videos/8.mp4"
    assert items.item(0, 0, 9, again.bad.keys()).readings[0].path == "/videos/10.mp4"
    assert videos.made < 60


def test_columns_are_read_when_they_are_needed(monkeypatch):
    videos = ManyVideos(np.arange(500))
    looked = []
    monkeypatch.setattr(
        ManyVideos,
        "column",
        lambda self, name, real=ManyVideos.column: looked.append(name) or real(self, name),
    )
    items = MAKE["views"](videos)
    assert looked == ["sound"]  # no names, as every video is used
    bad = {"/videos/3.mp4": "broken"}
    for index in range(5):
        assert items.item(0, 0, index, bad.keys()).id == f"{index + (index == 3)}.mp4"
    bad["/videos/4.mp4"] = "broken too"  # the loader's dict grows
    assert items.item(0, 0, 3, bad.keys()).id == "5.mp4"
    assert looked == ["sound", "path", "path"]


def test_items_with_lazy_videos_are_pickled_as_arrays():
    items = MAKE["pairs"](ManyVideos(np.arange(20_000)))
    loader = ClipLoader(items, 8, engine=PyAVEngine(16))
    loader.items_of(0)
    content = pickle.dumps(loader.readings)
    assert len(content) < 60 * len(items)  # bytes; a pickled video takes over 100
    paths = [[r.path for r in readings(5)] for readings in (loader.readings, pickle.loads(content))]
    assert paths[0] == paths[1]


def test_checksums_of_earlier_versions():
    """Of these lists, computed before videos could be lazy: their checkpoints resume."""
    videos = [
        video("a", 30),
        video("b", 40, gaps=((0, 2), (7, 12))),
        video("c", 50, crop=(1, 0, 24, 36)),
        video("d", 60, sync=("trial", 3), gaps=((59, 60),)),
    ]
    for count, expected in ((4, 2307052954), (2, 467570423)):
        for made in (videos[:count], Lazy(videos[:count])):
            loader = ClipLoader(MAKE["views"](made), 2, engine=PyAVEngine(16), seed=7)
            assert loader.state_dict()["videos"] == expected


def test_columns_of_a_list():
    videos = [video(0), video(1, 50, gaps=((5, 9),), source=2, shard=4)]
    for name, expected, kind in (
        ("frames", [40, 50], np.int64),
        ("sound", [40, 46], np.int64),
        ("fps", [25.0, 25.0], np.float64),
        ("source", [0, 2], np.int64),
        ("shard", [-1, 4], np.int64),
        ("id", ["v0", "v1"], object),
    ):
        found = column(videos, name)
        assert (found.tolist(), found.dtype) == (expected, kind)
    assert [position for position, _ in special(videos)] == [0, 1]
    assert [position for position, _ in special(Lazy(videos))] == [1]
    assert having(videos, "path", {"v1.mp4", "other"}).tolist() == [False, True]
    assert numbered(np.array(["b", "a", "b", "c"], dtype=object)).tolist() == [0, 1, 0, 2]


def test_a_lazy_sequence_that_is_none():
    for make in MAKE.values():
        with pytest.raises(ValueError, match="no videos to train on: the split is empty"):
            make(Lazy([]))
        with pytest.raises(TypeError, match=r"videos\[0\] must be VideoInfo"):
            make(Lazy(["a.mp4"]))


def test_the_engine_is_chosen_without_walking():
    from fastseq.video.engines.dali import unsupported

    names = [*[f"{k}.mp4" for k in range(50)], *[f"{k}.AVI" for k in range(50)], "x.flv", "y.mp4"]
    videos = [
        SimpleNamespace(id=name, path=f"/{name}", codec="h264", note="cut off" * (name == "y.mp4"))
        for name in names
    ]
    for video in videos[40:60]:
        video.codec = "mpeg4"
    lazy = Lazy(videos)
    found = choose._refused(lazy, "gpu", "2.1.0", unsupported)
    assert found == choose._refused(videos, "gpu", "2.1.0", unsupported)
    assert found.startswith("22 of 102 videos, such as 40.mp4: ")
    assert lazy.made == 5 + 1
    assert choose._refused(Lazy(videos[:40]), "gpu", "2.1.0", unsupported) is None
