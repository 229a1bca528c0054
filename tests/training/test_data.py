import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

pytest.importorskip("av")

from fastseq.video import Augmentation, VideoError, read_frames, write_video
from training.data.dataset import (
    TooManyBadVideos,
    TwoViewDataset,
    collate,
    decode_side,
    load_video,
)
from training.data.index import (
    INDEX_NAME,
    StaleIndex,
    VideoRecord,
    build_index,
    find_videos,
    load_index,
)
from training.data.labels import LabelError

LENGTHS = {"a.mp4": 30, "b.mp4": 24, "more/c.mp4": 9}


def grey_video(path, count):
    """Frame k is grey level 8 k all over: the level tells the frame, whatever the crop."""
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
    """A copy by links, to add labels and broken files to."""
    for name in LENGTHS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.link(videos / name, tmp_path / name)
    return tmp_path


def config(**changes):
    values = {
        "num_frames": 12,
        "sampling": "random",
        "crop_base": "clip",
        "alpha": 1.5,
        "beta": 0.2,
        "span": [0.3, 1.0],
        "positive_window": 5,
        "num_context": 1,
        "context_stride": 15,
        "cache": "none",
        "cache_side": 24,
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
    assert find_videos(folder) == (["a.mp4", "b.mp4", "more/c.mp4", "zero.mp4"], 1)
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
        ({"a.mp4": {"phases": [0] * 29}}, "a.mp4: 29 phases for 30 frames; give one per"),
        ({"a.mp4": {"phases": [0] * 29 + [3]}}, "phase 3 at frame 29 is out of range.*0 to 2"),
        ({"a.mp4": {"phases": [0.5]}}, "list of whole numbers"),
        ({"a.mp4": {"boundary": [3]}}, "unknown key 'boundary', did you mean 'boundaries'"),
        ({"a.mp4": {"split": "val"}}, "split is 'val', expected 'train' or 'test'"),
        ({"a.mp4": {"action": "run", "boundaries": [3]}}, "\"classes\" does not name .* 'run'"),
        ({"a.mp4": {"boundaries": [3], "phases": [0] * 30}}, "not both"),
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
    for text, message in [("{", "not a readable JSON"), ('{"videos": [1]}', '"videos" must map')]:
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


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("crop_base", ["clip", "span", "video"])
def test_items_show_the_frames_they_name(videos, cache, crop_base):
    build_index(videos)
    records = load_index(videos).videos
    data = TwoViewDataset(
        records, config(cache=cache, crop_base=crop_base), PLAIN, 0, progress=False
    )
    for index, record in enumerate(records):
        item = data[index]
        assert item["frames"].shape == (2, 12, 3, 16, 16)
        assert item["frames"].dtype == torch.uint8
        assert item["steps"].dtype == torch.int64
        assert item["valid"].dtype == torch.bool
        assert (item["num_frames"].tolist(), item["id"]) == ([record.frames] * 2, record.id)
        level = item["frames"].float().mean((2, 3, 4))
        assert (level - 8 * item["steps"]).abs().max() < 4  # also where padded: the last frame
        assert item["valid"].all() == (record.frames >= 12 and crop_base != "video")


def test_memory_and_disk_give_the_same_items(videos):
    build_index(videos)
    records = load_index(videos).videos
    spec = Augmentation(size=16)
    memory = TwoViewDataset(records, config(cache="ram"), spec, 3, progress=False)
    disk = TwoViewDataset(records, config(), spec, 3)
    for index in range(3):
        one, two = memory[index], disk[index]
        assert torch.equal(one["frames"], two["frames"])
        assert torch.equal(one["steps"], two["steps"])


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_do_not_change_the_draws(videos, cache):
    build_index(videos)
    records = load_index(videos).videos
    passes = {}
    for workers in (0, 2):
        data = TwoViewDataset(
            records, config(cache=cache), Augmentation(size=16), 7, progress=False
        )
        loader = DataLoader(
            data,
            batch_size=2,
            num_workers=workers,
            collate_fn=data.collate,
        )
        epochs = []
        for epoch in (0, 1, 0):
            data.set_epoch(epoch)
            epochs.append(list(loader))
        passes[workers] = epochs
    for mine, theirs in zip(passes[0], passes[2], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a["ids"] == b["ids"]
            for key in ("frames", "steps", "valid", "num_frames"):
                assert torch.equal(a[key], b[key])
    first, second, again = passes[2]
    assert first[0]["frames"].shape == (2, 2, 12, 3, 16, 16)
    assert first[0]["num_frames"].tolist() == [[30, 30], [24, 24]]
    assert torch.equal(first[0]["frames"], again[0]["frames"])
    assert not torch.equal(first[0]["steps"], second[0]["steps"])
    other_seed = TwoViewDataset(records, config(), Augmentation(size=16), 8)
    assert not torch.equal(other_seed[0]["steps"], first[0]["steps"][0])


def test_spawned_workers_get_the_cache(videos):
    build_index(videos)
    data = TwoViewDataset(load_index(videos).videos, config(cache="ram"), PLAIN, 7, progress=False)
    loader = DataLoader(data, None, num_workers=1, multiprocessing_context="spawn")
    for index, item in enumerate(loader):
        assert torch.equal(item["frames"], data[index]["frames"])


def records_with_bad(videos, tmp_path, good, bad):
    (tmp_path / "zero.mp4").write_bytes(b"")
    path = str(videos / "a.mp4")
    records = [VideoRecord(f"good{i}", path, 30, 20.0, width=48, height=36) for i in range(good)]
    for i in range(bad):
        records.insert(
            5, VideoRecord(f"bad{i}", str(tmp_path / "zero.mp4"), 30, 20.0, width=48, height=36)
        )
    return records


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_bad_video_is_replaced_counted_and_named(videos, tmp_path, cache):
    records = records_with_bad(videos, tmp_path, 100, 1)

    def fifth():
        data = TwoViewDataset(records, config(cache=cache), PLAIN, 0, progress=False)
        return data, data[5]

    with pytest.warns(RuntimeWarning, match=r"left out bad0: the file is empty.*\(1 of 101"):
        data, item = fifth()
    assert item["id"] == "good5"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data[5]["id"] == "good5"  # said once
    assert data.bad_videos() == [("bad0", "the file is empty (0 bytes)")]


def test_bad_videos_above_one_percent_stop_the_training(videos, tmp_path):
    records = records_with_bad(videos, tmp_path, 100, 2)
    data = TwoViewDataset(records, config(), PLAIN, 0)
    with pytest.warns(RuntimeWarning), pytest.raises(TooManyBadVideos) as caught:
        data[5]
    assert "2 of 102 videos" in str(caught.value)
    assert "bad1: the file is empty (0 bytes)\n  bad0" in str(caught.value)
    small = records_with_bad(videos, tmp_path, 6, 1)[5:]
    with pytest.raises(TooManyBadVideos, match="1 of 2 videos"):
        TwoViewDataset(small, config(cache="ram"), PLAIN, 0, progress=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_videos_in_workers_are_known_outside(videos, tmp_path):
    data = TwoViewDataset(records_with_bad(videos, tmp_path, 100, 1), config(), PLAIN, 0)
    batches = DataLoader(data, 4, num_workers=2, collate_fn=collate, sampler=range(4, 12))
    assert [name for batch in batches for name in batch["ids"]][1] == "good5"
    assert data.bad_videos() == [("bad0", "the file is empty (0 bytes)")]
    # A worker's error crosses to the parent as its type and one message. (Raising it in a real
    # worker makes the loader wait 5 s for each of them.)
    data = TwoViewDataset(records_with_bad(videos, tmp_path, 100, 2), config(), PLAIN, 0)
    try:
        data[5]
    except TooManyBadVideos:
        error = ExceptionWrapper(where="in a worker")
    with pytest.raises(TooManyBadVideos, match="bad0: the file is empty"):
        error.reraise()


def test_whole_videos_for_evaluation(videos, monkeypatch):
    monkeypatch.setattr("training.data.dataset._CHUNK", 7)  # several chunks
    record = VideoRecord("a.mp4", str(videos / "a.mp4"), 30, 20.0)
    frames = load_video(record, 16, 24)
    assert frames.shape == (30, 3, 16, 16)
    assert frames.dtype == torch.uint8
    assert (frames.float().mean((1, 2, 3)) - 8 * torch.arange(30)).abs().max() < 4
    assert load_video(record, 16).shape == (30, 3, 16, 16)
    assert (decode_side(224, None), decode_side(64, 96)) == (256, 96)
    with pytest.raises(VideoError, match="the video has 30 frames"):
        load_video(VideoRecord("a.mp4", str(videos / "a.mp4"), 31, 20.0), 16, 24)


def test_wrong_settings(videos):
    record = VideoRecord("a.mp4", str(videos / "a.mp4"), 30, 20.0)
    with pytest.raises(ValueError, match="no videos to train on"):
        TwoViewDataset([], config(), PLAIN, 0)
    with pytest.raises(ValueError, match='"none" or "ram", got \'disk\''):
        TwoViewDataset([record], config(cache="disk"), PLAIN, 0)
    with pytest.raises(ValueError, match="span must be"):
        TwoViewDataset([record], config(crop_base="span", span=[1.0, 0.3]), PLAIN, 0)
