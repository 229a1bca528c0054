"""The index file: what is stored, what is checked again, and whether it is up to date.

The files are empty and their check is faked, so that hundreds of them take no time.
"""

import dataclasses
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from fastseq.video import VideoInfo
from training.data import build, probes
from training.data.files import Found
from training.data.index import (
    INDEX_NAME,
    StaleIndex,
    VideoRecord,
    build_index,
    load_index,
    load_indexes,
)
from training.data.labels import LabelError
from training.data.packing import packed_times
from training.data.records import Columns
from training.support.command import UserError

PARTIAL = ".fastseq_index.partial"


class Checks:
    """A fake of `fastseq.video.probe`: calls, and facts of some files other than the usual ones."""

    def __init__(self):
        self.calls: list[tuple[str, bool]] = []
        self.facts: dict[str, dict] = {}
        self.times: dict[str, np.ndarray] = {}
        self.lock = threading.Lock()

    def __call__(self, path, *, decode=False, time_limit=None, fps=None):
        name = os.path.basename(path)
        with self.lock:
            self.calls.append((name, decode))
        facts = self.facts.get(name, {})
        if isinstance(facts, BaseException):
            raise facts
        info = VideoInfo(path, 40, 64, 48, 0, fps or 20.0, "h264")
        if name in self.times:
            info = dataclasses.replace(info, decoded_at=self.times[name])
        return dataclasses.replace(info, **facts)

    def made(self):
        """Names of the files checked since the last call."""
        names, self.calls = sorted(name for name, _ in self.calls), []
        return names


@pytest.fixture
def checks(monkeypatch):
    made = Checks()
    monkeypatch.setattr("fastseq.video.probe", made)
    return made


@pytest.fixture
def folder(tmp_path):
    """Six files in nested folders; labels of four of them."""
    for name in ("a", "b", "deep/c", "deep/er/d", "e", "z/f"):
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    write_labels(
        tmp_path / "videos",
        {
            "a.mp4": {"action": "x", "split": "test", "view": "ego", "boundaries": [10, 30]},
            "b.mp4": {"action": "y", "phases": [-1] * 20 + [1] * 20, "remark": "to be checked"},
            "deep/c.mp4": {"trim": [4, 29], "crop": [1, 2, 30, 40], "split": "val"},
            "e.mp4": {"action": "x", "sync": {"group": "g", "offset": 3}, "view": "exo"},
        },
    )
    return tmp_path / "videos"


def write_labels(folder, videos, **others):
    classes = {} if "class_sets" in others else {"classes": {"x": ["r", "s", "t"], "y": ["u", "v"]}}
    (folder / "labels.json").write_text(json.dumps({**classes, "videos": videos, **others}))


IDS = ["a.mp4", "b.mp4", "deep/c.mp4", "deep/er/d.mp4", "e.mp4", "z/f.mp4"]


# --- records and columns ---


def test_every_attribute_of_a_record_is_stored(folder, checks):
    rare = {
        "note": "breaks off",
        "rotation": 90,
        "mirrored": True,
        "gaps": ((0, 2), (7, 9)),
        "random_access": False,
        "remarks": ("two streams", "odd"),
    }
    checks.facts["d.mp4"] = rare | {"fps": 12.5}
    checks.facts["c.mp4"] = {"gaps": ((5, 6),), "frames": 41, "width": 100, "height": 200}
    build_index(folder)
    a, b, c, d, e, f = load_index(folder).videos
    assert a == VideoRecord("a.mp4", str(folder / "a.mp4"), 40, 20.0, 64, 48)
    assert (a.action, a.split, a.view, a.codec) == ("x", "test", "ego", "h264")
    assert a.phases.tolist() == [0] * 10 + [1] * 20 + [2] * 10
    assert a.phases.dtype == np.int64
    assert not a.unchecked
    assert b.phases.tolist() == [-1] * 20 + [1] * 20
    assert b.unchecked
    assert (c.trim, c.crop, c.split, c.phases) == ((4, 29), (1, 2, 30, 40), "val", None)
    assert (c.gaps, c.frames, c.width, c.height) == (((0, 4), (5, 6), (30, 41)), 41, 100, 200)
    assert {name: getattr(d, name) for name in rare} == rare
    assert d.fps == 12.5
    assert (e.sync, e.view) == (("g", 3), "exo")
    plain = VideoRecord("z/f.mp4", str(folder / "z/f.mp4"), 40, 20.0, 64, 48, codec="h264")
    assert dataclasses.asdict(f) == dataclasses.asdict(plain)


def test_videos_are_a_sequence_of_records(folder, checks):
    videos = build_index(folder).videos
    records = list(videos)
    assert [record.id for record in records] == IDS
    assert len(videos) == 6
    assert videos == records
    assert records == videos
    assert videos != records[:5]
    assert videos[-1] == records[5] == videos[np.int64(5)]
    assert list(videos[1::2]) == records[1::2]
    assert videos[1::2][2] == records[5]
    assert records[2] in videos
    assert videos.index(records[2]) == 2
    with pytest.raises(IndexError):
        videos[6]
    assert {records[0], videos[0]} == {records[0]}
    some = videos.take([4, 0])
    assert [record.id for record in some] == ["e.mp4", "a.mp4"]
    assert [record.id for record in some.take(np.array([False, True]))] == ["a.mp4"]
    assert not videos.take([])
    assert [record.id for record in videos[::-1]] == IDS[::-1]


def test_columns(folder, checks):
    checks.facts["b.mp4"] = {"gaps": ((3, 5),), "note": "damaged"}
    videos = build_index(folder).videos
    for name in ("frames", "fps", "width", "height", "id", "path", "action", "split", "view"):
        values = videos.column(name)
        assert values.tolist() == [getattr(video, name) for video in videos], name
    assert videos.column("sound").tolist() == [40, 38, 26, 40, 40, 40]
    assert videos.column("shard").tolist() == [-1] * 6
    assert videos.column("labelled").tolist() == [True, True, False, False, False, False]
    assert videos.column("special").tolist() == [False, True, True, False, True, False]
    assert videos[4:1:-2].column("id").tolist() == ["e.mp4", "deep/c.mp4"]
    for name in ("frames", "sound", "shard", "source"):
        assert videos.column(name).dtype == np.int64
    with pytest.raises(KeyError, match="no column 'length'"):
        videos.column("length")


def test_where(folder, checks):
    videos = build_index(folder).videos

    def ids(**wanted):
        return [video.id for video in videos.where(**wanted)]

    assert ids() == IDS
    assert ids(split="test") == ["a.mp4"]
    assert ids(split=["test", "val"]) == ["a.mp4", "deep/c.mp4"]
    assert ids(action="x") == ["a.mp4", "e.mp4"]
    assert ids(action="x", view="exo") == ["e.mp4"]
    assert ids(action=["none"]) == []
    assert [v.id for v in videos[::-1].where(action="x")] == ["e.mp4", "a.mp4"]


def test_no_record_is_made_before_it_is_used(folder, checks, monkeypatch):
    build_index(folder)
    made = []
    record = Columns.record
    monkeypatch.setattr(Columns, "record", lambda self, row: made.append(row) or record(self, row))
    videos = load_index(folder).videos.where(split="train")
    videos = pickle.loads(pickle.dumps(videos))
    assert videos.column("id").tolist() == [IDS[1], *IDS[3:]]
    assert not made
    assert videos[1].id == "deep/er/d.mp4"
    assert made == [3]


def test_true_times(folder, checks):
    ticks = np.cumsum([0, *np.random.default_rng(0).choice([3003, 6006, 4511], 39)])
    checks.times["a.mp4"] = ticks / 90_000
    even, other = np.arange(40) / 20, np.arange(40) == 20
    checks.times["b.mp4"] = even + np.where(other, 0.0009, 0)  # less than a tick of Matroska
    checks.times["c.mp4"] = even + np.where(other, 0.0012, 0)
    build_index(folder)
    a, b, c, *_ = load_index(folder).videos
    assert a.times.dtype == np.float64
    assert np.abs(a.times - ticks / 90_000).max() <= 1e-9
    assert b.times is None
    assert c.times[20] - c.times[19] == pytest.approx(0.0512, abs=1e-9)
    long = np.cumsum(np.random.default_rng(0).choice([3003, 6006], 300)) / 90_000
    assert len(packed_times(long, 30.0)) < 300  # bytes, of 2400


# --- what is checked again ---


def test_only_new_and_changed_files_are_checked(folder, checks):
    index = build_index(folder)
    assert (index.checked, index.kept) == (6, 0)
    assert checks.made() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
    before = [dataclasses.asdict(video) for video in index.videos]
    (folder / "b.mp4").write_bytes(b"longer")
    os.utime(folder / "deep/c.mp4", ns=(0, 5))
    (folder / "deep/n.mp4").write_bytes(b"")
    (folder / "e.mp4").unlink()
    labels = json.loads((folder / "labels.json").read_text())
    del labels["videos"]["e.mp4"]
    (folder / "labels.json").write_text(json.dumps(labels))
    index = build_index(folder)
    assert checks.made() == ["b.mp4", "c.mp4", "n.mp4"]
    assert (index.checked, index.kept) == (3, 3)
    after = {video.id: dataclasses.asdict(video) for video in load_index(folder).videos}
    assert [*after] == ["a.mp4", "b.mp4", "deep/c.mp4", "deep/er/d.mp4", "deep/n.mp4", "z/f.mp4"]
    for video in (before[0], before[3], before[5]):
        np.testing.assert_equal(after[video["id"]], video)


def test_facts_that_are_kept_are_the_same(folder, checks):
    checks.times["a.mp4"] = np.linspace(0, 3, 40) ** 2
    checks.facts["b.mp4"] = {"gaps": ((3, 5),), "note": "damaged", "remarks": ("r",), "fps": 1 / 3}
    checks.facts["c.mp4"] = {"gaps": ((6, 9),), "note": "damaged"}  # beside its trim
    checks.facts["d.mp4"] = {"interlaced": True}
    checks.facts["e.mp4"] = ValueError("broken")
    first = build_index(folder)
    checks.made()
    write_labels(folder, {})
    second = build_index(folder)
    assert not checks.made()
    assert second.videos[2].gaps == ((6, 9),)
    assert second.videos[2].trim is None
    assert second.bad == first.bad
    assert [entry["path"] for entry in first.bad] == ["deep/er/d.mp4", "e.mp4"]
    for name in ("times", "gaps", "note", "remarks", "fps"):
        for one, two in zip(first.videos[:2], second.videos[:2], strict=True):
            np.testing.assert_equal(getattr(one, name), getattr(two, name))
    write_labels(folder, {"a.mp4": {"action": "y", "boundaries": [7]}})
    assert build_index(folder).videos[0].phases.tolist() == [0] * 7 + [1] * 33
    assert not checks.made()


def test_verify_decodes_only_what_was_not_decoded(folder, checks):
    checks.facts["a.mp4"] = ValueError("broken")
    build_index(folder)
    assert {decode for _, decode in checks.calls} == {False}
    checks.made()
    build_index(folder, verify=True)
    assert {decode for _, decode in checks.calls} == {True}
    assert len(checks.made()) == 6
    os.utime(folder / "b.mp4", ns=(0, 0))
    build_index(folder)
    assert checks.made() == ["b.mp4"]
    build_index(folder, verify=True)
    assert checks.made() == ["b.mp4"]


def test_settings_that_change_what_a_check_finds(folder, checks, monkeypatch):
    checks.facts["a.mp4"] = ValueError("too slow")
    build_index(folder, time_limit=5)
    checks.made()
    build_index(folder, time_limit=9)
    assert checks.made() == ["a.mp4"]  # the others could be read
    monkeypatch.setattr(build, "reader_version", lambda: "another")
    build_index(folder, time_limit=9)
    assert len(checks.made()) == 6


def test_an_index_that_cannot_be_read_is_made_again(folder, checks):
    for content in (b"", b"SQLite format 3\0", b"[]"):
        (folder / INDEX_NAME).write_bytes(content)
        build_index(folder)
        assert len(checks.made()) == 6
        assert len(load_index(folder).videos) == 6


def test_an_interrupted_check_continues(folder, checks, monkeypatch):
    build_index(folder)
    for name in IDS:
        os.utime(folder / name, ns=(0, 0))
    checks.made()
    before = (folder / INDEX_NAME).read_bytes()
    checks.facts["d.mp4"] = KeyboardInterrupt()
    monkeypatch.setattr(build, "in_threads", lambda look, names, *_: [look(n) for n in names])
    with pytest.raises(KeyboardInterrupt):
        build_index(folder)
    assert checks.made() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert (folder / INDEX_NAME).read_bytes() == before
    with open(folder / PARTIAL, "ab") as file:  # a line that a killed process began
        file.write(b'["e.mp4", [0, 0, fal')
    checks.facts.clear()
    index = build_index(folder)
    assert checks.made() == ["d.mp4", "e.mp4", "f.mp4"]
    assert (index.checked, index.kept) == (3, 3)
    assert not (folder / PARTIAL).exists()


def test_a_line_after_one_that_was_cut_off_is_whole(tmp_path):
    checked = probes.Checked(probes.Probe(frames=3), (1, 2), False, None, 60.0, "r")
    (tmp_path / "journal").write_bytes(b'["a", [1, 2')
    journal = probes.Journal(tmp_path / "journal")
    with journal:
        journal.add("b", checked)
    assert journal.read() == {"b": checked}


def test_checks_are_kept_when_labels_do_not_fit(folder, checks):
    write_labels(folder, {"a.mp4": {"action": "x", "boundaries": [99]}})
    with pytest.raises(UserError, match="boundary 99 lies past"):
        build_index(folder)
    checks.made()
    write_labels(folder, {"a.mp4": {"action": "x", "boundaries": [9]}})
    build_index(folder)
    assert not checks.made()


def test_a_full_disk_leaves_the_old_index(folder, checks):
    build_index(folder)
    before = (folder / INDEX_NAME).read_bytes()
    write_labels(folder, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=f"{INDEX_NAME} cannot be written: "):
            build_index(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / INDEX_NAME).read_bytes() == before
    assert not list(folder.glob(".*.part"))


SLOWLY = """
import sys, time
from pathlib import Path
from unittest import mock

from fastseq.video import VideoInfo
from training.data import probes
from training.data.index import build_index

probes.Journal._SECONDS = 0.05

def probe(path, **options):
    time.sleep(0.02)
    print(Path(path).name, flush=True)
    return VideoInfo(path, 40, 64, 48, 0, 20.0, "h264")

with mock.patch("fastseq.video.probe", probe):
    build_index(sys.argv[1])
"""


def start(folder):
    command = [sys.executable, "-c", SLOWLY, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_a_killed_check_continues(tmp_path, checks):
    for number in range(200):
        (tmp_path / f"{number:03d}.mp4").write_bytes(b"")
    process = start(tmp_path)
    for _ in range(60):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / INDEX_NAME).exists()
    index = build_index(tmp_path)
    assert index.checked == len(checks.made())
    assert index.kept >= 20
    assert len(load_index(tmp_path).videos) == 200


@pytest.mark.process
def test_two_checks_at_the_same_time(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:03d}.mp4").write_bytes(b"")
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert len(load_index(tmp_path).videos) == 60
    assert [path.name for path in tmp_path.glob(".*")] == []


# --- up to date or not ---


def stale(folder):
    with pytest.raises(StaleIndex) as caught:
        load_index(folder)
    return str(caught.value)


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


def found_as(monkeypatch, entries=None, **places):
    """Make `find_videos` find these videos at these places, with entries of labels.json."""

    def find_videos(folder, include=(), *, pictures=None, progress=False):
        others = {name: place for name, place in places.items() if place != name}
        in_folders = [name for name, place in places.items() if "#" not in place]
        return Found(
            sorted(places),
            {},
            [],
            [],
            [],
            places=others,
            pictures=in_folders,
            entries=entries or {},
        )

    monkeypatch.setattr(build, "find_videos", find_videos)


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


# --- class sets, several folders ---


def test_class_sets(folder, checks):
    sets = {
        "coarse": {"x": ["r", "s"], "all": ["p"]},
        "fine": {"x": ["r1", "r2", "s1"], "all": ["q"]},
    }
    videos = {
        "a.mp4": {
            "action": "x",
            "split": "test",
            "labels": {
                "coarse": {"boundaries": [20]},
                "fine": {"phases": [2] * 40, "split": "val"},
            },
        },
        "b.mp4": {"labels": {"fine": {"segments": [[5, 8, "q"]]}}, "remark": "to be checked"},
    }
    write_labels(folder, videos, class_sets=sets)
    build_index(folder)
    coarse, fine = (load_index(folder, class_set=name) for name in ("coarse", "fine"))
    assert load_index(folder).class_set == "coarse"
    assert coarse.class_sets == fine.class_sets == sets
    assert (coarse.classes, fine.classes) == (sets["coarse"], sets["fine"])
    a, b = coarse.videos[:2]
    assert (a.split, a.phases.tolist()) == ("test", [0] * 20 + [1] * 20)
    assert (b.split, b.phases, b.unchecked) == ("train", None, False)
    a, b = fine.videos[:2]
    assert (a.split, a.phases.tolist()) == ("val", [2] * 40)
    assert b.phases.tolist() == [-1] * 5 + [0] * 3 + [-1] * 32
    assert b.unchecked
    assert [video.id for video in fine.videos.where(split="val")] == ["a.mp4"]
    with pytest.raises(UserError, match="have no class set 'none'; known: coarse, fine"):
        load_index(folder, class_set="none")
    write_labels(folder, {})
    build_index(folder)
    with pytest.raises(UserError, match="no class set 'fine': their phases are in \"classes\""):
        load_index(folder, class_set="fine")


def test_several_folders(folder, tmp_path, checks, monkeypatch):
    build_index(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.mp4").write_bytes(b"")
    checks.facts["zero.mp4"] = ValueError("broken")
    (other / "zero.mp4").write_bytes(b"")
    (other / "labels.json").write_text(
        '{"classes": {"y": ["u", "v"], "new": ["n"]}, "videos": {"a.mp4": {"action": "new"}, '
        '"zero.mp4": {}}}'
    )
    build_index(other)
    assert load_indexes([folder]).videos == load_index(folder).videos
    index = load_indexes([folder, other])
    assert [v.id for v in index.videos] == [f"videos/{id_}" for id_ in IDS] + ["other/a.mp4"]
    assert index.videos.column("id").tolist() == [video.id for video in index.videos]
    last = index.videos[6]
    assert (last.path, last.source, last.action) == (str(other / "a.mp4"), 1, "new")
    assert index.videos.column("source").tolist() == [0] * 6 + [1]
    assert [v.id for v in index.videos.where(action=["x", "new"])] == [
        *("videos/a.mp4", "videos/e.mp4", "other/a.mp4")
    ]
    assert index.videos[4].sync == ("videos/g", 3)
    assert [v.id for v in index.videos.take([6, 0])] == ["other/a.mp4", "videos/a.mp4"]
    assert index.classes == {"x": ["r", "s", "t"], "y": ["u", "v"], "new": ["n"]}
    assert index.bad == [{"path": "other/zero.mp4", "reason": "ValueError: broken"}]
    assert index.unused_labels == ["other/zero.mp4"]
    assert index.folders == (folder, other)
    (other / "new.mp4").write_bytes(b"")
    with pytest.raises(StaleIndex, match=r"new.mp4 is new"):
        load_indexes([folder, other])
    assert len(load_indexes([folder, other], check=False).videos) == 7


def test_shards_of_several_folders_have_different_numbers(tmp_path, checks, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for shard in ("s.tar", "t.tar"):
            (tmp_path / name / shard).write_bytes(b"0" * 2048)
        found_as(monkeypatch, **{"s.tar/a.mp4": "s.tar#512+1", "t.tar/a.mp4": "t.tar#512+1"})
        build_index(tmp_path / name)
    videos = load_indexes([tmp_path / "one", tmp_path / "two"]).videos
    assert videos.column("shard").tolist() == [0, 1, 2, 3] == [video.shard for video in videos]


def test_folders_that_cannot_be_joined(folder, tmp_path, checks):
    build_index(folder)
    twin = tmp_path / "more" / "videos"
    other = tmp_path / "other"
    for path, phases in ((twin, ["r", "s", "t"]), (other, ["r", "t"])):
        path.mkdir(parents=True)
        (path / "a.mp4").write_bytes(b"")
        (path / "labels.json").write_text(json.dumps({"classes": {"x": phases}}))
        build_index(path)
    with pytest.raises(UserError, match=f"{folder} and {twin} have the same name.*rename one"):
        load_indexes([folder, twin])
    with pytest.raises(UserError, match=r"'x' has the phases r, s, t in .*videos and r, t in .*o"):
        load_indexes([folder, other])
    with pytest.raises(UserError, match="no folder of videos is given"):
        load_indexes([])


def test_only_folders_with_phases_need_the_class_set(tmp_path, checks):
    sets = {"fine": {"pour": ["a", "b"]}, "coarse": {"pour": ["all"]}}
    marked = {"action": "pour", "labels": {"fine": {"boundaries": [3]}}}
    content = {"class_sets": sets, "videos": {"v.mp4": marked}}
    labelled, plain = tmp_path / "labelled", tmp_path / "plain"
    for one in (labelled, plain):
        one.mkdir()
        (one / "v.mp4").write_bytes(b"")
    (labelled / "labels.json").write_text(json.dumps(content))
    build_index(labelled)
    build_index(plain)
    for folders in ([labelled, plain], [plain, labelled]):
        index = load_indexes(folders, class_set="fine")
        assert (index.class_set, index.classes) == ("fine", sets["fine"])
        assert sorted(index.videos.column("labelled").tolist()) == [False, True]
    with pytest.raises(UserError, match="no class set 'none'"):
        load_indexes([plain, labelled], class_set="none")
    (labelled / "labels.json").unlink()
    build_index(labelled)
    with pytest.raises(UserError, match="no class set 'fine'"):
        load_indexes([plain, labelled], class_set="fine")
    with pytest.raises(UserError, match="plain is given twice; name each folder once"):
        load_indexes([plain, labelled, plain])


def test_advice_names_the_labels_file_elsewhere(folder, tmp_path, checks):
    elsewhere = tmp_path / "my labels.json"
    elsewhere.write_text(json.dumps({"videos": {"a.mp4": {"split": "test"}}}))
    build_index(folder, labels=elsewhere)
    (folder / "b.mp4").unlink()
    assert stale(folder).endswith(f"{folder} --labels '{elsewhere}'`")
    write_labels(folder, {})
    build_index(folder)
    (folder / "c.mp4").write_bytes(b"")
    assert stale(folder).endswith(f"{folder}`")
