import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from fastseq.video import (
    Augmentation,
    PyAVEngine,
    TooManyBadVideos,
    VideoError,
    eval_transform,
    read_frames,
    write_video,
)
from training.data.dataset import load_videos, open_loader
from training.data.files import find_videos
from training.data.index import (
    INDEX_NAME,
    StaleIndex,
    VideoRecord,
    build_index,
    load_index,
)
from training.data.labels import LabelError

LENGTHS = {"a.mp4": 30, "b.mp4": 24, "more/c.mp4": 9}


def grey_video(path, count):
    """All pixels of frame k have grey level 8 k, so the level shows the frame in any crop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = 8 * np.arange(count, dtype=np.uint8)
    write_video(path, [np.full((36, 48, 3), level) for level in levels], 20, crf=5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, count in LENGTHS.items():
        grey_video(folder / name, count)
    return folder


@pytest.fixture
def folder(videos, tmp_path):
    """A copy made of links, to add labels and broken files to."""
    for name in LENGTHS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.link(videos / name, tmp_path / name)
    return tmp_path


def config(**changes):
    values = {
        "clips": "views",
        "batch_size": 2,
        "num_frames": 12,
        "sampling": "random",
        "crop_base": "clip",
        "alpha": 1.5,
        "beta": 0.2,
        "span": [0.3, 1.0],
        "positive_window": 5,
        "num_context": 1,
        "context_stride": 15,
        "engine": "pyav",
        "workers": 0,
        "cache": "none",
        "cache_side": 24,
        "weights": None,
    }
    return SimpleNamespace(**{**values, **changes})


PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)


# --- index and labels ---


def test_index_of_a_folder(folder):
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("not a video")
    (folder / ".hidden.mp4").write_bytes(b"")
    os.symlink(folder, folder / "more" / "loop")
    labels = {
        "classes": {"rise": ["low", "middle", "high"]},
        "videos": {
            "a.mp4": {"action": "rise", "boundaries": [4, 20]},
            "more/c.mp4": {
                "action": "rise",
                "split": "test",
                "phases": [0, 0, 0, -1, 1, 1, 2, 2, 2],
            },
        },
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    built = build_index(folder)
    found = find_videos(folder)
    assert found.videos == ["a.mp4", "b.mp4", "more/c.mp4", "zero.mp4"]
    assert (found.ignored, found.closed) == ({"notes.txt": ".txt"}, [])
    for index in (built, load_index(folder), load_index(str(folder))):
        assert index.folder == folder.resolve()
        assert [(v.id, v.frames) for v in index.videos] == list(LENGTHS.items())
        assert index.bad == [{"path": "zero.mp4", "reason": "the file is empty (0 bytes)"}]
        assert index.classes == labels["classes"]
        a, b, c = index.videos
        assert a.phases.tolist() == [0] * 4 + [1] * 16 + [2] * 10
        assert a.phases.dtype == np.int64
        assert (a.action, a.split) == ("rise", "train")
        assert (b.phases, b.action, b.split) == (None, "all", "train")
        assert c.phases.tolist() == labels["videos"]["more/c.mp4"]["phases"]
        assert c.split == "test"
        assert (a.width, a.height) == (48, 36)
        assert a.fps == pytest.approx(20)
        assert len(read_frames(a.path)) == 30


def test_a_phase_that_is_never_reached(folder):
    labels = {
        "classes": {"all": ["x", "y", "z"]},
        "videos": {"more/c.mp4": {"boundaries": [0, 9]}, "a.mp4": {"boundaries": []}},
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    a, _, c = build_index(folder).videos
    assert c.phases.tolist() == [1] * 9
    assert a.phases.tolist() == [0] * 30


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"d.mp4": {}}, "d.mp4: no such video in the folder; did you mean"),
        ({"a.mp4": {"boundaries": [4, 31]}}, "a.mp4: boundary 31 lies past the video's 30 frames"),
        ({"a.mp4": {"boundaries": [1, 2, 3]}}, "3 boundaries make 4 phases, but .* has 3"),
        ({"a.mp4": {"boundaries": [5, 4]}}, "must not decrease"),
        ({"a.mp4": {"boundaries": [-1]}}, "frame numbers from 0"),
        ({"a.mp4": {"phases": [0] * 29}}, "a.mp4: 29 phases for 30 frames; write one per"),
        ({"a.mp4": {"phases": [0] * 29 + [3]}}, "phase 3 at frame 29 is out of range.*0 to 2"),
        ({"a.mp4": {"phases": [0.5]}}, "list of whole numbers, got 0.5 at place 0$"),
        ({"a.mp4": {"boundaries": [4, 9.0]}}, "got 9.0 at place 1; write 9"),
        ({"a.mp4": {"boundaries": ["4"]}}, 'got "4" at place 0; write 4'),
        ({"a.mp4": {"boundaries": [True]}}, "got true at place 0"),
        ({"a.mp4": {"boundaries": None}}, "'boundaries' must be a list .*, got null"),
        ({"a.mp4": {"boundaries": [1e400]}}, "got Infinity at place 0"),
        ({"a.mp4": {"boundary": [3]}}, "unknown key 'boundary', did you mean 'boundaries'"),
        ({"a.mp4": {"split": "dev"}}, "split is 'dev', expected 'train', 'val' or 'test'"),
        ({"a.mp4": {"action": "run", "boundaries": [3]}}, "\"classes\" does not list .* 'run'"),
        ({"a.mp4": {"boundaries": [3], "phases": [0] * 30}}, "has both"),
    ],
)
def test_labels_that_do_not_fit(folder, entry, message):
    labels = {"classes": {"all": ["x", "y", "z"]}, "videos": entry}
    (folder / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(LabelError, match=message) as caught:
        build_index(folder)
    assert "labels.json" in str(caught.value)
    assert not (folder / INDEX_NAME).exists()


def test_labels_that_are_no_labels(folder):
    for text, message in [
        ("{", "not a readable JSON"),
        ('{"videos": [1]}', '"videos" must map'),
        ('{"video": {}}', 'unknown key "video"; did you mean "videos"'),
    ]:
        (folder / "labels.json").write_text(text)
        with pytest.raises(LabelError, match=message):
            build_index(folder)


def test_a_stale_index_is_refused(folder):
    with pytest.raises(StaleIndex, match=r"has no index: run `python -m training\.prepare"):
        load_index(folder)
    build_index(folder)
    load_index(folder)
    grey_video(folder / "new.mp4", 5)
    with pytest.raises(StaleIndex, match=r"out of date \(new.mp4 is new\).*training.prepare"):
        load_index(folder)
    build_index(folder)
    (folder / "new.mp4").unlink()
    with pytest.raises(StaleIndex, match=r"new\.mp4 is gone"):
        load_index(folder)
    grey_video(folder / "new.mp4", 6)
    with pytest.raises(StaleIndex, match=r"new\.mp4 has changed"):
        load_index(folder)
    build_index(folder)
    (folder / "labels.json").write_text("{}")
    with pytest.raises(StaleIndex, match=r"labels\.json is new"):
        load_index(folder)
    build_index(folder)
    (folder / "labels.json").write_text('{"videos": {}}')
    with pytest.raises(StaleIndex, match=r"labels\.json has changed"):
        load_index(folder)
    (folder / INDEX_NAME).write_text("[]")
    with pytest.raises(StaleIndex, match="damaged"):
        load_index(folder)


# --- the data set ---


def test_an_index_of_what_is_no_folder(folder):
    for path in (folder / "none", folder / "a.mp4"):
        with pytest.raises(NotADirectoryError, match=f"{path.name} is not a folder"):
            load_index(path)


def test_memory_and_disk_give_the_same_items(videos, monkeypatch):
    build_index(videos)
    records = load_index(videos).videos
    spec = Augmentation(size=16)
    memory, why = open_loader(records, config(cache="ram", engine="auto"), spec, 3, progress=False)
    assert (memory.engine.name, why) == ("pyav", "frames are cached in memory, nothing is decoded")
    disk, scaled = (open_loader(records, config(), spec, 3)[0] for _ in range(2))
    scaled.engine = PyAVEngine(16, scale_first=True)
    for one, two, three in zip(*(x.stream(3) for x in (memory, scaled, disk)), strict=True):
        assert one["ids"] == two["ids"] == three["ids"]
        for key in ("frames", "steps"):
            assert torch.equal(one[key], two[key])
        assert torch.equal(one["steps"], three["steps"])
        assert (one["frames"].float() - three["frames"].float()).abs().mean() < 3
    monkeypatch.setattr("training.data.dataset.FrameCache", None)  # refused before filling it
    with pytest.raises(ValueError, match="'dali-cpu' cannot read from the cache"):
        open_loader(records, config(cache="ram", engine="dali-cpu"), spec, 3, progress=False)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_bad_video_is_left_out_of_the_cache_too(videos, tmp_path, cache):
    (tmp_path / "zero.mp4").write_bytes(b"")
    good = VideoRecord("good", str(videos / "a.mp4"), 30, 20.0, width=48, height=36)
    bad = VideoRecord("bad", str(tmp_path / "zero.mp4"), 30, 20.0, width=48, height=36)
    options = config(cache=cache, batch_size=101)

    def first():
        loader, _ = open_loader([bad] + [good] * 100, options, PLAIN, 0, progress=False)
        return loader, next(iter(loader))

    with pytest.warns(RuntimeWarning, match=r"left out bad: the file is empty.*\(1 of 101"):
        loader, batch = first()
    assert set(batch["ids"]) == {"good"}
    assert loader.bad == {bad.path: "the file is empty (0 bytes)"}
    with pytest.raises(TooManyBadVideos, match="1 of 1 videos cannot be read, nothing is left"):
        next(iter(open_loader([bad], config(cache=cache), PLAIN, 0, progress=False)[0]))


def test_gaps_are_read_neither_into_the_cache_nor_out_of_it(videos, monkeypatch):
    asked = []

    def reading(path, indices, **options):
        asked.extend(indices)
        return read_frames(path, indices, **options)

    monkeypatch.setattr("training.data.cache.read_frames", reading)
    gaps = ((0, 3), (10, 12), (25, 30))
    record = VideoRecord("a", str(videos / "a.mp4"), 30, 20.0, width=48, height=36, gaps=gaps)
    loader, _ = open_loader([record], config(cache="ram"), PLAIN, 0, progress=False)
    sound = [*range(3, 10), *range(12, 25)]
    assert asked == sound
    loader.engine.cache.data.view(30, -1)[[0, 1, 2, 10, 11, 25, 29]] = 255
    for batch in loader.stream(10):
        assert {*batch["steps"].flatten().tolist()} <= {*sound}
        level = batch["frames"].float().mean((3, 4, 5))
        assert (level - 8 * batch["steps"]).abs().max() < 4


def test_whole_videos_for_evaluation(videos, monkeypatch):
    monkeypatch.setattr("training.data.dataset._CHUNK", 7)  # several chunks
    build_index(videos)
    records = load_index(videos).videos
    engine = PyAVEngine(16)
    scaled = load_videos(records, 16, 24, engine=PyAVEngine(16, scale_first=True))
    for record, frames in zip(records, scaled, strict=True):
        assert torch.equal(frames, eval_transform(read_frames(record.path, short_side=24), 16))
    read = [*load_videos(records, 16, 24, engine=engine)]
    for record, frames in zip(records, read, strict=True):
        assert frames.shape == (record.frames, 3, 16, 16)
        assert frames.dtype == torch.uint8
        assert (frames.float().mean((1, 2, 3)) - 8 * torch.arange(record.frames)).abs().max() < 4
        assert torch.equal(frames, eval_transform(read_frames(record.path), 16))
    longer = dataclasses.replace(records[0], frames=31)
    made = [*load_videos([longer, records[1], longer], 16, 24, engine=engine)]
    assert [type(one) for one in made] == [VideoError, torch.Tensor, VideoError]
    assert "the video has 30 frames" in str(made[0])
    assert torch.equal(made[1], read[1])


def test_whole_videos_without_their_gaps(videos, monkeypatch):
    monkeypatch.setattr("training.data.dataset._CHUNK", 7)
    build_index(videos)
    whole, *others = load_index(videos).videos
    damaged = dataclasses.replace(whole, gaps=((0, 3), (10, 12), (25, 30)))
    gone = dataclasses.replace(whole, gaps=((0, 30),))
    (frames,) = load_videos([whole], 16, 24, engine=PyAVEngine(16))
    one, nothing, other = load_videos([damaged, gone, others[0]], 16, 24, engine=PyAVEngine(16))
    assert torch.equal(one, frames[[*range(3, 10), *range(12, 25)]])
    assert isinstance(nothing, VideoError)
    assert "none of its 30 frames is sound" in str(nothing)
    assert len(other) == others[0].frames


def test_an_error_that_comes_ahead_waits_for_its_turn(videos, monkeypatch):
    """As engines that work ahead may raise it: in place of a later batch."""
    monkeypatch.setattr("training.data.dataset._CHUNK", 7)
    build_index(videos)
    records = load_index(videos).videos
    bad = dataclasses.replace(records[1], path=str(videos / "gone.mp4"))
    expected = [*load_videos(records, 16, 24, engine=PyAVEngine(16))]

    class Hasty(PyAVEngine):
        hasty = True

        def batches(self, source, start, stop):
            made = super().batches(source, start, stop)
            if self.hasty:
                self.hasty = False
                yield next(made)
                raise VideoError(bad.path, "No such file or directory")
            yield from made

    first, second, third = load_videos([records[0], bad, records[2]], 16, 24, engine=Hasty(16))
    assert torch.equal(first, expected[0])
    assert str(second) == f"{bad.path}: No such file or directory"
    assert torch.equal(third, expected[2])


def test_wrong_settings(videos):
    record = VideoRecord("a.mp4", str(videos / "a.mp4"), 30, 20.0, width=48, height=36)
    with pytest.raises(ValueError, match="no videos to train on"):
        open_loader([], config(), PLAIN, 0)
    with pytest.raises(ValueError, match="one of none, ram, features, got 'disk'"):
        open_loader([record], config(cache="disk"), PLAIN, 0)
    with pytest.raises(ValueError, match="span must be"):
        open_loader([record], config(crop_base="span", span=[1.0, 0.3]), PLAIN, 0)
