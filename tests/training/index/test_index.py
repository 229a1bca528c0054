"""The index file: what is stored, class sets, and several folders as one index.

The files are empty and their check is faked, so that hundreds of them take no time.
"""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from faked_checks import IDS, found_as, stale, write_labels

from training.data.index import (
    StaleIndex,
    VideoRecord,
    build_index,
    load_index,
    load_indexes,
)
from training.data.packing import packed_times
from training.data.records import Columns
from training.support.command import UserError

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
