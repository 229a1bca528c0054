"""WebDataset shards: samples by the headers of a tar, and shards of a folder."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastseq.video.source import pictures_in, read_bytes
from training.data import shards
from training.data.samples import Sample, ShardError, read_shard, samples_of
from training.data.shards import write_shards
from training.support.command import UserError


def make_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            file.addfile(member, io.BytesIO(content))
    return path


def located(tar: Path, sample: Sample) -> str:
    return f"{tar}#{sample.offset}+{sample.size}"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_by_their_names(tmp_path, format):
    long = "d" * 90 + "/" + "n" * 90 if format != tarfile.USTAR_FORMAT else "d/n"
    members = {
        "./b.mp4": b"first",
        "./b.json": b'{"action": "x", "caption": "cat", "trim": [1, 2]}',
        "./b.txt": b"a cat",
        "./b.cls": b"7",
        "v 1.2/é.left.MKV": b"left",
        "v 1.2/é.right.webm": b"right",
        "v 1.2/é.json": b"[1]",
        f"{long}.0001.jpg": b"one",
        f"{long}.0003.jpg": b"two",
        f"{long}.0002.png": b"three",
        f"{long}.json": b'{"fps": 30}',
        "few.1.jpg": b"1",
        "few.2.jpg": b"2",
        "mask.depth.1.jpg": b"no number right after the key",
        "alone.json": b"not read",
        "._b.mp4": b"hidden",
        "dir.mp4/": b"",
        "raw.video": b"anything",
    }
    tar = make_tar(tmp_path / "a.tar", members, format=format)
    shard = read_shard(tar)
    found = [(one.key, one.name, one.entry) for one in shard.samples]
    assert found == [
        ("b", "b.mp4", {"action": "x", "trim": [1, 2]}),
        ("v 1.2/é", "v 1.2/é.left.MKV", {}),
        ("v 1.2/é", "v 1.2/é.right.webm", {}),
        (long, long, {"fps": 30}),
        ("raw", "raw.video", {}),
    ]
    assert [one.pictures for one in shard.samples] == [False, False, False, True, False]
    contents = [read_bytes(located(tar, shard.samples[place])) for place in (0, 1, 2, 4)]
    assert contents == [b"first", b"left", b"right", b"anything"]
    pictures = pictures_in(located(tar, shard.samples[3]))
    assert [name.rpartition(".n")[0] for name, *_ in pictures] == [""] * 3
    assert [read_bytes(f"{tar}#{start}+{size}") for _, start, size in pictures] == [
        b"one",
        b"three",
        b"two",
    ]
    assert shard.ignored == {".cls": 1, ".jpg": 3, ".json": 1, ".txt": 1}
    assert samples_of(tar) == shard.samples


def test_a_tar_without_media(tmp_path):
    tar = make_tar(tmp_path / "a.tar", {"a.txt": b"text", "a.npy": b"array"})
    assert samples_of(tar) == []
    assert samples_of(make_tar(tmp_path / "b.tar", {})) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.mp4": b"1", "./a.mp4": b"2"}, "two members have the name a.mp4"),
        ({"a.mp4": b"1", "a.json": b"{}", "./a.json": b"{}"}, "two members have the name a.json"),
        ({"a.mp4": b"1", "a.json": b"{"}, "a.json is not JSON"),
        ({"a.mp4": b"1", "a.json": b"\xff"}, "a.json is not JSON"),
        (
            {"a.1.jpg": b"1", "a.2.jpg": b"2", "b.txt": b"", "a.3.jpg": b"3"},
            "the pictures of a do not follow each other; sort",
        ),
        ({f"a.{n}.jpg": b"1" for n in (1, 2, 3, "02")}, "two pictures of a have the number 2"),
    ],
)
def test_samples_that_cannot_be(tmp_path, members, message):
    tar = make_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=rf"^{tar}: {message}"):
        samples_of(tar)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd"),
    ],
)
def test_compressed_tars(tmp_path, pack, kind):
    tar = make_tar(tmp_path / "a.tar", {"a.mp4": bytes(900)})
    tar.write_bytes(pack(tar.read_bytes()))
    with pytest.raises(ShardError, match=rf"compressed \({kind}\).*unpack"):
        samples_of(tar)


def test_tars_that_are_cut_off(tmp_path):
    tar = make_tar(tmp_path / "a.tar", {"a.mp4": bytes(900), "b.mp4": b"x" * 900})
    whole = tar.read_bytes()
    ends = [sample.offset + sample.size for sample in samples_of(tar)]
    assert ends == [512 + 900, 2048 + 900]
    # Within the data, at the end of a member, within a header, and before the end mark.
    for cut in (100, 700, 1536, 1700, 2200, 3071, 3072, 3500):
        tar.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="cut off"):
            samples_of(tar)
    tar.write_bytes(whole[:1536] + b"\xee" * 512 + whole[2048:])
    with pytest.raises(ShardError, match=r"damaged or cut off after 1 members \(byte 1536\)"):
        samples_of(tar)
    tar.write_bytes(b"")
    with pytest.raises(ShardError, match="no tar file"):
        samples_of(tar)
    with pytest.raises(FileNotFoundError):
        samples_of(tmp_path / "none.tar")


def record(folder: Path, name: str, content: bytes | list[bytes], **more) -> SimpleNamespace:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.mkdir()
        for number, one in enumerate(content):
            (path / f"{number + 5:03d}.JPG").write_bytes(one)
    usual = {"action": "all", "split": "train", "view": "", "phases": None, "unchecked": False}
    usual |= {"trim": None, "crop": None, "sync": None, "fps": 12.5}
    return SimpleNamespace(id=name, path=str(path), **{**usual, **more})


def index_of(folder: Path, videos: list, **more) -> SimpleNamespace:
    usual = {"classes": {"x": ["a", "b"]}, "class_sets": {"": {"x": ["a", "b"]}}, "bad": []}
    return SimpleNamespace(folder=folder, videos=videos, **{**usual, **more})


def small_index(folder: Path, count: int = 12) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    return index_of(folder, [record(folder, f"{n}.mp4", rng.bytes(6000 + n)) for n in range(count)])


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def read_back(out: Path) -> dict[str, tuple[dict, list[bytes]]]:
    """name -> (entry, the bytes of the video or of its pictures) of all shards."""
    found = {}
    for tar in sorted(out.glob("*.tar")):
        for sample in samples_of(tar):
            locator = located(tar, sample)
            parts = [f"{tar}#{start}+{size}" for _, start, size in pictures_in(locator)]
            data = [read_bytes(part) for part in parts or [locator]]
            found[f"{tar.name}/{sample.name}"] = (sample.entry, data)
    return found


def test_everything_is_in_the_shards(tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    phases = np.array([0, 0, -1, 1, 1, -1])
    full = {
        "action": "x",
        "split": "val",
        "view": "ego",
        "phases": phases,
        "unchecked": True,
        "trim": (1, 4),
        "crop": (0, 2, 8, 8),
        "sync": ("g", 3),
    }
    videos = [
        record(folder, "a.b/c.1.MP4", b"full", **full),
        record(folder, "a_b/c_1.mkv", b"same key"),
        record(folder, "é ö", b"no ending", phases=np.array([-1, -1])),
        record(folder, "frames/0001", [b"f1", b"f2", b"f3"]),
    ]
    summary = write_shards(index_of(folder, videos, bad=[{}] * 2), out, progress=False)
    assert summary.startswith("1 shard (0 kept from before) with 4 videos, 0.0 MB, in ")
    assert "not in the shards: 2 files that cannot be read" in summary
    entry = {
        **{"action": "x", "split": "val", "view": "ego", "trim": [1, 4], "crop": [0, 2, 8, 8]},
        **{"sync": {"group": "g", "offset": 3}, "remark": "to be checked"},
        "segments": [[0, 2, 0], [3, 5, 1]],
    }
    plain = {"action": "all", "split": "train"}
    expected = {
        "shard-000000.tar/a_b/c_1.mp4": (entry, [b"full"]),
        "shard-000000.tar/a_b/c_1_2.mkv": (plain, [b"same key"]),
        "shard-000000.tar/é ö.video": (plain, [b"no ending"]),
        "shard-000000.tar/frames/0001": ({**plain, "fps": 12.5}, [b"f1", b"f2", b"f3"]),
    }
    assert read_back(out) == expected
    labels = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    assert labels["classes"] == {"x": ["a", "b"]}
    assert labels["videos"] == {name: entry for name, (entry, _) in expected.items()}
    with tarfile.open(out / "shard-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "fastseq", "fastseq", 0o644)
    }
    assert "frames/0001.000001.jpg" in [member.name for member in members]


def test_webdataset_reads_the_shards(tmp_path):
    import webdataset

    index = small_index(tmp_path / "videos")
    write_shards(index, tmp_path / "out", 0.01, progress=False)
    urls = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(urls) > 2
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert {one["__key__"]: one["mp4"] for one in samples} == {
        video.id[:-4]: Path(video.path).read_bytes() for video in index.videos
    }


def test_several_class_sets(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    videos = [record(folder, "a.mp4", b"a"), record(folder, "b.mp4", b"b")]
    sets = {"gym99": {"all": ["a", "b"]}, "gym288": {"all": ["c", "d", "e"]}}
    labelled = {
        "gym99": [("train", np.array([1, 1])), ("test", None)],
        "gym288": [("val", np.array([-1, 2])), ("test", None)],
    }

    def load_index(given, *, class_set, check):
        assert (given, check) == (folder, False)
        both = zip(videos, labelled[class_set], strict=True)
        more = [{**vars(v), "split": split, "phases": phases} for v, (split, phases) in both]
        return index_of(folder, [SimpleNamespace(**one) for one in more])

    monkeypatch.setattr(shards, "load_index", load_index)
    index = index_of(folder, videos, classes=sets["gym99"], class_sets=sets)
    write_shards(index, tmp_path / "out", progress=False)
    content = json.loads((tmp_path / "out/labels.json").read_text())
    assert content == {
        "class_sets": sets,
        "videos": {
            "shard-000000.tar/a.mp4": {
                "action": "all",
                "split": "train",
                "labels": {
                    "gym99": {"segments": [[0, 2, 1]], "split": "train"},
                    "gym288": {"segments": [[1, 2, 2]], "split": "val"},
                },
            },
            "shard-000000.tar/b.mp4": {"action": "all", "split": "test"},
        },
    }


def test_sizes_and_order(tmp_path):
    index = small_index(tmp_path / "videos")
    write_shards(index, tmp_path / "out", 0.0308, progress=False)
    sizes = [
        [one.size for one in samples_of(tar)] for tar in sorted((tmp_path / "out").glob("*.tar"))
    ]
    assert [len(shard) for shard in sizes] == [3, 3, 3, 3]
    files = [tar.stat().st_size for tar in (tmp_path / "out").glob("*.tar")]
    assert files == [30_720] * 4  # 3 * (512 + 6,144 + 512 + 512) + 1,024, in units of 10,240
    assert all(sum(shard) <= 30_800 for shard in sizes)
    order = [size - 6000 for shard in sizes for size in shard]
    assert order == np.random.default_rng(0).permutation(12).tolist() != sorted(order)
    write_shards(index, tmp_path / "alone", 1e-6, progress=False, seed=1)
    names = sorted((tmp_path / "alone").glob("*.tar"))
    order = [samples_of(tar)[0].size - 6000 for tar in names]
    assert order == np.random.default_rng(1).permutation(12).tolist()


@pytest.mark.parametrize("length", [3, 120])
def test_no_tar_is_larger_than_the_size(tmp_path, length):
    """Names of more than 100 bytes and others than ASCII need further headers."""
    folder = tmp_path / "videos"
    videos = [record(folder, f"{'é' * length}{n}.mp4", bytes(400 + 40 * n)) for n in range(30)]
    index = index_of(folder, videos)
    for size in (10_240, 20_480, 30_719, 30_720):
        write_shards(index, tmp_path / f"{size}", size / 1e6, progress=False)
        found = [tar.stat().st_size for tar in (tmp_path / f"{size}").glob("*.tar")]
        assert max(found) == size // 10_240 * 10_240


def test_files_of_others_among_the_shards_are_refused(tmp_path):
    index, out = small_index(tmp_path / "videos"), tmp_path / "out"
    write_shards(index, out, 0.0308, progress=False)
    own = ["fastseq_index.sqlite", "labels.propagated.json", "labels.json.bak.1", ".hidden"]
    for name in own:
        (out / name).touch()
    write_shards(index, out, 0.0308, progress=False)
    (out / "shard-000001.tar").rename(out / "part-b.tar")
    (out / "notes.txt").touch()
    before = contents(out)
    message = r"has files that --shards did not write: notes.txt, part-b.tar; move them away"
    with pytest.raises(UserError, match=message):
        write_shards(index, out, 0.0308, progress=False)
    assert contents(out) == before


def test_equal_calls_write_equal_bytes(tmp_path, monkeypatch):
    index = small_index(tmp_path / "videos")
    write_shards(index, tmp_path / "one", 0.0308, progress=False)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_shards(index, tmp_path / "two", 0.0308, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_call_is_continued(tmp_path, monkeypatch):
    index, out = small_index(tmp_path / "videos"), tmp_path / "out"
    write_shards(index, tmp_path / "whole", 0.0308, progress=False)
    reads = []

    def fails_late(path):
        reads.append(path)
        if len(reads) == 10:
            raise KeyboardInterrupt
        return read_bytes(path)

    monkeypatch.setattr(shards, "read_bytes", fails_late)
    with pytest.raises(KeyboardInterrupt):
        write_shards(index, out, 0.0308, progress=False)
    assert sorted(path.name for path in out.iterdir()) == [
        ".fastseq_shards.json",
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    (out / ".shard-000002.tar.77.part").write_bytes(b"of a process that was killed")
    kept = (out / "shard-000001.tar").stat().st_mtime_ns
    reads = [None] * 10
    assert "4 shards (2 kept from before)" in write_shards(index, out, 0.0308, progress=False)
    # The third shard's three videos, the one that did not fit into it and the last three.
    assert len(reads) - 10 == 7
    assert (out / "shard-000001.tar").stat().st_mtime_ns == kept
    assert contents(out) == contents(tmp_path / "whole")


def test_what_has_changed_is_written_again(tmp_path):
    index, out = small_index(tmp_path / "videos"), tmp_path / "out"

    def kept(**more):
        return int(write_shards(index, out, progress=False, **more).split("(")[1].split()[0])

    assert kept(size_mb=0.0308) == 0
    assert kept(size_mb=0.0308) == 4
    os.utime(index.videos[3].path, ns=(1, 1))
    assert kept(size_mb=0.0308) == 3
    index.videos[5].action = "x"
    assert kept(size_mb=0.0308) == 3
    with open(out / "shard-000002.tar", "ab") as file:
        file.write(bytes(512))
    assert kept(size_mb=0.0308) == 3
    assert kept(size_mb=0.041) == 0
    assert sorted(path.name for path in out.glob("*.tar")) == [
        f"shard-00000{number}.tar" for number in range(3)
    ]
    assert kept(size_mb=0.041, seed=1) == 0
    index.videos.pop()
    assert kept(size_mb=0.041, seed=1) == 0
    names = list(read_back(out))
    assert sorted(json.loads((out / "labels.json").read_text())["videos"]) == sorted(names)
    assert len(names) == 11


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("videos/shards", "must be two folders, neither inside the other"),
        (".", "must be two folders"),
        ("foreign", "has files, but no shards written here; choose an empty folder"),
    ],
)
def test_folders_that_are_refused(tmp_path, out, message):
    index = small_index(tmp_path / "videos", 2)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/a.mp4").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        write_shards(index, tmp_path / out, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_edited_labels_are_not_overwritten(tmp_path):
    index, out = small_index(tmp_path / "videos", 2), tmp_path / "out"
    write_shards(index, out, progress=False)
    labels = out / "labels.json"
    labels.write_text(labels.read_text() + " ")
    with pytest.raises(UserError, match=r"labels.json was edited after .* edit the labels of .*"):
        write_shards(index, out, progress=False)
    labels.unlink()
    write_shards(index, out, progress=False)
    (out / ".fastseq_shards.json").write_text("{}")
    with pytest.raises(UserError, match=r"fastseq_shards\.json is damaged"):
        write_shards(index, out, progress=False)


def test_other_errors(tmp_path, monkeypatch):
    index = small_index(tmp_path / "videos", 2)
    with pytest.raises(UserError, match="the size of shards must be above 0 MB, got 0"):
        write_shards(index, tmp_path / "out", 0, progress=False)
    with pytest.raises(UserError, match="has no video that can be read"):
        write_shards(index_of(tmp_path, []), tmp_path / "out", progress=False)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'pip install "fastseq\[shards\]"') as caught:
        write_shards(index, tmp_path / "out", progress=False)
    assert caught.value.name is None  # commands print the message as it stands
    assert not (tmp_path / "out").exists()
