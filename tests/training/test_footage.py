"""trim, crop, sync and unlabelled_from in labels.json: checked, stored in the index, applied."""

import contextlib
import dataclasses
import json
import sqlite3

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from test_data import PLAIN, config

from fastseq.video import PyAVEngine, SynchronisedViews, probe, write_video
from fastseq.video.gaps import frames_of
from training.data.dataset import load_videos, open_items, open_loader
from training.data.footage import scaled_crop
from training.data.index import StaleIndex, build_index, load_index
from training.data.labels import LabelError
from training.data.transcode import Settings, transcode_folder
from training.prepare import main
from training.recipe.load import load_config

FRAMES = 20
WIDTH, HEIGHT = 96, 64
BOX = [32, 16, 40, 32]  # left, top, width, height
CLASSES = {"s": ["x", "y"]}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Dark outside of BOX, in which frame k has the grey level 60 + 9 k."""
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 0, np.uint8)
    left, top, width, height = BOX
    levels = 60 + 9 * np.arange(FRAMES, dtype=np.uint8)
    frames[:, top : top + height, left : left + width] = levels[:, None, None, None]
    path = tmp_path_factory.mktemp("box") / "a.mp4"
    write_video(path, frames, 25, crf=1)
    return path.read_bytes()


@pytest.fixture
def folder(encoded, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "in" / name).write_bytes(encoded)
    return tmp_path / "in"


def label(folder, **videos):
    """Write labels of a, b, c."""
    content = {"classes": CLASSES, "videos": {f"{k}.mp4": v for k, v in videos.items()}}
    (folder / "labels.json").write_text(json.dumps(content))


def record(folder, name="a.mp4"):
    return next(video for video in load_index(folder).videos if video.id == name)


def test_they_are_in_the_index(folder, capsys):
    label(
        folder,
        a={"trim": [3, 16], "crop": BOX, "sync": {"group": "trial 1", "offset": -2}},
        b={"sync": {"group": "trial 1"}},
    )
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "  trimmed: 1, cropped: 1, synchronised in 1 group: 2\n" in out
    assert "damaged" not in out
    a, b, c = load_index(folder).videos
    assert (a.trim, a.crop, a.sync) == ((3, 16), tuple(BOX), ("trial 1", -2))
    assert a.gaps == ((0, 3), (17, 20))
    assert (a.frames, a.note, a.phases) == (FRAMES, "", None)
    assert frames_of(a).tolist() == [*range(3, 17)]
    assert (b.trim, b.crop, b.sync, b.gaps) == (None, None, ("trial 1", 0), ())
    assert (c.trim, c.crop, c.sync, c.gaps) == (None, None, None, ())
    label(folder, a={})
    assert main([str(folder)]) == 0
    assert "trimmed" not in capsys.readouterr().out


def test_frames_that_have_no_label(folder):
    label(
        folder,
        a={"action": "s", "boundaries": [8], "trim": [3, 16]},
        b={"action": "s", "boundaries": [8], "unlabelled_from": 12, "trim": [0, 18]},
        c={"action": "s", "phases": [0] * 5 + [1] * 15, "unlabelled_from": 0},
    )
    build_index(folder)
    a, b, c = (video.phases.tolist() for video in load_index(folder).videos)
    assert a == [-1] * 3 + [0] * 5 + [1] * 9 + [-1] * 3
    assert b == [0] * 8 + [1] * 4 + [-1] * 8
    assert c == [-1] * 20


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"trim": 5}, "a.mp4: trim is 5, expected the first and the last usable frame"),
        ({"trim": [1]}, r"trim is \[1\], expected the first"),
        ({"trim": [1, 2.5]}, r"trim is \[1, 2.5\], expected"),
        ({"trim": [9, 3]}, r"trim \[9, 3\] must be the first and the last .* in this order"),
        ({"trim": [-1, 3]}, "counted from 0"),
        ({"trim": [0, 20]}, r"trim \[0, 20\] lies past the video's 20 frames, 0 to 19"),
        ({"trim": [30, 40]}, "lies past the video's 20 frames"),
        ({"trimm": [0, 3]}, "unknown key 'trimm', did you mean 'trim'"),
        ({"crop": [0, 0, 10]}, r"crop is \[0, 0, 10\], expected \[left, top, width, height\]"),
        ({"crop": [0, 0, 10, True]}, "expected .left, top, width, height. in whole pixels"),
        ({"crop": [0, -1, 10, 10]}, "left and top must be at least 0"),
        ({"crop": [0, 0, 0, 10]}, "width and height at least 1"),
        ({"crop": [60, 0, 37, 10]}, "picture of 96 x 64 pixels: left . width is 97, .* most 96"),
        ({"crop": [0, 60, 10, 5]}, "top . height is 65, expected at most 64"),
        ({"sync": "trial 1"}, 'sync is "trial 1", expected an object such as {"group"'),
        ({"sync": {"offset": 3}}, "the group of sync is null, expected a name"),
        ({"sync": {"group": " "}}, "the group of sync is"),
        (
            {"sync": {"group": "x", "ofset": 3}},
            "unknown key 'ofset' in sync, did you mean 'offset'",
        ),
        ({"sync": {"group": "x", "offset": 0.5}}, "the offset of sync is 0.5, expected a whole"),
        ({"unlabelled_from": 3}, "unlabelled_from needs 'boundaries', 'segments' or"),
        ({"action": "s", "boundaries": [3], "unlabelled_from": -1}, "unlabelled_from is -1"),
        ({"action": "s", "boundaries": [3], "unlabelled_from": 21}, "past the video's 20 frames"),
    ],
)
def test_what_does_not_fit_is_named(folder, entry, message):
    label(folder, a=entry)
    with pytest.raises(LabelError, match=message):
        build_index(folder)
    assert not (folder / "fastseq_index.sqlite").exists()


def test_an_offset_given_twice(folder):
    text = '{"videos": {"a.mp4": {"sync": {"group": "x", "offset": 1, "offset": 2}}}}'
    (folder / "labels.json").write_text(text)
    with pytest.raises(LabelError, match=r"a.mp4: sync: the key 'offset' is there twice"):
        build_index(folder)


def test_an_index_of_before_is_written_anew(folder):
    build_index(folder)
    path = folder / "fastseq_index.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE about SET json = '3' WHERE name = 'format'")
        file.commit()
    with pytest.raises(StaleIndex, match="written by another version"):
        load_index(folder)


def test_trim_of_a_damaged_video_is_cut(folder, monkeypatch):
    """Frames 5, 6 and 19 cannot be decoded."""
    label(
        folder,
        a={"trim": [4, 19]},
        b={"trim": [19, 19]},
        c={"trim": [4, 12], "action": "s", "boundaries": [19]},
    )
    info = dataclasses.replace(probe(folder / "a.mp4"), frames=18, gaps=((5, 7),), note="broken")
    monkeypatch.setattr("fastseq.video.probe", lambda path, **options: info)
    index = build_index(folder)
    a, c = index.videos
    assert (a.id, a.trim, a.gaps) == ("a.mp4", (4, 17), ((0, 4), (5, 7)))
    assert c.gaps == ((0, 4), (5, 7), (13, 18))
    assert index.changed_labels == ["a.mp4", "c.mp4"]
    reason = "no usable frame: trim begins at frame 19, but only 18 frames can be decoded"
    assert index.bad == [{"path": "b.mp4", "reason": reason}]
    assert index.unused_labels == ["b.mp4"]


def test_copies_keep_the_picture_and_the_frames(folder, tmp_path):
    sync = {"group": "x", "offset": 4}
    label(folder, a={"trim": [3, 16], "crop": BOX, "sync": sync}, b={"crop": [1, 1, 93, 61]})
    for _ in range(2):  # in the second round every copy exists already
        transcode_folder(folder, tmp_path / "out", Settings(short_side=32))
        videos = json.loads((tmp_path / "out" / "labels.json").read_text())["videos"]
        assert videos["a.mp4"] == {"trim": [3, 16], "crop": [16, 8, 20, 16], "sync": sync}
        assert videos["b.mp4"] == {"crop": [0, 0, 47, 31]}  # rounded outwards
    build_index(tmp_path / "out")
    copy = record(tmp_path / "out")
    assert (copy.width, copy.height, copy.frames) == (48, 32, FRAMES)
    (frames,) = load_videos([copy], 16, 16, engine=PyAVEngine(16))
    level = frames[:, :, 4:-4, 4:-4].float().mean((1, 2, 3))  # the edges are mixed with dark
    assert (level - 60 - 9 * torch.arange(3, 17)).abs().max() < 4
    label(folder, a={"crop": [60, 0, 37, 10]})
    with pytest.raises(LabelError, match=r"a.mp4: crop .* reaches past the picture of 96 x 64"):
        transcode_folder(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_labels_of_copies_are_in_frames(folder, tmp_path):
    """The frames of a copy are evenly spaced, so seconds would mean other frames."""
    videos = {
        "a.mp4": {"trim": [0.1, 0.64], "crop": [1, 1, 93, 61]},
        "b.mp4": {"action": "s", "unit": "seconds", "segments": [[0.2, 0.4, "y"]]},
        "c.mp4": {"action": "s", "unit": "frames", "boundaries": [7]},
    }
    content = {"unit": "seconds", "classes": CLASSES, "videos": videos}
    (folder / "labels.json").write_text(json.dumps(content))
    transcode_folder(folder, tmp_path / "out", Settings(short_side=32))
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {
        "classes": CLASSES,
        "videos": {
            "a.mp4": {"trim": [3, 16], "crop": [0, 0, 47, 31]},
            "b.mp4": {"action": "s", "segments": [[5, 10, "y"]]},
            "c.mp4": videos["c.mp4"],
        },
    }
    videos["a.mp4"] |= {"trim": [0.01, 0.02], "crop": [60, 0, 37, 10]}
    videos["b.mp4"] = {"action": "s", "boundaries": [0.21, 0.23]}
    content["classes"] = {"s": ["x", "y", "z"]}
    (folder / "labels.json").write_text(json.dumps(content))
    with pytest.raises(LabelError, match=r"a.mp4: trim .* contains no frame") as caught:
        transcode_folder(folder, tmp_path / "other")
    assert "a.mp4: crop [60, 0, 37, 10] reaches past the picture" in str(caught.value)
    assert "b.mp4: phase 1 has no frame" in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_a_crop_grows_to_whole_pixels_inside_the_picture():
    assert scaled_crop([10, 10, 20, 30], (100, 50), (50, 25)) == [5, 5, 10, 15]
    assert scaled_crop([11, 11, 20, 30], (100, 50), (50, 25)) == [5, 5, 11, 16]
    assert scaled_crop([90, 0, 11, 51], (101, 51), (100, 50)) == [89, 0, 11, 50]


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_training_and_evaluation_see_the_box_and_the_trim_alone(folder, cache):
    inner = [34, 18, 36, 28]  # if scaled first, the edge of the box itself is mixed with the dark
    label(folder, **{name: {"trim": [3, 16], "crop": inner} for name in "abc"})
    build_index(folder)
    records = load_index(folder).videos
    loader, _ = open_loader(records, config(cache=cache), PLAIN, 0, progress=False)
    for batch in loader.stream(6):
        assert {*batch["steps"].flatten().tolist()} <= {*range(3, 17)}
        wrong = batch["frames"].float() - 60 - 9 * batch["steps"][..., None, None, None]
        assert wrong.abs().max() < 8
    for engine in (PyAVEngine(16), PyAVEngine(16, scale_first=True)):
        for frames in load_videos(records, 16, 24, engine=engine):
            assert len(frames) == 14
            wrong = frames.float() - 60 - 9 * torch.arange(3, 17).view(-1, 1, 1, 1)
            assert wrong.abs().max() < 8


def test_synchronised_clips_of_a_folder(folder):
    """The offset makes b two frames late, and the trim removes its end."""
    label(
        folder,
        a={"crop": BOX, "sync": {"group": "x", "offset": 2}},
        b={"crop": BOX, "sync": {"group": "x"}, "trim": [0, 14]},
    )
    build_index(folder)
    options = config(clips="synchronised", batch_size=2, num_frames=8)
    items = open_items(load_index(folder).videos, options, PLAIN)
    assert type(items) is SynchronisedViews
    assert [name for name, _ in items.left_out] == ["c.mp4"]
    loader, _ = open_loader(load_index(folder).videos, options, PLAIN, 0)
    for batch in loader.stream(4):
        assert batch["steps"].min() >= 2
        assert batch["steps"].max() <= 14
        for name, frames, steps in zip(batch["ids"], batch["frames"], batch["steps"], strict=True):
            offsets = torch.tensor([2, 0] if name == "a.mp4 with b.mp4" else [0, 2])
            levels = 60 + 9 * (steps - offsets[:, None])
            assert (frames.float().mean((2, 3, 4)) - levels).abs().max() < 4


def test_losses_of_two_clips_take_synchronised_ones():
    clips = ["data.clips=synchronised", "loss.scl.weight=0"]
    for name in ("scl", "nearest", "lav", "tcc", "soft_dtw", "contrastive_idm"):
        cfg = load_config("recipes/carl.yaml", [*clips, f"loss.{name}.weight=1"])
        assert cfg.data.clips == "synchronised"
    anchors = ["loss.tcn.weight=1", "data.sampling=anchors"]
    load_config("recipes/carl.yaml", [*clips, *anchors])
