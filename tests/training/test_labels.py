"""labels.json as people write it: encodings, spellings of names, duplicate keys."""

import dataclasses
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from fastseq.video import probe, write_video
from training.data.index import build_index, load_index
from training.data.labels import LabelError, Labels, phases_of, read_labels
from training.data.names import Names
from training.data.transcode import transcode_folder
from training.prepare import main

ENTRY = {"action": "s", "split": "test", "boundaries": [4]}
COMPOSED = unicodedata.normalize("NFC", "clips/Zoë.mp4")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@dataclasses.dataclass
class Info:
    frames: int
    fps: float = 25.0


def content(*names):
    return {"classes": {"s": ["x", "y"]}, "videos": dict.fromkeys(names, ENTRY)}


def clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.full((16, 16, 3), 20 * k, np.uint8) for k in range(9)], 25)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_labels(tmp_path, encoding):
    clip(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "labels.json").write_text(json.dumps(content("a.mp4")), encoding=encoding)
    assert build_index(tmp_path / "in").videos[0].phases.tolist() == [0] * 4 + [1] * 5
    transcode_folder(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "labels.json").read_bytes()) == content("a.mp4")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(content("a.mp4")).encode("utf-16"), "saved as UTF-16.*save it as UTF-8"),
        (json.dumps(content("a.mp4")).encode("utf-16-le"), "saved as UTF-16"),
        (json.dumps(content("a.mp4")).encode("utf-32"), "UTF-32; save it as UTF-8"),
        ('{\n"videos": {"Zoë.mp4": {}}}'.encode("latin-1"), "line 2 is not UTF-8 .byte 0xeb"),
        (b"[" * 100_000, "not a readable JSON file"),
        (b"", "not a readable JSON file"),
    ],
)
def test_other_encodings_are_told_from_broken_files(tmp_path, data, message):
    (tmp_path / "labels.json").write_bytes(data)
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"videos": {"a.mp4": {}, "b.mp4": {}, "a.mp4": {}}}', "\"videos\": the key 'a.mp4'"),
        ('{"videos": {"a.mp4": {"split": "test", "split": "train"}}}', "a.mp4: the key 'split'"),
        ('{"classes": {"s": ["x"], "s": ["y"]}}', "\"classes\": the key 's' is there twice"),
        ('{"videos": {}, "videos": {"a.mp4": {}}}', "the file: the key 'videos' is there twice"),
    ],
)
def test_a_key_that_is_there_twice(tmp_path, text, message):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(("stored", "written"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_composed_and_decomposed_letters_are_one_name(tmp_path, stored, written):
    clip(tmp_path / "in" / stored)
    (tmp_path / "in" / "labels.json").write_text(json.dumps(content(written)), encoding="utf-8")
    build_index(tmp_path / "in")
    (record,) = load_index(tmp_path / "in").videos
    assert record.id == stored
    assert record.phases.tolist() == [0] * 4 + [1] * 5
    transcode_folder(tmp_path / "in", tmp_path / "out")
    copied = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert list(copied["videos"]) == [stored]
    (tmp_path / "in" / "labels.json").write_text(json.dumps(content(stored, written)))
    with pytest.raises(LabelError, match=r"of this video are there twice, as .*e\\u0308"):
        build_index(tmp_path / "in")


def test_two_files_whose_names_look_the_same():
    """Each has its own label; a third spelling belongs to neither."""
    both = Names(Path("/v"), ["ëë", unicodedata.normalize("NFD", "ëë")], {})
    assert both.match("ëë") == "ëë"
    assert both.match("e\u0308e\u0308") == "e\u0308e\u0308"
    with pytest.raises(ValueError, match=r"2 files have this name.*rename one"):
        both.match("ëe\u0308")
    assert both.match("other") is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("b.mp4", "did you mean sub/b.mp4?"),
        ("A.MP4", "did you mean a.mp4?"),
        ("a", "did you mean a.mp4?"),
        ("a.avi", "did you mean a.mp4?"),
        ("./a.mp4", "did you mean a.mp4?"),
        ("sub/../a.mp4", "did you mean a.mp4?"),
        ("/v/sub/b.mp4", "did you mean sub/b.mp4?"),
        ("/elsewhere/sub/b.mp4", "did you mean sub/b.mp4?"),
        ("videos/sub/b.mp4", "did you mean sub/b.mp4?"),
        (r"sub\b.mp4", "did you mean sub/b.mp4?"),
        (r"C:\data\two\same.mp4", "did you mean two/same.mp4?"),
        ("SUB/B.AVI", "did you mean sub/b.mp4?"),
        ("same.mp4", "did you mean one of one/same.mp4, two/same.mp4?"),
        ("clip.v1", "did you mean clip.v1.mp4?"),
        ("long_namf.mp4", "did you mean long_name.mp4?"),
        ("nothing like it", "remove the entry or add the file"),
        ("notes.txt", "it exists but is not used as a video (.txt); name it with --include"),
    ],
)
def test_hints_for_names_that_miss(name, hint):
    videos = ["a.mp4", "sub/b.mp4", "one/same.mp4", "two/same.mp4", "clip.v1.mp4", "long_name.mp4"]
    names = Names(Path("/v"), videos, {"notes.txt": ".txt"})
    assert names.match(name) is None
    assert names.hint(name) == hint


def test_labels_of_damaged_videos_are_fitted_to_their_frames(tmp_path):
    labels = Labels(
        {"": {"all": ["x", "y", "z"]}},
        {
            "cut": {"boundaries": [2, 10**30]},
            "long": {"phases": [0, 1, 1, 2, 2]},
            "short": {"phases": [1, 1]},
            "fits": {"boundaries": [1, 4]},
            "gone": {"boundaries": [1]},
            "plain": {"split": "test"},
        },
    )
    infos = dict.fromkeys(["cut", "long", "short", "fits", "plain"], Info(4))
    phases, changed = phases_of(tmp_path, labels, infos, ["cut", "long", "short", "fits"])
    assert {name: values.tolist() for name, values in phases[""].items()} == {
        "cut": [0, 0, 1, 1],
        "long": [0, 1, 1, 2],
        "short": [1, 1, -1, -1],
        "fits": [0, 1, 1, 1],
    }
    assert changed == ["cut", "long", "short"]
    for name, message in (
        ("cut", "boundary 10+ lies past the video's 4 frames"),
        ("long", "5 phases for 4 frames"),
        ("short", "2 phases for 4 frames"),
    ):
        with pytest.raises(LabelError, match=f"{name}: {message}"):
            phases_of(tmp_path, labels, infos, {"cut", "long", "short"} - {name})


def test_names_in_another_encoding_are_copied(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    clip(tmp_path / "clip.mp4")
    (tmp_path / "in").mkdir()
    os.rename(tmp_path / "clip.mp4", tmp_path / "in" / name)
    (tmp_path / "in" / "labels.json").write_text(json.dumps(content(name)))
    transcode_folder(tmp_path / "in", tmp_path / "out")
    assert list(json.loads((tmp_path / "out" / "labels.json").read_text())["videos"]) == [name]


def test_damaged_videos_with_labels_stop_nothing(tmp_path, capsys):
    """Verified, copied or neither, labelled or not: reported, and the sound ones are used."""
    folder = tmp_path / "in"
    for name in ("a.mp4", "b.mp4"):
        clip(folder / name)
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    write_video(folder / "hole.mp4", noise, 25)
    data = bytearray((folder / "hole.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    (folder / "hole.mp4").write_bytes(data)
    (folder / "zero.mp4").write_bytes(b"")
    labels = content("a.mp4", "b.mp4")
    labels["videos"]["hole.mp4"] = {"action": "s", "boundaries": [25]}
    labels["videos"]["zero.mp4"] = ENTRY
    for given in (labels, content("a.mp4"), None):
        (folder / "labels.json").unlink(missing_ok=True)
        if given is not None:
            (folder / "labels.json").write_text(json.dumps(given))
        for options in ([], ["--verify"], ["--transcode", str(tmp_path / "out")]):
            assert main([str(folder), *options]) == 0
            out = capsys.readouterr().out
            unused = "labels not copied" if len(options) == 2 else "labels not used"
            count = "2 videos" if len(options) == 2 else "1 video"
            assert (f"{unused}: {count}\n  the video is left out" in out) == (given is labels)
            assert "the file is empty (0 bytes) (1): zero.mp4" in out
            if options:
                assert "hole.mp4" in out
            cut = "labels cut to the readable frames: 1 damaged video\n"
            assert (cut in out) == (given is labels and options == ["--verify"])
            made = load_index(options[1] if len(options) == 2 else folder)
            assert [video.id for video in made.videos][:2] == ["a.mp4", "b.mp4"]
            if cut in out:
                assert "(1): hole.mp4" in out.split(cut)[1].splitlines()[0]
                hole = made.videos[2]
                assert hole.phases.tolist() == [0] * hole.frames
                assert 0 < hole.frames < 25
                assert made.changed_labels == ["hole.mp4"]
    labels["videos"]["a.mp4"] = {"action": "s", "boundaries": [10]}  # the video is sound: an error
    (folder / "labels.json").write_text(json.dumps(labels))
    assert main([str(folder), "--verify"]) == 2
    assert "a.mp4: boundary 10 lies past the video's 9 frames" in capsys.readouterr().err


def test_frames_behind_a_gap_keep_their_labels(tmp_path, monkeypatch):
    """A gap counts: its frames have numbers and labels."""
    clip(tmp_path / "a.mp4")
    labels = content()
    labels["videos"]["a.mp4"] = {"action": "s", "phases": [0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(LabelError, match="11 phases for 9 frames"):
        build_index(tmp_path)
    (tmp_path / ".fastseq_index.partial").unlink()  # the file is checked again
    info = dataclasses.replace(probe(tmp_path / "a.mp4"), frames=9, gaps=((2, 4), (6, 7)))
    monkeypatch.setattr("fastseq.video.probe", lambda path, **options: info)
    build_index(tmp_path)
    index = load_index(tmp_path)
    assert index.videos[0].phases.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert index.videos[0].gaps == ((2, 4), (6, 7))
    assert index.changed_labels == ["a.mp4"]
