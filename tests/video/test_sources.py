"""Videos in memory, in file objects and in tars: the same frames as those of the file alone."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from counter_video import OPEN_GOP, X264, encode, remux

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    TwoViews,
    VideoError,
    VideoInfo,
    probe,
    read_frames,
    transcode,
)
from fastseq.video.engines.dali import unsupported
from fastseq.video.pictures import pictures_of
from fastseq.video.source import (
    Contents,
    as_source,
    file_of,
    holds_pictures,
    pictures_in,
    read_bytes,
    tar_range,
)

COUNT = 40
WANTED = [39, 0, 17, 17, 30]
MAKE = {
    "closed.mp4": lambda path: encode(path, COUNT, options=X264),
    "open.mkv": lambda path: encode(path, COUNT, options=OPEN_GOP),
    "open.ts": lambda path: encode(path, COUNT, options=OPEN_GOP),  # no timeline
    "in_avi.avi": lambda path: encode(path, COUNT, options=X264),
    "edited.mp4": lambda path: remux(encode(path.with_stem("w"), 45, options=X264), path, shift=5),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> a video file alone, and its member of a tar with an awkward name as a locator."""
    folder = tmp_path_factory.mktemp("sources")
    alone = {name: make(folder / name) for name, make in MAKE.items()}
    tar = folder / "a, b:,,#1+2 é.tar"
    with tarfile.open(tar, "w") as file:
        for name, path in alone.items():
            file.add(path, name)
    with tarfile.open(tar) as file:
        places = {member.name: member for member in file}
    inside = {name: f"{tar}#{places[name].offset_data}+{places[name].size}" for name in alone}
    return {name: (str(alone[name]), inside[name]) for name in alone}


def plain(info: VideoInfo) -> dict:
    """What is known of a video, but not its path."""
    known = {**vars(info), "path": ""}
    if info.timeline is not None:
        known |= {**vars(info.timeline), "timeline": ""}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in known.items()}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("kind", ["bytes", "file", "tar"])
def test_equal_to_the_file_alone(files, name, kind):
    path, inside = files[name]
    with open(path, "rb") as file:
        given = {"bytes": Path(path).read_bytes(), "file": file, "tar": inside}[kind]
        info, alone = probe(given), probe(path)
        assert plain(info) == plain(alone)
        assert plain(probe(given, decode=True)) == plain(probe(path, decode=True))
        assert info.path == {"bytes": "<bytes>", "file": path, "tar": inside}[kind]
        assert type(info.path) is str
        expected = read_frames(path, WANTED)
        assert torch.equal(read_frames(given, WANTED), expected)
        assert torch.equal(read_frames(given, WANTED, info=info), expected)
        assert torch.equal(read_frames(given, short_side=24), read_frames(path, short_side=24))


@pytest.mark.parametrize(
    "make",
    [bytearray, memoryview, lambda data: memoryview(np.repeat(np.frombuffer(data, "u1"), 2))[::2]],
)
def test_data_in_memory(files, make):
    path = files["closed.mp4"][0]
    data = make(Path(path).read_bytes())
    assert probe(data).path == "<bytes>"
    assert torch.equal(read_frames(data, [5]), read_frames(path, [5]))


def test_file_objects_keep_their_position(files, tmp_path):
    path = files["closed.mp4"][0]
    expected = read_frames(path, WANTED)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.mp4")
    tar = str(tmp_path / "a.tar")
    with tarfile.open(tar, "w") as archive:
        archive.add(path, "a.mp4")
    with (
        open(path, "rb") as file,
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("a.mp4") as packed,
        tarfile.open(tar) as shard,
        shard.extractfile("a.mp4") as member,
    ):
        for one, name in (
            (file, path),
            (io.BytesIO(Path(path).read_bytes()), "<BytesIO>"),
            (packed, "a.mp4"),
            (member, f"<ExFileObject of {tar}>"),
        ):
            for position in (one.seek(0, io.SEEK_END), 7):
                one.seek(position)
                assert probe(one).path == name
                assert torch.equal(read_frames(one, WANTED), expected)
                assert one.tell() == position
            assert not one.closed
        with pytest.raises(VideoError, match="frame 40 was requested"):
            read_frames(file, [COUNT])
        assert file.tell() == 7


class Pipe(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        return 0


class OnlyReads:
    def read(self, count=-1):
        return b""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Pipe, r"can seek, got Pipe without; pass its contents: path.read\(\)"),
        (OnlyReads, "can seek, got OnlyReads without"),
        (lambda: io.StringIO("text"), r"binary file object, got StringIO in text mode; .*'rb'"),
        (lambda: 3, r"str or os.PathLike\), its contents \(bytes\) or a binary file .* got int"),
        (lambda: None, "got NoneType"),
        (lambda: ["a.mp4"], "got list"),
        (lambda: os.fsencode(__file__), r"bytes are the contents .*pass os.fsdecode\(path\)"),
    ],
)
def test_what_is_no_source(make, message):
    for function in (probe, read_frames):
        with pytest.raises(TypeError, match=f"path must be .*{message}"):
            function(make())


def test_data_that_is_no_video():
    with pytest.raises(VideoError, match=r"^<bytes>: it is empty"):
        probe(b"")
    with pytest.raises(VideoError, match=r"^<BytesIO>: it is empty"):
        read_frames(io.BytesIO())
    with pytest.raises(VideoError, match=r"^<bytes>: not a video file") as caught:
        probe(bytes(5000))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), type(error.path)) == (str(caught.value), str)


def test_errors_of_a_name_carry_no_data(files):
    source = as_source(Path(files["closed.mp4"][0]).read_bytes())
    assert isinstance(source, Contents)
    assert len(pickle.dumps(source)) < 100


def retarred(path: Path, names: list[str], content: bytes) -> None:
    with tarfile.open(path, "w") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_a_tar_that_has_changed(files, tmp_path):
    content = Path(files["closed.mp4"][0]).read_bytes()
    tar = tmp_path / "a.tar"
    retarred(tar, ["a.mp4", "b.mp4"], content)
    with tarfile.open(tar) as file:
        first, last = (f"{tar}#{m.offset_data}+{m.size}" for m in file)
    changed = "the tar has changed since it was indexed; prepare its folder again"

    def fails(locator, message):
        for read in (probe, read_frames, read_bytes):
            with pytest.raises(VideoError) as caught:
                read(locator)
            assert str(caught.value) == f"{locator}: {message}"

    assert read_bytes(first) == read_bytes(last) == content
    offset, _, size = last.rpartition("#")[2].partition("+")
    for cut in (int(offset) + int(size) - 1, 20):
        os.truncate(tar, cut)
        fails(last, changed)
    retarred(tar, ["a.mp4", "b.mp4"], content + bytes(512))
    fails(first, changed)
    fails(last, changed)
    with tarfile.open(tar, "w") as file:  # a link in its place
        member = tarfile.TarInfo("a.mp4")
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "b.mp4", len(content)
        file.addfile(member)
    fails(first, changed)
    fails(f"{tar}#0+{len(content)}", changed)
    tar.unlink()
    fails(first, "its tar a.tar is missing")


def test_clips_from_a_tar_are_those_of_the_file(files):
    def batch(paths, workers=0):
        items = TwoViews([probe(path) for path in paths], 8, Augmentation(size=16))
        engine = PyAVEngine(16, workers=workers)
        return next(iter(ClipLoader(items, 2, engine=engine, seed=1)))["frames"]

    alone, inside = zip(files["closed.mp4"], files["open.mkv"], strict=True)
    assert torch.equal(batch(inside), batch(alone))


def test_a_copy_of_a_member_of_a_tar(files, tmp_path):
    path, inside = files["edited.mp4"]
    for number, source in enumerate((path, inside)):
        transcode(source, tmp_path / f"{number}.mp4", short_side=48)
    assert torch.equal(read_frames(tmp_path / "0.mp4"), read_frames(tmp_path / "1.mp4"))


def test_dali_names_formats_that_it_does_not_open():
    info = VideoInfo("/a/b.tar#512+900", 40, 32, 24, 0, 25.0, "mjpeg")

    class Record:
        def __init__(self, name):
            self.__dict__.update({**vars(info), "id": name})

    assert unsupported(Record("b.tar/x.avi"), "cpu", "2.1.0") is None
    assert "opens no .flv" in unsupported(Record("b.tar/x.MPG"), "cpu", "2.1.0")


def test_files_behind_locators(tmp_path):
    (tmp_path / "a*").touch()
    assert file_of(tmp_path / "a*") == tmp_path / "a*"
    assert file_of(f"{tmp_path}/frames/img_*.jpg") == tmp_path / "frames"
    assert file_of("/a/b#c.tar#512+900") == Path("/a/b#c.tar")
    assert file_of(b"/a/b.mp4") == Path("/a/b.mp4")
    assert tar_range("/a/b.TAR#512+900") == ("/a/b.TAR", 512, 900)
    for other in ("/a/b.tar", "/a/b.tar#512", "/a/b.mp4#512+900", "/a/b.tar#-1+3", "b.tar#1+2 "):
        assert tar_range(other) is None
    with pytest.raises(VideoError, match="No such file"):
        read_bytes(str(tmp_path / "none.mp4"))


def frames_tar(path: Path, names: list[str]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.mtime = 0.5  # an extended header
            content = name.encode()
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as file:
        return {member.name: member for member in file}


def test_pictures_in_a_tar(tmp_path):
    tar = tmp_path / "a.tar"
    names = ["a.mp4", "x.y/k.10.jpg", "x.y/k.json", "x.y/k.9.PNG", "x.y/k.mask.jpg", "x.y/k.2.webp"]
    members = frames_tar(tar, [*names, "z.1.jpg"])
    first, last = members["x.y/k.10.jpg"], members["x.y/k.2.webp"]
    assert first.offset_data - first.offset > 512
    size = last.offset_data + last.size - first.offset
    found = pictures_in(f"{tar}#{first.offset}+{size}")
    assert [name for name, *_ in found] == ["x.y/k.2.webp", "x.y/k.9.PNG", "x.y/k.10.jpg"]
    for name, offset, length in found:
        assert read_bytes(f"{tar}#{offset}+{length}") == name.encode()
    video = members["a.mp4"]
    alone = f"{tar}#{video.offset_data}+{video.size}"
    assert pictures_in(alone) == []
    assert holds_pictures(f"{tar}#{first.offset}+{size}")
    for other in (alone, str(tar), str(tmp_path), f"{tmp_path}/none.tar#0+900"):
        assert not holds_pictures(other)
    assert pictures_in(str(tar)) == pictures_in(str(tmp_path)) == []
    for wrong in (size - 1, size + 600, 10**7):
        with pytest.raises(VideoError, match=r"a\.tar#\d+\+\d+: the tar has changed"):
            pictures_in(f"{tar}#{first.offset}+{wrong}")
    os.truncate(tar, last.offset_data + 3)
    with pytest.raises(VideoError, match="the tar has changed"):
        pictures_in(f"{tar}#{first.offset}+{size}")
    with pytest.raises(VideoError, match=r"its tar b\.tar is missing"):
        pictures_in(f"{tmp_path}/b.tar#0+900")


def test_a_file_object_is_no_folder_whatever_its_name(files, tmp_path, monkeypatch):
    """A member of a zip may have the name of a folder of pictures, or of a part of a tar."""
    (tmp_path / "frames").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path(files["closed.mp4"][0])
    for name in ("frames", "frames/i_*.jpg", "a.tar#0+512"):
        file = io.BytesIO(path.read_bytes())
        file.name = name
        assert probe(file).path == name
        assert torch.equal(read_frames(file), read_frames(path))


def test_file_objects_of_other_modes(files, tmp_path):
    """A file that was written a moment ago, and one whose mode is a number."""
    content = Path(files["closed.mp4"][0]).read_bytes()
    with tempfile.SpooledTemporaryFile() as file, gzip.open(tmp_path / "a.gz", "wb") as packed:
        packed.write(content)
        packed.close()
        file.write(content)
        assert probe(file).frames == COUNT
        assert file.tell() == len(content)
        with gzip.open(tmp_path / "a.gz") as unpacked:
            assert probe(unpacked).frames == COUNT


def test_awkward_names_with_a_tar_in_them(files, tmp_path):
    path, inside = files["closed.mp4"]
    place = tar_range(inside)
    tar = tmp_path / "a*.tar"
    shutil.copy(place.tar, tar)
    locator = f"{tar}#{place.first}+{place.size}"
    assert plain(probe(locator)) == plain(probe(path))
    file = tmp_path / "b.tar#1+2"  # a file that exists is that file
    shutil.copy(path, file)
    assert torch.equal(read_frames(file), read_frames(path))
    assert file_of(file) == file
    with pytest.raises(VideoError, match="No such file"):
        probe(f"{place.tar}#{10**30}+5")


def test_a_copy_needs_a_name(files, tmp_path):
    content = Path(files["closed.mp4"][0]).read_bytes()
    with pytest.raises(TypeError, match=r"^source must be the name of a file .* got bytes; write"):
        transcode(content, tmp_path / "b.mp4")


def test_two_pictures_of_one_number_in_a_tar(tmp_path):
    members = frames_tar(tmp_path / "a.tar", ["k.1.jpg", "k.2.jpg", "k.02.png"])
    first, *_, last = members.values()
    locator = f"{tmp_path}/a.tar#{first.offset}+{last.offset_data + last.size - first.offset}"
    with pytest.raises(VideoError, match=r"k.2.jpg and k.02.png have the same number"):
        read_frames(locator)


def test_a_rate_does_not_hide_that_nothing_is_there(tmp_path):
    missing = {
        "none": "No such file",
        "none/i_*.jpg": "No such file",
        "none.tar#0+512": r"its tar none\.tar is missing",
    }
    for name, message in missing.items():
        with pytest.raises(VideoError, match=message):
            probe(tmp_path / name, fps=25)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, form):
    """Long and foreign names, extended headers, links and folders between the pictures."""
    tar = tmp_path / "a.tar"
    names = [
        "k.1.jpg",
        "é/k.2.jpg",
        f"{'a' * 90}/{'b' * 80}.3.jpg",
        "k.4.jpg/",
        "k.5.jpg",
        "k.6.png",
    ]
    if form != tarfile.USTAR_FORMAT:
        names.insert(3, f"{'é' * 200}.7.jpg")
    with tarfile.open(tar, "w", format=form) as file:
        for number, name in enumerate([*names, "k.8.jpg"]):
            member = tarfile.TarInfo(name)
            member.size = 700 * number
            member.mtime = number / 2 if form == tarfile.PAX_FORMAT else number
            if name.endswith("/"):
                member.type, member.size = tarfile.DIRTYPE, 0
            if name == "k.5.jpg":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "k.1.jpg", 0
            file.addfile(member, io.BytesIO(bytes([number]) * member.size))
    with tarfile.open(tar) as file:
        members = list(file)
    last = members[-1]
    expected = [(m.name, m.offset_data, m.size) for m in members if m.isreg()]
    expected.sort(key=lambda picture: picture[0].split(".")[-2])
    assert len(expected) == len(names) - 1
    assert pictures_in(f"{tar}#0+{last.offset_data + last.size}") == expected


def test_pictures_that_vanish_while_they_are_read(tmp_path, monkeypatch):
    members = frames_tar(tmp_path / "a.tar", ["k.1.jpg", "k.2.jpg"])
    first, last = members.values()
    locator = f"{tmp_path}/a.tar#{first.offset}+{last.offset_data + last.size - first.offset}"
    found = pictures_of(locator)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(VideoError, match=r"a.tar#0\+\d+: no frame can be decoded: none of"):
        found.info()
