"""Tests of the DALI engine for both devices; the calling tests choose the device."""

from __future__ import annotations

from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from video.counter_video import (
    BITS,
    BLOCK,
    HEIGHT,
    HEVC,
    OPEN_GOP,
    WIDTH,
    X264,
    encoded_once,
    remux,
    set_matrix,
    set_rotation,
)
from video.counter_video import encode as encode_counter

from fastseq.video import read_frames
from fastseq.video.augment import Augmentation, ClipDraw, apply_draw, draw_clip
from fastseq.video.decode import scaled_size
from fastseq.video.engines import dali as dali_engine
from fastseq.video.engines.dali import DaliEngine, unsupported
from fastseq.video.reader import probe
from fastseq.video.readings import Clip, Reading

COUNT = 61
VERSION = dali_engine._dali_version()
H264 = unsupported(SimpleNamespace(path="a.mp4", codec="h264", note=""), "cpu", VERSION) is None
needs_h264 = pytest.mark.skipif(not H264, reason=f"DALI {VERSION} has no H.264 on the CPU")
VP9 = {"g": "20", "crf": "20", "b": "0", "cpu-used": "8"}
HIDDEN = {"g": "40", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "2M", "cpu-used": "8"}
IRREGULAR = np.cumsum([0, *np.random.default_rng(3).integers(5, 200, COUNT - 1)]).tolist()
SEGMENTED = {"x264-params": X264["x264-params"] + ":intra-refresh=1"}


def encode(path, count, **how):
    """Larger than the counter, since the hardware has minimum sizes, such as 144 x 144 for HEVC."""
    return encode_counter(path, count, **{"size": (160, 144), **how})


def vp9(path, count=COUNT, **how):
    return encode(path, count, codec="libvpx-vp9", **{"options": VP9, **how})


def mjpeg(path, **how):
    return encode(path, COUNT, codec="mjpeg", pix_fmt="yuvj420p", **how)


def hevc(path, **how):
    return encode(path, COUNT, codec="libx265", options=HEVC, **how)


def with_edit_list(path, make, shift):
    return remux(make(path.with_stem("whole_" + path.stem)), path, shift=shift)


# Counter videos: the pixels show the number of the frame.
ANY_VERSION = {
    "vp9.webm": vp9,
    "vp9.mp4": vp9,
    "vp9_vfr.webm": lambda p: vp9(p, stamps=IRREGULAR),
    "vp9_hidden_frames.webm": lambda p: vp9(p, options=HIDDEN),
    "vp9_odd.webm": lambda p: vp9(p, size=(161, 145)),
    "vp9_edit_list.mp4": lambda p: with_edit_list(p, vp9, 27),
    "vp9_one_frame.webm": lambda p: vp9(p, 1),
    "vp8_hidden_frames.webm": lambda p: encode(p, COUNT, codec="libvpx", options=HIDDEN),
    "mjpeg.avi": mjpeg,
    "mjpeg.mkv": mjpeg,
    "mjpeg_odd.mov": lambda p: mjpeg(p, size=(161, 145)),
}
H264_AND_HEVC = {
    "b_frames.mp4": lambda p: encode(p, COUNT, options=X264),
    "open_gop.mp4": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "open_gop.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "open_gop.ts": lambda p: encode(p, COUNT, options=OPEN_GOP),
    "b_frames.avi": lambda p: encode(p, COUNT, options=X264),
    "vfr.mp4": lambda p: encode(p, COUNT, options=X264, stamps=IRREGULAR),
    "vfr.mkv": lambda p: encode(p, COUNT, options=OPEN_GOP, stamps=IRREGULAR),
    "audio_first.mp4": lambda p: encode(p, COUNT, options=X264, audio_first=True),
    "odd_444.mkv": lambda p: encode(p, COUNT, options=X264, pix_fmt="yuv444p", size=(161, 145)),
    "ten_bit.mp4": lambda p: encode(p, COUNT, options=X264, pix_fmt="yuv420p10le"),
    "hevc_open_gop.mp4": hevc,
    "hevc_ten_bit.mkv": lambda p: hevc(p, pix_fmt="yuv420p10le"),
    "edit_list.mp4": lambda p: with_edit_list(p, H264_AND_HEVC["b_frames.mp4"], 35),
    "short_edit_list.mp4": lambda p: with_edit_list(p, H264_AND_HEVC["open_gop.mp4"], 3),
    "starts_between_keys.mkv": lambda p: remux(
        H264_AND_HEVC["b_frames.mp4"](p.with_stem("whole_" + p.stem)), p, first_packet=5
    ),
    "one_frame.mp4": lambda p: encode(p, 1, options=X264),
}


def plain(height, width, **changes):
    draw = {"top": 0, "left": 0, "height": height, "width": width, "flip": False}
    return ClipDraw(**{**draw, "colour": (), "blur_sigma": 0.0, **changes})


def reading_of(path, frames, draws, side=None):
    """`frames` (clips, T)."""
    info = probe(path)
    clips = tuple(Clip(np.asarray(f), draw) for f, draw in zip(frames, draws, strict=True))
    side = side or min(info.height, info.width)
    return Reading(str(path), info.height, info.width, side, clips)


def run(engine, *batches):
    """The result of an engine for batches (lists of readings), on the CPU."""
    return [b.cpu() for b in engine.batches(lambda k: batches[k], 0, len(batches))]


def by_pyav(reading, size):
    """The clips of a reading: frames at full size, crops rounded to their pixels."""
    full = read_frames(reading.path)
    height, width = scaled_size(reading.height, reading.width, reading.side)
    down, across = reading.height / height, reading.width / width
    clips = []
    for clip in reading.clips:
        d = clip.draw
        top, bottom = round(d.top * down), round((d.top + d.height) * down)
        left, right = round(d.left * across), round((d.left + d.width) * across)
        box = {"top": top, "left": left, "height": bottom - top, "width": right - left}
        draw = ClipDraw(**{**vars(d), **box})
        clips.append(apply_draw(full[torch.from_numpy(clip.frames)], draw, size))
    return torch.stack(clips)


def numbers_in(clip):
    """The counters in (T, 3, 48, 48)."""
    blocks = clip.double().numpy().mean(1).reshape(-1, 3, BLOCK, 4, BLOCK * 3 // 4).mean((2, 4))
    assert np.all((blocks < 70) | (blocks > 185)), f"blurred counter: {blocks.round()}"
    return (blocks.reshape(-1, BITS) > 128) @ (1 << np.arange(BITS))


def check_counters(engine, path):
    """Every frame of a counter video, in two clips at a time, in any order, with repeats."""
    true = numbers_in(torch.stack([shrunk(f) for f in read_frames(path).numpy()]))
    generator = np.random.default_rng(0)
    draws = [plain(HEIGHT, WIDTH)] * 2
    batches = []
    for length in (1, 3, 40):
        frames = np.resize(generator.permutation(len(true)), (2, 2, length))
        batches.append([reading_of(path, f, draws) for f in frames])
    assert 2 * 2 * length >= len(true)
    for readings, clips in zip(batches, run(engine, *batches), strict=True):
        for reading, one in zip(readings, clips, strict=True):
            for clip, pixels in zip(reading.clips, one, strict=True):
                assert numbers_in(pixels).tolist() == true[clip.frames].tolist()


def shrunk(frame):
    """The counter of a frame, 64 x 48, squeezed to 48 x 48."""
    counter = torch.from_numpy(frame[:HEIGHT, :WIDTH]).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(counter.float(), (48, 48), mode="area")[0]


def check_turned_beside_upright(engine, folder, coloured, inner, border, reference, **how):
    """Both kinds of phone video in one batch; `coloured`: which of the two has its colours
    changed.
    """
    upright = texture(folder / "upright.mp4", count=6, **how)
    turned = set_rotation(texture(folder / "on_its_side.mp4", count=6, **how), 90)
    readings = []
    for place, path in enumerate((upright, turned)):
        info = probe(path)
        colour = (("brightness", 0.9),) if place in coloured else ()
        draw = plain(info.height, info.width, colour=colour)
        readings.append(reading_of(path, [[0, 5]], [draw]))
    for made, reading in zip(run(engine, readings)[0], readings, strict=True):
        off = (made[0].int() - reference(reading, 32)[0].int()).abs()
        assert off[..., 1:-1, 1:-1].max() <= inner
        assert off.max() <= border


@encoded_once
def texture(path, size=(96, 80), count=12, chroma=True):
    """Noise that is smooth over a few pixels and differs in each frame, coded without loss.

    With `chroma`, in 4:4:4: without subsampled colours, DALI and PyAV convert to the same bytes.
    Without, in 4:2:0 and with one hue per frame, which is as accurate and supported by hardware.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size[1] // 6, size[0] // 6, generator=generator)
    if not chroma:
        coarse = coarse[:, :1] * 0.6 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size[::-1], mode="bicubic")
    frames = frames.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if chroma else "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"lossless": "1", "cpu-used": "8"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def stages():
    """One draw for each augmentation of an 80 x 96 picture, then all at once."""
    yield "crop", plain(60, 70, top=11, left=20)
    yield "whole pixels", plain(40, 40, top=3, left=50)
    yield "flip", plain(60, 70, top=11, left=20, flip=True)
    for op, amount in (("brightness", 1.3), ("contrast", 0.4), ("saturation", 1.7), ("hue", 0.15)):
        yield op, plain(40, 40, colour=((op, amount),))
    yield "grey", plain(40, 40, colour=(("hue", -0.2), ("contrast", 1.8), ("saturation", 0.0)))
    for sigma in (0.1, 0.7, 2.0):
        yield f"blur {sigma}", plain(40, 40, blur_sigma=sigma)
    spec = Augmentation(size=40, jitter=1.0, blur=1.0, blur_sigma=(2.0, 9.0))
    for seed in range(6):
        yield f"all {seed}", draw_clip(80, 96, spec, np.random.default_rng(seed))


def check_stages(engine, path, border, inner=1, reference=by_pyav):
    """Every stage compared with `apply_draw`: within `inner` grey levels, `border` at the edges."""
    frames = np.array([[4, 7, 7, 1, 0, 11]])
    names, draws = zip(*stages(), strict=True)
    readings = [reading_of(path, frames, [draw]) for draw in draws]
    got = run(engine, readings)[0]
    for name, reading, clips in zip(names, readings, got, strict=True):
        off = (clips.int() - reference(reading, 40).int()).abs()
        assert off[..., 1:-1, 1:-1].max() <= inner, name
        assert off.max() <= border, name
        assert off.float().mean() <= 0.3 * inner, name


# Clockwise turns, and the mirrored ones.
MATRICES = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "left to right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def check_rotation(engine, path, matrix, border, inner=1, reference=by_pyav):
    """Crops and flips refer to the upright frame."""
    set_matrix(path, *matrix)
    info = probe(path)
    crop = plain(30, 50, top=5, left=12) if info.height < info.width else plain(50, 30, top=12)
    draws = [crop, ClipDraw(**{**vars(crop), "flip": True})]
    reading = reading_of(path, [[0, 5]] * 2, draws)
    off = (run(engine, [reading])[0][0].int() - reference(reading, 32).int()).abs()
    assert off[..., 1:-1, 1:-1].max() <= inner
    assert off.max() <= border


def tagged(path, space, full, codec="libx264", pixels="yuv444p"):
    """Flat patches, coded and tagged as Rec. 709 (1), 601 (6) or 2020 (9); returns (rgb, file)."""
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[space]
    rgb = np.random.default_rng(0).integers(40, 216, (6, 8, 3)).astype(float)
    luma = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    scale, low = (1, 0) if full else (219 / 255, 16)
    chroma = 1 if full else 224 / 255
    planes = np.stack([low + scale * luma, 128 + chroma * cb, 128 + chroma * cr])
    planes = planes.round().astype(np.uint8).repeat(16, 1).repeat(16, 2)
    height, width = planes.shape[1:]
    if pixels == "yuv420p":
        chroma_planes = planes[1:, ::2, ::2].reshape(height // 2, width)
        planes = np.concatenate([planes[0], chroma_planes])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = height, width
        stream.pix_fmt = pixels
        stream.options = {"crf": "1"} if codec == "libx264" else {"lossless": "1"}
        frame = av.VideoFrame.from_ndarray(planes, format=pixels)
        for target in (stream.codec_context, frame):
            target.colorspace, target.color_range = space, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return rgb, path


def check_colours(engine, rgb, path, mean=0.7):
    """DALI's own conversion is 5 to 10 grey levels off on average where the tag matters."""
    got = run(engine, [reading_of(path, [[0]], [plain(96, 128)])])[0][0, 0, 0]
    # Output of 96 x 96: patches of 16 x 12.
    means = got.double().view(3, 6, 16, 8, 12)[..., 4:-4].mean((2, 4)).permute(1, 2, 0).numpy()
    assert np.abs(means - rgb).mean() < mean
    assert np.abs(means - rgb).max() < 5 * mean


def engine_of(size, device="cpu", gpu_operators=None, **options):
    """`gpu_operators`: run the operators of the GPU graph on the CPU, too."""
    engine = DaliEngine(size, device=device, **{"threads": 2, **options})
    if gpu_operators is not None:
        engine._gpu_operators = gpu_operators
    return engine
