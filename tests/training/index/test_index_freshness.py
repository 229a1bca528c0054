"""Whether an index is up to date, with videos in shards and videos stored as pictures.

The files are empty and their check is faked, so that hundreds of them take no time.
"""

import os

import pytest
from faked_checks import found_as, stale, write_labels

from training.data.index import (
    build_index,
    load_index,
)
from training.data.labels import LabelError


def test_what_makes_an_index_stale(folder, checks):
    build_index(folder)
    load_index(folder)
    (folder / "notes.txt").write_text("no video")
    (folder / "empty").mkdir()
    (folder / ".hidden.mp4").write_bytes(b"")
    os.symlink(folder, folder / "deep" / "loop")
    os.symlink("itself", folder / "itself")
    load_index(folder)
    (folder / "empty" / "n.mp4").write_bytes(b"")
    (folder / "unknown.xyz").write_bytes(b"")
    status = (folder / "deep" / "c.mp4").stat()
    (folder / "deep" / "c.mp4").write_bytes(b"longer")
    os.utime(folder / "deep" / "c.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "b.mp4").unlink()
    (folder / "z" / "f.mp4").unlink()
    (folder / "z").rmdir()
    os.utime(folder / "a.mp4", ns=(0, 0))
    assert (
        "(unknown.xyz is new, empty/n.mp4 is new, a.mp4 has changed, b.mp4 is gone, deep/c.mp4 has "
        f"changed and 1 more): run `python -m training.prepare {folder}`"
    ) in stale(folder)
    assert len(load_index(folder, check=False).videos) == 6


def test_a_known_file_without_video_is_not_new(folder, checks, monkeypatch):
    (folder / "unknown.xyz").write_bytes(b"")
    build_index(folder, include=["*.q"])
    load_index(folder)
    (folder / "unknown.xyz").unlink()
    load_index(folder)
    (folder / "other.q").write_bytes(b"")
    assert "(other.q is new): run `python -m training.prepare" in stale(folder)
    assert stale(folder).endswith("--include '*.q'`")


def test_the_index_of_an_earlier_version(folder, checks):
    (folder / "fastseq_index.json").write_text("{}")
    assert "is one of an earlier version: run `python -m training.prepare" in stale(folder)
    build_index(folder)
    load_index(folder)
    assert not (folder / "fastseq_index.json").exists()


def test_videos_in_shards(tmp_path, checks, monkeypatch):
    for name in ("s-0.tar", "s-1.tar"):
        (tmp_path / name).write_bytes(b"0" * 4096)
    places = {
        "s-0.tar/a.mp4": "s-0.tar#512+100",
        "s-0.tar/b.mp4": "s-0.tar#1536+100",
        "s-1.tar/c.mp4": "s-1.tar#512+100",
    }
    found_as(monkeypatch, **places)
    index = build_index(tmp_path)
    assert sorted(checks.made()) == ["s-0.tar#1536+100", "s-0.tar#512+100", "s-1.tar#512+100"]
    assert [video.path for video in index.videos] == [f"{tmp_path}/{p}" for p in places.values()]
    assert index.videos.column("path").tolist() == [video.path for video in index.videos]
    assert index.videos.column("shard").tolist() == [0, 0, 1]
    assert [video.shard for video in index.videos] == [0, 0, 1]
    assert len(load_index(tmp_path).videos) == 3
    os.utime(tmp_path / "s-0.tar", ns=(0, 0))
    assert "(s-0.tar has changed)" in stale(tmp_path)
    build_index(tmp_path)
    assert len(checks.made()) == 2
    (tmp_path / "s-2.tar").write_bytes(b"")
    assert "(s-2.tar is new)" in stale(tmp_path)


def test_labels_in_shards(tmp_path, checks, monkeypatch):
    (tmp_path / "s.tar").write_bytes(b"0" * 2048)
    places = {"s.tar/a.mp4": "s.tar#512+1", "s.tar/b.mp4": "s.tar#1024+1"}
    entry = {"action": "x", "split": "test", "boundaries": [7]}
    found_as(monkeypatch, dict.fromkeys(places, entry), **places)
    with pytest.raises(LabelError, match=r"s.tar/a.mp4: .*does not list the phases of .*'x'"):
        build_index(tmp_path)
    write_labels(tmp_path, {"s.tar/b.mp4": {"split": "val"}})
    a, b = build_index(tmp_path).videos
    assert (a.action, a.split, a.phases.tolist()) == ("x", "test", [0] * 7 + [1] * 33)
    assert (b.action, b.split, b.phases) == ("all", "val", None)


def picture_folder(path, prefixes=("",)):
    path.mkdir(parents=True)
    for prefix in prefixes:
        for number in range(3):
            (path / f"{prefix}{number:03d}.jpg").write_bytes(b"")


def test_videos_stored_as_pictures(tmp_path, checks, monkeypatch):
    picture_folder(tmp_path / "frames/1")
    picture_folder(tmp_path / "frames/2", ("img_", "flow_"))
    picture_folder(tmp_path / "frames/3", ("img_", "flow_"))
    places = {"frames/1": "frames/1", "frames/2": "frames/2/img_*.jpg"}
    found_as(monkeypatch, **places)
    (tmp_path / "labels.json").write_text('{"videos": {"frames/2": {"fps": 50}}}')
    index = build_index(tmp_path, fps=10)
    assert [(v.id, v.path, v.fps) for v in index.videos] == [
        ("frames/1", f"{tmp_path}/frames/1", 10.0),
        ("frames/2", f"{tmp_path}/frames/2/img_*.jpg", 50.0),
    ]
    load_index(tmp_path)
    assert len(checks.made()) == 2
    build_index(tmp_path, fps=12)
    assert checks.made() == ["1"]
    (tmp_path / "frames/3/img_004.jpg").write_bytes(b"")  # no video before or now
    load_index(tmp_path)
    (tmp_path / "frames/2/img_004.jpg").write_bytes(b"")
    picture_folder(tmp_path / "frames/4")
    assert "(frames/4 is new, frames/2 has changed)" in stale(tmp_path)
    assert stale(tmp_path).endswith("--fps 12`")
