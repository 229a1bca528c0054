"""Files whose frames a reader that seeks gets wrong without a word."""

from fractions import Fraction

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from counter_video import (  # noqa: E402
    HEVC,
    OPEN_GOP,
    X264,
    counter_frame,
    encode,
    read_counter,
    remux,
    set_matrix,
)

from fastseq.video import (  # noqa: E402
    Clip,
    PyAVEngine,
    Reading,
    VideoError,
    probe,
    read_frames,
    transcode,
)
from fastseq.video.augment import ClipDraw  # noqa: E402
from fastseq.video.gaps import sound_frames  # noqa: E402

COUNT = 130
WHOLE = ClipDraw(0, 0, 48, 64, flip=False, colour=(), blur_sigma=0.0)


def truth(path):
    """Decoded from the start without a seek."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames))


def noisy(count=COUNT):
    """Frames that x264 does not store whole: each differs from the one before everywhere."""
    generator = np.random.default_rng(0)
    base = generator.integers(0, 255, (48, 64, 3))
    return [
        (np.roll(base, 3 * t, 1) // 2 + generator.integers(0, 40, base.shape)).astype(np.uint8)
        for t in range(count)
    ]


def encode_pixels(path, pixels, options, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = options
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


INTRA_REFRESH = "intra-refresh=1:keyint=25:bframes={}:threads=1:log-level=none"
X265_REFRESH = "intra-refresh=1:keyint=25:bframes=0:log-level=none:pools=none"
NOT_TRUE = {
    "refresh.mp4": ("libx264", {"x264-params": INTRA_REFRESH.format(0)}),
    "refresh.mkv": ("libx264", {"x264-params": INTRA_REFRESH.format(0)}),
    "refresh_b.mp4": ("libx264", {"x264-params": INTRA_REFRESH.format(2)}),
    "refresh_b.mkv": ("libx264", {"x264-params": INTRA_REFRESH.format(2)}),
    "refresh_hevc.mp4": ("libx265", {"x265-params": X265_REFRESH}),
    "refresh_hevc.mkv": ("libx265", {"x265-params": X265_REFRESH}),
}


@pytest.mark.parametrize("name", NOT_TRUE)
def test_frames_after_a_key_frame_that_is_none(tmp_path, name):
    codec, options = NOT_TRUE[name]
    path = encode_pixels(tmp_path / name, noisy(), options, codec)
    right = truth(path)
    info = probe(path)
    assert info.frames == len(right) == COUNT
    whole = read_frames(path, info=info)
    assert (whole.float() - right.float()).abs().mean() < 2  # rounding of the conversion
    generator = np.random.default_rng(1)
    for asked in (*generator.integers(0, COUNT, (12, 1)), generator.integers(0, COUNT, 7)):
        assert torch.equal(read_frames(path, asked, info=info), whole[asked])
    # What training and evaluation read: the same file through the loader's engine.
    numbers = np.array([40, 77, COUNT - 1])
    reading = Reading(str(path), 48, 64, 48, (Clip(numbers, WHOLE),))
    (made,) = PyAVEngine(48).batches(lambda k: [reading], 0, 1)
    (linear,) = PyAVEngine(48).batches(
        lambda k: [Reading(str(path), 48, 64, 48, (Clip(np.arange(COUNT), WHOLE),))], 0, 1
    )
    assert torch.equal(made[0, 0], linear[0, 0, numbers])


@pytest.mark.parametrize("name", NOT_TRUE)
def test_such_files_are_told(tmp_path, name):
    codec, options = NOT_TRUE[name]
    path = encode_pixels(tmp_path / name, noisy(60), options, codec)
    assert probe(path).random_access == (codec == "libx265")  # it flags no recovery points
    copy = transcode(path, tmp_path / "copy.mp4")
    assert copy.random_access
    assert copy.frames == 60


@pytest.mark.parametrize("options", [X264, OPEN_GOP, HEVC], ids=["closed", "open", "hevc"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_true_key_frames_are_trusted(tmp_path, options, suffix):
    codec = "libx265" if options is HEVC else "libx264"
    info = probe(encode(tmp_path / f"a.{suffix}", 61, codec=codec, options=options))
    assert info.random_access
    assert len(info.timeline.keys) == 6


COLOURS = {"R": (220, 40, 40), "G": (40, 220, 40), "B": (40, 40, 220), "Y": (230, 230, 60)}
SHOWN = {  # top left, top right, bottom left, bottom right
    (1, 0, 0, 1): "RGBY",
    (0, 1, -1, 0): "BRYG",
    (-1, 0, 0, -1): "YBGR",
    (0, -1, 1, 0): "GYRB",
    (-1, 0, 0, 1): "GRYB",
    (1, 0, 0, -1): "BYRG",
    (0, 1, 1, 0): "RBGY",
    (0, -1, -1, 0): "YGBR",
    (-0.5, 0, 0, 0.5): "GRYB",  # the scale is not ours
    (0, 0, 0, 0): "RGBY",
}


def quadrants(path):
    pixels = np.zeros((48, 64, 3), np.uint8)
    for name, (y, x) in {"R": (0, 0), "G": (0, 32), "B": (24, 0), "Y": (24, 32)}.items():
        pixels[y : y + 24, x : x + 32] = COLOURS[name]
    return encode_pixels(path, [pixels] * 3, {"crf": "5"})


def corners(pixels):
    return "".join(
        min(COLOURS, key=lambda c: np.abs(pixels[y, x].astype(int) - COLOURS[c]).sum())
        for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5))
    )


@pytest.mark.parametrize("matrix", SHOWN)
def test_pictures_are_shown_as_their_matrix_says(tmp_path, matrix):
    path = set_matrix(quadrants(tmp_path / "a.mp4"), *matrix)
    info = probe(path)
    frame = read_frames(path, [1])[0].numpy()
    assert frame.shape == (info.height, info.width, 3)
    assert corners(frame) == SHOWN[matrix]
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    copy = transcode(path, tmp_path / "copy.mp4")
    assert (copy.rotation, copy.mirrored) == (0, False)
    assert corners(read_frames(copy.path, [1])[0].numpy()) == SHOWN[matrix]
    draw = ClipDraw(0, 0, info.height, info.width, flip=False, colour=(), blur_sigma=0.0)
    clip = Clip(np.array([1]), draw)
    reading = Reading(str(path), info.height, info.width, min(info.height, info.width), (clip,))
    (made,) = PyAVEngine(32).batches(lambda k: [reading], 0, 1)
    assert corners(made[0, 0, 0].permute(1, 2, 0).numpy()) == SHOWN[matrix]


@pytest.mark.parametrize("matrix", [(0.7, 0.7, -0.7, 0.7), (1, 0.3, 0, 1), (1, 0, 0, 0)])
def test_a_matrix_that_turns_by_no_right_angle_is_refused(tmp_path, matrix):
    path = set_matrix(quadrants(tmp_path / "a.mp4"), *matrix)
    for call in (probe, read_frames, lambda p: transcode(p, tmp_path / "copy.mp4")):
        with pytest.raises(VideoError, match="by a right angle; rewrite the file upright"):
            call(path)


def two_streams(path, default=None):
    """64 x 48 first, then 128 x 96 with larger numbers; the latter is better, if none is marked."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height = 64 * (number + 1), 48 * (number + 1)
            stream.pix_fmt = "yuv420p"
            stream.options = X264
            stream.disposition = 1 if number == default else 0
        for count in range(12):
            for number, stream in enumerate(streams):
                pixels = counter_frame(count + 100 * number, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "taken"), [(0, 0), (1, 1)])
def test_of_several_streams_the_default_is_taken_and_told(tmp_path, default, taken):
    path = two_streams(tmp_path / "two.mkv", default)
    info = probe(path)
    assert (info.width, info.frames) == (64 * (taken + 1), 12)
    assert len(info.remarks) == 1
    assert info.remarks[0].startswith(f"of 2 video streams number {taken} is read, the only one")
    assert read_counter(read_frames(path, [7])[0]) == 7 + 100 * taken
    one = probe(encode(tmp_path / "one.mp4", 3))
    assert one.remarks == ()


INTERLACED = {
    "mpeg2.mkv": ("mpeg2video", {"flags": "+ildct+ilme", "g": "12", "bf": "2", "q:v": "3"}),
    "mpeg2.ts": ("mpeg2video", {"flags": "+ildct+ilme", "g": "12", "q:v": "3"}),
    "h264.mp4": ("libx264", {"crf": "18", "x264-params": "tff=1:keyint=12:bframes=2"}),
    "mpeg4.avi": ("mpeg4", {"flags": "+ildct+ilme", "q:v": "3"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_files_are_refused_and_their_copies_read(tmp_path, name):
    codec, options = INTERLACED[name]
    path = encode(tmp_path / name, 40, codec=codec, options=options)
    info = probe(path)
    assert info.interlaced
    assert info.frames == 40
    for call in (read_frames, lambda p: read_frames(p, [3]), lambda p: read_frames(p, info=info)):
        with pytest.raises(VideoError, match=r"interlaced.*video\.transcode\(source, target\)"):
            call(path)
    copy = transcode(path, tmp_path / "copy.mp4")
    assert not copy.interlaced
    assert [read_counter(frame) for frame in read_frames(copy.path)] == list(range(40))


def test_interlaced_frames_behind_progressive_ones(tmp_path):
    """Packets of one stream after those of another, as recorders write them."""
    parts = []
    for number, params in enumerate(("", "tff=1:")):
        options = {"crf": "18", "x264-params": f"{params}keyint=12:bframes=0"}
        parts.append(encode(tmp_path / f"part{number}.ts", 24, options=options).read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    path = tmp_path / "both.mkv"
    with av.open(str(tmp_path / "both.ts")) as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        number = 0
        for packet in old.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = 3600 * number
                packet.stream = copy
                new.mux(packet)
                number += 1
    with av.open(str(path)) as container:
        fields = [frame.interlaced_frame for frame in container.decode(video=0)]
    assert (fields[0], fields[-1], len(fields)) == (False, True, 48)
    info = probe(path)
    assert read_counter(read_frames(path, [3], info=info)[0]) == 3
    with pytest.raises(VideoError, match="interlaced"):
        read_frames(path, [40], info=info)
    copy = transcode(path, tmp_path / "copy.mp4")
    assert [read_counter(f) for f in read_frames(copy.path)] == 2 * list(range(24))
    assert probe(path, decode=True).interlaced


def test_the_copy_of_an_interlaced_file_has_no_combs(tmp_path):
    """Two fields of a bar that moves: teeth in the frames, none in the copy."""
    pixels = []
    for t in range(12):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[0::2, 4 * t : 4 * t + 8] = 255
        frame[1::2, 4 * t + 2 : 4 * t + 10] = 255
        pixels.append(frame)
    options = {"crf": "5", "x264-params": "tff=1:keyint=12:bframes=0"}
    path = encode_pixels(tmp_path / "bar.mp4", pixels, options)
    copy = transcode(path, tmp_path / "copy.mp4", crf=5)

    def combed(frames):
        luma = frames.float().mean(-1)
        return (luma[:, 1:-1] - (luma[:, :-2] + luma[:, 2:]) / 2).abs().mean()

    assert combed(read_frames(copy.path)) < combed(torch.from_numpy(np.stack(pixels))) / 4


@pytest.mark.parametrize("bf", [0, 2])
def test_h264_in_an_avi_file_of_600_ticks_a_second(tmp_path, bf):
    tick = Fraction(1, 600)
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=600)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        stream.options = {"g": "10", "crf": "18", "bf": str(bf)}
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(counter_frame(number), format="rgb24")
            frame.pts, frame.time_base = 20 * number, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.frames, info.note) == (40, "")
    assert info.fps == pytest.approx(30, rel=1e-3)
    assert [read_counter(f) for f in read_frames(path)] == list(range(40))
    assert transcode(path, tmp_path / "copy.mp4").frames == 40


@pytest.mark.parametrize("bf", [0, 2])
def test_exchanged_time_stamps_are_no_damage(tmp_path, bf):
    """Frames come in the order in which they were drawn, whatever their stamps say."""
    options = {"crf": "18", "x264-params": f"keyint=12:bframes={bf}:scenecut=0"}
    source = encode(tmp_path / "a.mp4", 40, options=options)
    path = tmp_path / "b.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.dts is not None]
        first, second = (
            next(p for p in packets if p.pts == stamp)
            for stamp in sorted(packet.pts for packet in packets)[16:18]
        )
        first.pts, second.pts = second.pts, first.pts
        for packet in packets:
            packet.dts -= 2 * abs(first.pts - second.pts)
            packet.stream = copy
            new.mux(packet)
    # Where every frame may be out of order, only decoding tells that two are exchanged.
    quick = [probe(path), None] if not bf else []
    for info in (probe(path, decode=True), *quick):
        if info is not None:
            assert (info.frames, info.note, info.gaps) == (40, "", ())
        for index in (0, 15, 16, 17, 18, 39):
            assert read_counter(read_frames(path, [index], info=info)[0]) == index
    assert (probe(path).frames, probe(path).note) == (40, "")
    assert [read_counter(f) for f in read_frames(path)] == list(range(40))
    assert transcode(path, tmp_path / "copy.mp4").frames == 40


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video", "mpeg4"])
def test_a_file_cut_between_key_frames_gives_no_picture_that_is_made_up(tmp_path, codec):
    options = {"libx264": X264, "libx265": HEVC}.get(codec, {"g": "12", "bf": "0", "q:v": "3"})
    source = encode(tmp_path / "a.mkv", 60, codec=codec, options=options)
    path = remux(source, tmp_path / "cut.mkv", first_packet=5)
    for decode in (False, True):
        info = probe(path, decode=decode)
        sound = sound_frames(info.frames, info.gaps)
        numbers = [read_counter(f) for f in read_frames(path, sound, info=info)]
        assert numbers == list(range(12, 60))
        assert read_counter(read_frames(path, [int(sound[3])])[0]) == 15
    if not info.note:
        assert [read_counter(f) for f in read_frames(path)] == numbers


def test_joined_transport_streams_are_not_damaged(tmp_path):
    part = encode(tmp_path / "part.ts", 60, options=X264).read_bytes()
    path = tmp_path / "twice.ts"
    path.write_bytes(2 * part)
    info = probe(path)
    assert (info.frames, info.note) == (120, "")
    assert [read_counter(f) for f in read_frames(path)] == 2 * list(range(60))
    assert transcode(path, tmp_path / "copy.mp4").frames == 120


def test_an_edit_list_is_no_damage(tmp_path):
    path = remux(encode(tmp_path / "a.mp4", 60, options=X264), tmp_path / "b.mp4", shift=17)
    info = probe(path, decode=True)
    assert (info.frames, info.note) == (43, "")
    assert transcode(path, tmp_path / "copy.mp4").frames == 43
