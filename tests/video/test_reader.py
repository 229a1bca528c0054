import pickle
import re

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from anew import imported_anew  # noqa: E402
from counter_video import (  # noqa: E402
    HEVC,
    OPEN_GOP,
    X264,
    counter_frame,
    encode,
    read_counter,
    remux,
    set_rotation,
)

from fastseq.video import (  # noqa: E402
    VideoError,
    probe,
    read_frames,
    scaled_size,
    write_video,
)

COUNT = 97
IRREGULAR = np.cumsum([0, *np.random.default_rng(3).integers(5, 200, COUNT - 1)]).tolist()


FILES = {
    "h264_b_frames.mp4": lambda p: encode(p, COUNT, options=X264),
    "h264_open_gop.mp4": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "h264_open_gop.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "h264.ts": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "h264.avi": lambda p: encode(p, COUNT, options=X264),
    "h264_vfr.mp4": lambda p: encode(p, COUNT, options=X264, stamps=IRREGULAR),
    "h264_vfr.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP, stamps=IRREGULAR),
    "h264_audio_first.mp4": lambda p: encode(p, COUNT, options=X264, audio_first=True),
    "h264_444_odd.mkv": lambda p: encode(p, COUNT, options=X264, pix_fmt="yuv444p", size=(65, 49)),
    "hevc_open_gop.mp4": lambda p: encode(p, COUNT, codec="libx265", options=HEVC),
    "hevc_10bit.mkv": lambda p: encode(
        p, COUNT, codec="libx265", options=HEVC, pix_fmt="yuv420p10le"
    ),
    "vp9.webm": lambda p: encode(
        p, COUNT, codec="libvpx-vp9", options={"g": "20", "crf": "20", "b": "0", "cpu-used": "8"}
    ),
    "vp8_hidden_frames.webm": lambda p: encode(
        p,
        COUNT,
        codec="libvpx",
        options={"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16", "crf": "6", "b": "2M"},
    ),
    "mjpeg.avi": lambda p: encode(p, COUNT, codec="mjpeg", pix_fmt="yuvj420p"),
    "mpeg4_b_frames.avi": lambda p: encode(
        p, COUNT, codec="mpeg4", options={"bf": "2", "g": "15", "q:v": "3"}
    ),
    "one_frame.mp4": lambda p: encode(p, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("counter_videos")


@pytest.mark.parametrize("name", FILES)
def test_every_index_gives_its_frame(folder, name):
    path = FILES[name](folder / name)
    whole = read_frames(path)
    numbers = [read_counter(frame) for frame in whole]
    assert numbers == list(range(1 if name.startswith("one") else COUNT))
    assert probe(path).frames == probe(path, decode=True).frames == len(numbers)
    generator = np.random.default_rng(0)
    info = probe(path)
    asked = 0
    while asked < 50:
        indices = generator.integers(0, len(numbers), generator.integers(1, 12))
        frames = read_frames(path, indices, info=info if asked % 2 else None)
        assert torch.equal(frames, whole[indices])
        asked += len(indices)
    for index in range(len(numbers)):
        assert torch.equal(read_frames(path, [index], info=info)[0], whole[index])


def test_edit_list_hides_the_frames_before_it(folder):
    source = encode(folder / "edit_source.mp4", COUNT, options=X264)
    path = remux(source, folder / "edit_list.mp4", shift=35)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert sum(not p.is_discard for p in packets) == COUNT - 35
    assert sum(p.is_discard for p in packets) > 5  # from the key frame before the cut
    info = probe(path)
    assert info.frames == probe(path, decode=True).frames == COUNT - 35
    assert [read_counter(f) for f in read_frames(path)] == list(range(35, COUNT))
    for index in range(info.frames):
        assert read_counter(read_frames(path, [index], info=info)[0]) == 35 + index


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_a_cut_between_key_frames_counts_what_comes_out(folder, suffix):
    source = encode(folder / f"cut_source.{suffix}", COUNT, options=X264)
    path = remux(source, folder / f"cut.{suffix}", first_packet=5)
    numbers = [read_counter(f) for f in read_frames(path)]
    assert numbers == list(range(12, COUNT))
    assert probe(path).frames == len(numbers)
    for index in (0, 1, 17, len(numbers) - 1):
        assert read_counter(read_frames(path, [index])[0]) == numbers[index]


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_applied(folder, clockwise):
    path = set_rotation(encode(folder / f"turn_{clockwise}.mp4", 30, options=X264), clockwise)
    info = probe(path)
    turned = (48, 64) if clockwise % 180 else (64, 48)
    assert (info.width, info.height) == turned
    assert info.rotation == (-clockwise) % 360
    frame = read_frames(path, [19])[0].numpy()
    assert frame.shape == (info.height, info.width, 3)
    assert read_counter(np.rot90(frame, clockwise // 90)) == 19  # undone counterclockwise
    assert read_frames(path, [19], size=(40, 20)).shape == (1, 40, 20, 3)


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (66, 64)])
def test_a_turned_frame_has_the_scaled_size_of_its_upright_one(folder, size):
    path = encode(folder / f"turned_{size[0]}.mp4", 2, options=X264, size=size)
    info = probe(set_rotation(path, 90))
    for side in (23, 24, 31):
        expected = scaled_size(info.height, info.width, side)
        assert read_frames(path, [0], short_side=side).shape == (1, *expected, 3)


def test_sizes_orders_and_repeats(folder):
    path = encode(folder / "sizes.mp4", 40, options=X264)
    assert read_frames(path, [3], short_side=24).shape == (1, 24, 32, 3)
    assert read_frames(path, [3], size=20).shape == (1, 20, 20, 3)
    assert read_frames(path, [3], size=(10, 30)).shape == (1, 10, 30, 3)
    assert read_frames(path, []).shape == (0, 48, 64, 3)
    frames = read_frames(path, torch.tensor([30, 2, 2, 39, 0]))
    assert frames.dtype == torch.uint8
    assert [read_counter(f) for f in frames] == [30, 2, 2, 39, 0]
    # Scaled while decoding, close to scaling the full frame by averaging.
    small = read_frames(path, [21], size=(12, 16))[0].float()
    full = read_frames(path, [21])[0].float().view(12, 4, 16, 4, 3).mean((1, 3))
    assert (small - full)[1::4, 1::4].abs().max() < 12


def test_wrong_requests(folder):
    path = encode(folder / "requests.mp4", 40, options=X264)
    for info in (None, probe(path)):
        with pytest.raises(VideoError, match=r"frame 40 was requested, but the video has 40"):
            read_frames(path, [3, 40], info=info)
    with pytest.raises(ValueError, match="count from 0, got -1"):
        read_frames(path, [-1])
    with pytest.raises(ValueError, match=r"integers, got float64"):
        read_frames(path, [0.5])
    with pytest.raises(ValueError, match="not both"):
        read_frames(path, [0], size=8, short_side=8)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_a_title_in_another_encoding_does_not_matter(folder, suffix):
    path = folder / f"title.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf\u00e9"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(counter_frame(5, 64, 48), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data = path.read_bytes()
    assert data.count("caf\u00e9".encode()) == 1
    path.write_bytes(data.replace("caf\u00e9".encode(), "caf\u00e9 ".encode("latin-1")))
    assert read_counter(read_frames(path, [0], info=probe(path))[0]) == 5


def test_unreadable_files_say_why(folder):
    video = encode(folder / "whole.mp4", 60, options=X264)
    data = video.read_bytes()
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 200)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "no_index.mp4").write_bytes(data[: len(data) // 2])  # the index comes last
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        tone = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        tone.sample_rate = 8000
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    reasons = {
        "zero.mp4": "empty",
        "text.mp4": "not a video file",
        "noise.mp4": "not a video file",
        "no_index.mp4": "cut off before its index",
        "sound.mp4": "no video stream.*audio",
        "missing.mp4": "No such file",
    }
    for name, reason in reasons.items():
        for call in (probe, read_frames, lambda p: read_frames(p, [0])):
            with pytest.raises(VideoError, match=reason) as caught:
                call(folder / name)
            assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "webm"])
def test_truncated_files_give_the_frames_that_exist(folder, kind):
    codec = {"avi": ("mjpeg", "yuvj420p"), "webm": ("libvpx-vp9", "yuv420p")}
    name, pix_fmt = codec.get(kind, ("libx264", "yuv420p"))
    path = encode(
        folder / f"cut_off.{kind}",
        COUNT,
        codec=name,
        pix_fmt=pix_fmt,
        options=X264 if name == "libx264" else {},
        container_options={"movflags": "faststart"} if kind == "mp4" else {},
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 8 // 10])
    info = probe(path, decode=True)
    frames = info.frames
    assert COUNT // 4 < frames < COUNT
    said = {"mp4": "breaks off", "mkv": "the header declares", "webm": "the header declares"}
    assert said.get(kind, "") in info.note
    assert probe(path) == info  # the packets show the damage, so that it is decoded anyway
    numbers = [read_counter(f) for f in read_frames(path, range(frames))]
    assert numbers == list(range(frames))
    for index in (frames, frames + 1, COUNT - 1):
        with pytest.raises(VideoError, match=f"frame {index} was requested"):
            read_frames(path, [0, index], info=probe(path, decode=True))
    with pytest.raises(VideoError, match="was requested"):
        read_frames(path, [0, COUNT - 1])


def test_damage_never_moves_a_later_frame_into_a_gap(folder):
    path = encode(folder / "damaged.mkv", COUNT, options=X264)
    whole = read_frames(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(1).bytes(300)
    path.write_bytes(bytes(data))
    wrong = 0
    for index in range(COUNT):
        try:
            frame = read_frames(path, [index])[0]
        except VideoError:
            continue
        if not torch.equal(frame, whole[index]):
            wrong += 1  # FFmpeg conceals what it can within the damaged group of pictures
    assert wrong <= 12
    assert read_counter(read_frames(path, [5])[0]) == 5


def test_time_limit(folder):
    path = encode(folder / "limit.mp4", 40, options=X264)
    with pytest.raises(VideoError, match="longer than the limit"):
        probe(path, decode=True, time_limit=1e-9)


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "the file is empty (0 bytes)")))
    assert (error.path, error.reason) == ("a.mp4", "the file is empty (0 bytes)")


def test_written_bytes_do_not_depend_on_the_number_of_cores(tmp_path):
    path = tmp_path / "large.mp4"
    written = []
    for _ in range(2):
        write_video(path, [counter_frame(n, 320, 400) for n in range(5)], 25)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert b" threads=1 " in written[0]  # x264's own note: its output changes with them


def test_write_video(tmp_path):
    frames = [counter_frame(n, 65, 49) for n in range(30)]
    path = tmp_path / "written.mp4"
    write_video(path, (f for f in frames), 29.97, crf=12)
    info = probe(path, decode=True)
    assert (info.frames, info.width, info.height, info.codec) == (30, 66, 50, "h264")
    assert info.fps == pytest.approx(29.97, rel=1e-3)
    assert [read_counter(f) for f in read_frames(path)] == list(range(30))
    write_video(path, [torch.from_numpy(frames[7])], 10)
    assert probe(path).frames == 1
    for bad in ([], [frames[0], frames[0][:40]], [frames[0].astype(float)], iter_and_fail(frames)):
        with pytest.raises((ValueError, KeyError)):
            write_video(path, bad, 10)
    assert probe(path).frames == 1  # failed writes leave the old file and nothing else
    assert [p.name for p in tmp_path.iterdir()] == ["written.mp4"]


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mkv", "libx264"), ("ts", "libx264"), ("flv", "libx264"), ("avi", "mpeg4"), ("wmv", "wmv2")],
)
def test_the_average_rate_is_that_of_the_frames_shown(tmp_path, ending, codec):
    stamps = np.cumsum([0] + 8 * [40, 200, 1000])[:24].tolist()
    path = encode(tmp_path / f"varies.{ending}", 24, codec=codec, stamps=stamps)
    assert probe(path).fps == pytest.approx(23_000 / stamps[-1], rel=1e-3)
    one = probe(encode(tmp_path / f"one.{ending}", 1, codec=codec))
    assert (one.frames, one.fps) == (1, 25)  # and not 0, by which times would be divided


def test_the_average_rate_of_a_file_whose_stamps_start_anew(tmp_path):
    part = encode(tmp_path / "part.ts", 30, options=X264).read_bytes()
    (tmp_path / "twice.ts").write_bytes(2 * part)
    info = probe(tmp_path / "twice.ts")
    assert (info.frames, info.fps) == (60, 25)


@pytest.mark.parametrize("wrong", [{"short_side": 0}, {"size": -2}, {"size": (0, 9)}])
def test_a_size_that_is_none_is_not_the_files_fault(tmp_path, wrong):
    path = encode(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match="short_side and size must be at least 1, got"):
        read_frames(path, [0], **wrong)


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T10:30.mp4", "concat:a|b.mp4", "pipe:0.mp4", "f%03d.mp4", "-i.mp4", "[1]?x#*.mp4"],
)
def test_a_name_means_a_file_and_nothing_else(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(name, [counter_frame(n) for n in range(6)], 25)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for path in (name, tmp_path / name):
        assert probe(path).frames == 6
        assert read_counter(read_frames(path, [4])[0]) == 4
    (tmp_path / name).unlink()
    with pytest.raises(VideoError):
        probe(name)


def test_a_name_that_the_file_system_refuses(tmp_path):
    with pytest.raises(VideoError, match=r"cannot be written: .*File name too long"):
        write_video(tmp_path / f"{'x' * 250}.mp4", [counter_frame(0)], 25)


def iter_and_fail(frames):
    yield frames[0]
    raise KeyError("the source failed")


def test_importing_needs_no_pyav():
    needed = pytest.raises(ImportError, match=re.escape('pip install "fastseq[video]"'))
    with imported_anew("fastseq.video", lacking=("av",)) as video, needed:
        video.probe("a.mp4")
