"""Files, options and machines that the DALI engine cannot serve: it says which and why."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("nvidia.dali", reason='needs DALI: pip install "fastseq[dali]"')

import av
from anew import imported_anew
from counter_video import HEIGHT, WIDTH, counter_frame
from dali_cases import (
    ANY_VERSION,
    COUNT,
    VERSION,
    X264,
    check_counters,
    encode,
    needs_h264,
    plain,
    reading_of,
    run,
    vp9,
)

from fastseq.video import VideoError, read_frames
from fastseq.video.engines import dali as dali_engine
from fastseq.video.engines.dali import DaliEngine, unsupported
from fastseq.video.readings import Clip, Reading


def broken(path):
    """A file that opens, and whose middle does not decode."""
    encode(path, COUNT, options=X264)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(bytes(data))
    return path


@needs_h264
def test_a_file_that_fails_in_dali_is_named_with_the_reason(tmp_path, engine):
    """The batches before it come out, it is found among the others, another run works."""
    frames, draws = [range(0, COUNT, 3)], [plain(HEIGHT, WIDTH)]
    good = reading_of(encode(tmp_path / "good.mp4", COUNT, options=X264), frames, draws)
    bad = reading_of(broken(tmp_path / "broken.mp4"), frames, draws)
    got = []
    with pytest.raises(VideoError, match=r"frame \d+ was requested.* damaged") as expected:
        read_frames(bad.path, frames[0])
    with pytest.raises(VideoError, match=re.escape(str(expected.value))) as caught:
        got.extend(engine.batches(lambda k: [good, bad if k == 3 else good], 0, 9))
    assert len(got) == 3
    assert caught.value.path == bad.path
    again = list(engine.batches(lambda k: [good, good], 3, 5))
    assert torch.equal(again[0], got[0])


def test_files_that_cannot_be_read_say_why(tmp_path, engine):
    good = vp9(tmp_path / "whole.webm", 40)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    cut = ANY_VERSION["mjpeg.avi"](tmp_path / "cut.avi")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    draw = plain(HEIGHT, WIDTH)
    reasons = {
        "empty.mp4": "empty",
        "noise.mp4": "not a video file",
        "missing.mp4": "No such file",
        "cut.avi": r"the file is damaged \(the file breaks off.*PyAV engine reads its sound frames",
    }
    good = reading_of(good, [[3]], [draw])
    for name, reason in reasons.items():
        clip = Clip(np.array([3]), draw)
        bad = Reading(str(tmp_path / name), HEIGHT, WIDTH, HEIGHT, (clip,))
        with pytest.raises(VideoError, match=reason) as caught:
            run(engine, [good], [good, bad])
        assert caught.value.path == bad.path
    for frames in ([0, 40], [-1, 3]):
        wrong = Reading(good.path, 144, 160, 144, (Clip(np.array(frames), draw),))
        with pytest.raises(VideoError, match=rf"frame ({frames[0]}|40) was requested.* 40 frames"):
            run(engine, [wrong])
    stale = Reading(good.path, HEIGHT + 8, WIDTH, HEIGHT, good.clips)
    with pytest.raises(VideoError, match="160 x 144, but were expected as 64 x 56"):
        run(engine, [stale])
    assert len(run(engine, [good])) == 1


def test_what_dali_says_when_pyav_reads_the_file(tmp_path, engine, monkeypatch):
    path = ANY_VERSION["mjpeg.mkv"](tmp_path / "unknown.mkv")
    mpeg4 = encode(tmp_path / "unknown.avi", 30, codec="mpeg4")
    draw = plain(HEIGHT, WIDTH)
    readings = [reading_of(path, [[3]], [draw]), reading_of(mpeg4, [[3]], [draw])]
    with pytest.raises(VideoError, match="does not decode the codec 'mpeg4' on the CPU"):
        run(engine, readings)
    monkeypatch.setattr(dali_engine, "unsupported", lambda *_: None)
    with pytest.raises(
        RuntimeError, match=r"PyAV reads \(.*unknown\.mkv, .*unknown\.avi\): .*pipeline"
    ):
        run(engine, readings)


def two_streams(path):
    """The first stream is small, the second one is what FFmpeg calls best."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libvpx-vp9", rate=25) for _ in range(2)]
        for stream, size in zip(streams, ((160, 144), (320, 240)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"cpu-used": "8"}
        streams[0].disposition = av.stream.Disposition.dub
        streams[1].disposition = av.stream.Disposition.default
        for number in range(5):
            for stream in streams:
                pixels = counter_frame(number, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def test_of_several_streams_the_one_that_players_show_is_decoded(tmp_path, engine, monkeypatch):
    path = two_streams(tmp_path / "two_streams.mkv")
    reading = reading_of(path, [[3]], [plain(HEIGHT, WIDTH)])
    assert (reading.height, reading.width) == (240, 320)
    # What comes out of the decoder is looked at, should DALI take another one.
    file = dali_engine.inspect(
        str(ANY_VERSION["vp9.webm"](tmp_path / "one.webm")), "cpu", VERSION, 9
    )
    monkeypatch.setattr(dali_engine, "inspect", lambda *_: file)
    with pytest.raises(
        VideoError, match=r"decodes \[1, 240, 320, 3\] instead of \[1, 144, 160, 3\]"
    ):
        run(engine, [dataclasses.replace(reading, height=144, width=160)])


def test_errors_of_the_source_come_through(tmp_path, engine):
    path = vp9(tmp_path / "source.webm", 10)
    good = [reading_of(path, [[3]], [plain(HEIGHT, WIDTH)])]

    def source(k):
        if k == 2:
            raise KeyError("no such batch")
        return good

    got = []
    with pytest.raises(KeyError, match="no such batch"):
        got.extend(engine.batches(source, 0, 5))
    ragged = [good[0], reading_of(path, [[3, 4]], [plain(HEIGHT, WIDTH)])]
    with pytest.raises(ValueError, match=r"same number of frames, got \[\[1\], \[2\]\]"):
        run(engine, ragged)


def test_what_is_missing_is_named(monkeypatch):
    needed = pytest.raises(ImportError, match=re.escape('pip install "fastseq[dali]"'))
    with imported_anew("fastseq.video.engines.dali", lacking=("nvidia.dali",)) as dali, needed:
        dali.DaliEngine(48)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch sees no CUDA device"):
        DaliEngine(48, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(dali_engine.ctypes, "CDLL", no_library)
    with pytest.raises(RuntimeError, match=r"libnvcuvid\.so\.1.*driver capability `video`"):
        DaliEngine(48, device="gpu")
    for wrong in ({"device": "tpu"}, {"prefetch": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DaliEngine(48, **wrong)


def test_unsupported():
    def reason(codec, device="cpu", version="2.4.0", note="", path="a.mp4"):
        return unsupported(SimpleNamespace(path=path, codec=codec, note=note), device, version)

    for codec in ("vp8", "vp9", "mjpeg"):
        assert reason(codec) is reason(codec, version="2.1.0") is reason(codec, "gpu") is None
    for codec in ("h264", "hevc"):
        assert reason(codec, version="2.1.0") is reason(codec, "gpu") is None
        assert "2.1.0 was the last" in reason(codec)
        assert "2.1.0 was the last" in reason(codec, version="2.1.1")
        assert "2.1.0 was the last" in reason(codec, version="2.10.0")
    assert "fastseq.video.transcode(source, target)" in reason("mpeg4", version="2.1.0")
    assert "PyAV" in reason("mpeg4")
    assert "fastseq.video.transcode(source, target)" in reason("prores", "gpu")
    for device in ("cpu", "gpu"):
        assert "damaged (breaks off)" in reason("vp9", device, note="breaks off")
        assert "DALI opens no .flv" in reason("h264", device, "2.1.0", path="live/A.FLV")


@needs_h264
@pytest.mark.parametrize("name", ["h264.flv", "h264.mpg", "h264.ts"])
def test_containers_that_dali_does_not_open_are_named(tmp_path, engine, name):
    path = encode(tmp_path / name, 30)
    readings = [reading_of(path, [[4]], [plain(48, 64)])]
    if name.endswith(".ts"):
        return check_counters(engine, path)
    with pytest.raises(VideoError, match=r"DALI opens no .*; the PyAV engine reads them"):
        run(engine, readings)
