"""Which files of a folder count as videos, and the report on the others."""

import os
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from video.counter_video import encode, read_counter  # noqa: E402

import training.data.files  # noqa: E402
from fastseq.video import read_frames  # noqa: E402
from training.data.files import as_patterns, by_name, find_videos, holds_video  # noqa: E402
from training.data.index import StaleIndex, build_index, load_index  # noqa: E402
from training.prepare import main  # noqa: E402
from training.support.files import write_text  # noqa: E402

ENDINGS = {  # with a codec that FFmpeg's own muxer supports
    "mxf": "mpeg2video",
    "vob": "mpeg2video",
    "m2v": "mpeg2video",
    "m1v": "mpeg1video",
    "asf": "mpeg4",
    "nut": "mpeg4",
    "h264": "libx264",
    "f4v": "libx264",
    "y4m": "wrapped_avframe",
    "ivf": "libvpx",
    "rm": "rv10",
}


def picture(path, codec="png", level=90):
    """One all-grey picture in the given coding, whatever its name."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = 64, 48, Fraction(1, 25)
    context.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24", "bmp": "bgr24"}[codec]
    pixels = np.full((48, 64, 3), level, np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    packets = [*context.encode(frame.reformat(format=context.pix_fmt)), *context.encode(None)]
    path.write_bytes(b"".join(map(bytes, packets)))
    return path


def song_with_cover(path):
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        still = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        container.mux(cover.encode(still))
        container.mux(cover.encode(None))
        tone = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        tone.sample_rate = 8000
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    return path


def test_the_common_endings_of_videos(tmp_path, capsys):
    for ending, codec in ENDINGS.items():
        encode(tmp_path / f"clip.{ending}", 12, codec=codec)
    (tmp_path / "CLIP.MXF").write_bytes((tmp_path / "clip.mxf").read_bytes())
    assert main([str(tmp_path)]) == 0
    index = load_index(tmp_path)
    assert {video.id: video.frames for video in index.videos} == dict.fromkeys(
        ["CLIP.MXF", *(f"clip.{ending}" for ending in sorted(ENDINGS))], 12
    )
    assert "ignored" not in capsys.readouterr().out


def test_files_whose_endings_say_nothing_are_looked_at(tmp_path, capsys):
    video = encode(tmp_path / "a.mp4", 12).read_bytes()
    for name in ("v_0001", "take.1", "clip.DAT", "deep.dir/b.0003"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(video)
    song_with_cover(tmp_path / "song")
    for codec in ("png", "mjpeg", "bmp"):
        picture(tmp_path / f"picture_{codec}", codec)
    twice = picture(tmp_path / "picture_twice", "mjpeg")  # like a photograph with its preview
    twice.write_bytes(2 * twice.read_bytes())
    (tmp_path / "README").write_text("text\n")
    (tmp_path / "art").write_text("\x1b[31mred\x1b[0m\n" * 99)  # a picture to FFmpeg
    (tmp_path / "list").write_text(f"ffconcat version 1.0\nfile {tmp_path}/a.mp4\n")
    (tmp_path / "empty").write_bytes(b"")
    noise = np.random.default_rng(0)
    for number in range(20):
        (tmp_path / f"noise.x{number}").write_bytes(noise.bytes(40_000))
    assert main([str(tmp_path)]) == 0
    taken = ["a.mp4", "clip.DAT", "deep.dir/b.0003", "take.1", "v_0001"]
    assert [video.id for video in load_index(tmp_path).videos] == taken
    out = capsys.readouterr().out
    assert "ignored: 9 without ending (README, art, empty, ...), 1 .x0 (noise.x0), " in out
    assert "--include PATTERN" in out
    numbers = [read_counter(frame) for frame in read_frames(tmp_path / "v_0001")]
    assert numbers == list(range(12))


def test_endings_of_other_things_are_not_looked_at(tmp_path, capsys, monkeypatch):
    video = encode(tmp_path / "a.mp4", 12).read_bytes()
    for name in ("b.txt", "c.JSON", "d.jpg", "e.wav", "f.npy", "g.pt", "h.mp4~", "i.mp4.part"):
        (tmp_path / name).write_bytes(video)
    (tmp_path / "events.out.tfevents.17.host").write_bytes(b"-")  # a run's
    monkeypatch.setattr(training.data.files, "holds_video", None)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for said in ("1 .txt (b.txt)", "1 .json (c.JSON)", "1 .jpg (d.jpg)", "1 .part (i.mp4.part)"):
        assert said in out
    assert [video.id for video in load_index(tmp_path).videos] == ["a.mp4"]


def test_include(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    video = encode(folder / "a.mp4", 12).read_bytes()
    (folder / "sub [1]").mkdir()
    for name in ("b.txt", "sub [1]/c.bin", "d.jpg"):
        (folder / name).write_bytes(video)
    (folder / "e.txt").write_text("-\n" * 99)
    (folder / "f.bin").write_bytes(video[: len(video) // 2])
    picture(folder / "g.bin", "mjpeg")
    given = ["*.txt", str(folder / "sub [1]" / "c.bin"), "?.bin", "none*"]
    assert as_patterns(folder, given)[1] == "sub [[]1]/c.bin"  # a path, not a pattern
    assert main([str(folder), "--include", *given[:2], "--include", *given[2:]]) == 0
    out = capsys.readouterr().out
    index = load_index(folder)
    assert [video.id for video in index.videos] == ["a.mp4", "b.txt", "sub [1]/c.bin"]
    assert [entry["path"] for entry in index.bad] == ["e.txt", "f.bin"]  # included as videos
    assert "ignored: 1 .jpg (d.jpg), 1 .bin (g.bin)\n" in out  # never a picture
    assert "--include none*: no file of this name" in out
    encode(folder / "new.mp4", 3)
    with pytest.raises(StaleIndex, match=r"--include '\*\.txt' 'sub \[\[\]1\]/c\.bin' '\?\.bin'"):
        load_index(folder)
    assert main([str(folder), "--transcode", str(tmp_path / "out"), "--include", "*.txt"]) == 0
    assert {v.id for v in load_index(tmp_path / "out").videos} == {"a.mp4", "b.txt.mp4", "new.mp4"}


def test_new_files_are_noticed_without_opening_any(tmp_path, monkeypatch):
    video = encode(tmp_path / "a.mp4", 12).read_bytes()
    (tmp_path / "README").write_text("text")
    (tmp_path / "noted.txt").write_text("text")
    build_index(tmp_path)
    monkeypatch.setattr(training.data.files, "holds_video", None)
    monkeypatch.setattr(av, "open", None)
    load_index(tmp_path)
    (tmp_path / "README").write_text("another text")
    (tmp_path / "run").mkdir()
    for name in ("log.jsonl", "config.yaml", "events.out.tfevents.1.host", "step_7.pt", "x.log"):
        (tmp_path / "run" / name).write_text("-")  # files that training writes do not matter
    load_index(tmp_path)
    (tmp_path / "clip").write_bytes(video)
    with pytest.raises(StaleIndex, match="clip is new"):
        load_index(tmp_path)


def test_broken_links_and_pictures_by_name():
    assert by_name("a.MKV") is True
    assert by_name("a.heic") is by_name("a.jpg", ["*"]) is by_name("a.mp3") is False
    assert by_name("a") is by_name("a.b/c.2") is by_name("a.txt", ["*.txt"]) is None


def test_photographs_in_a_video_container(tmp_path):
    """The brand distinguishes HEIC and AVIF from videos."""
    data = encode(tmp_path / "a.mp4", 2).read_bytes()
    assert data[4:12] == b"ftypisom"
    for brand, video in ((b"isom", True), (b"heic", False), (b"avif", False)):
        (tmp_path / "clip").write_bytes(data[:8] + brand + data[12:])
        assert holds_video(tmp_path / "clip") is video


def test_a_linked_folder_and_a_pipe(tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe")  # opening it would wait for ever
    os.symlink("nowhere", tmp_path / "in" / "lost")
    assert find_videos(tmp_path / "in").ignored == {
        "lost": "broken link",
        "pipe": "not a regular file",
    }


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    new, shared, private = (tmp_path / name for name in ("new", "shared", "private"))
    for path, mode in ((shared, 0o664), (private, 0o600)):
        path.write_text("before")
        path.chmod(mode)
    before = os.umask(0o022)
    try:
        for path in (new, shared, private):
            write_text(path, "after")
    finally:
        os.umask(before)
    assert [path.read_text() for path in (new, shared, private)] == ["after"] * 3
    modes = [path.stat().st_mode & 0o777 for path in (new, shared, private)]
    assert modes == [0o644, 0o664, 0o600]
