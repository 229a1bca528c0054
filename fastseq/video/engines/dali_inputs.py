"""Inputs of the DALI graph for a reading: plain numbers, computed without DALI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq.video._av import VideoError
from fastseq.video.augment import blur_kernel, colour_map
from fastseq.video.decode import past_the_end
from fastseq.video.reader import probe
from fastseq.video.readings import Clip, Reading, box_of, check_size, wanted_frames
from fastseq.video.source import open_video, read_bytes
from fastseq.video.timeline import VideoInfo

# (red, blue) weights in luma of FFmpeg's AVColorSpace numbers; the others are Rec. 601's.
_LUMA = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
_REC_601 = (0.299, 0.114)
_FULL_RANGE = 2  # AVColorRange
# Earlier versions of DALI on the CPU detect full range only by FFmpeg's old formats (yuvj...).
_CPU_READS_RANGE = (2, 3, 0)

# Pixel formats beyond 8-bit 4:2:0 that NVIDIA's hardware decodes, by its documentation.
_GPU_PIXELS = {"yuv420p", "yuvj420p"}
_GPU_PIXELS_TEN_BIT = {"hevc", "vp9", "libvpx-vp9", "av1", "libdav1d"}


@dataclass(frozen=True, eq=False)
class File:
    """A file as DALI decodes it.

    Attributes:
        info: result of `probe`, without the timeline.
        matrix, shift: DALI's rgb -> matrix @ rgb + shift, the true colour. DALI decodes every file
            as Rec. 601, however it is tagged; None where that is right.
    """

    info: VideoInfo
    matrix: np.ndarray | None
    shift: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of the graph for the clips of a reading.

    Attributes:
        encoded: uint8, the file's bytes.
        frames: int32, ascending: the frames that any of the clips needs.
        shape: (frames, height, width, 3), the shape that the decoder must return.
        clips: for each clip

            - `order` int32 (T,): places in `frames`;
            - `start`, `end` int32 (2,): y, x of the crop's corners in the stored frame;
            - `flips` float32 (2,): 1 where the rows (columns) are reversed;
            - `turned`: whether rows and columns are exchanged at the end;
            - `coloured`: rgb -> matrix @ rgb + pull @ (mean rgb of the clip) + shift;
            - `blurred`: Gaussian of `sigma`, `window` wide, or convolution with `kernel`;
            - `changed`: whether one of these two is applied.
    """

    encoded: np.ndarray
    frames: np.ndarray
    shape: tuple[int, int, int, int]
    clips: tuple[dict[str, Any], ...]


def release(version: str) -> tuple[int, ...]:
    """(2, 1, 0) for "2.1.0"."""
    return tuple(int(part) for part in version.split(".")[:3])


def inspect(path: str, device: str, version: str, time_limit: float) -> File:
    """Inspect a file that this version of DALI is to decode on a device. Raises VideoError."""
    info = probe(path, time_limit=time_limit)
    with open_video(path) as (container, stream):
        if container.streams.best("video").index != stream.index:
            raise VideoError(
                path,
                "it has several video streams, and DALI reads another one than players show; "
                "`fastseq.video.transcode(source, target)` keeps the one that players show",
            )
        codec = stream.codec_context
        space, pixels = int(codec.colorspace), str(codec.pix_fmt)
        marked_full = int(codec.color_range) == _FULL_RANGE
    deep = pixels == "yuv420p10le" and info.codec in _GPU_PIXELS_TEN_BIT
    if device == "gpu" and not deep and pixels not in _GPU_PIXELS:
        raise VideoError(
            path,
            f"GPUs do not decode {info.codec} with pixel format {pixels}; "
            "`fastseq.video.transcode(source, target)` rewrites it as yuv420p",
        )
    full = marked_full or pixels.startswith("yuvj")
    known = device == "gpu" or release(version) >= _CPU_READS_RANGE
    taken_for_full = full if known else pixels.startswith("yuvj")
    info = VideoInfo(**{**vars(info), "timeline": None})
    if not pixels.startswith("yuv") or (space not in _LUMA and full == taken_for_full):
        return File(info, None, None)
    true, true_shift = _to_rgb(*_LUMA.get(space, _REC_601), full)
    taken, taken_shift = _to_rgb(*_REC_601, taken_for_full)
    matrix = true @ np.linalg.inv(taken)
    return File(info, matrix, true_shift - matrix @ taken_shift)


def _to_rgb(red: float, blue: float, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3,): bytes y, cb, cr -> rgb in 0 to 255."""
    luma = np.array([red, 1 - red - blue, blue])
    to_cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    to_cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    matrix = np.linalg.inv([luma, to_cb, to_cr])
    if full:
        return matrix, matrix @ [0, -128, -128]
    matrix = matrix * [255 / 219, 255 / 224, 255 / 224]
    return matrix, matrix @ [-16, -128, -128]


def inputs_of(reading: Reading, file: File, size: int) -> Inputs:
    """Raises VideoError if the file does not contain what the reading requests."""
    info = file.info
    check_size(reading, info.height, info.width)
    wanted, places = wanted_frames(reading)
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] < info.frames:
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise VideoError(reading.path, past_the_end(int(bad), info.frames, info.note))
    clips = []
    for clip, order in zip(reading.clips, places, strict=True):
        draw = {
            "order": order.astype(np.int32),
            **_geometry(clip, reading, info.rotation, info.mirrored),
            **_pixels(clip, file, size),
        }
        clips.append(draw)
    encoded = np.frombuffer(read_bytes(reading.path), dtype=np.uint8)
    sides = (info.height, info.width)
    stored = sides[::-1] if info.rotation in (90, 270) else sides
    return Inputs(encoded, wanted.astype(np.int32), (len(wanted), *stored, 3), tuple(clips))


def _geometry(clip: Clip, reading: Reading, rotation: int, mirrored: bool) -> dict[str, Any]:
    """`start`, `end`, `flips`, `turned`.

    The box is in pixels of the stored frame. A quarter turn is a flip and `turned`.
    """
    draw, height, width = clip.draw, reading.height, reading.width
    top, left, rows, columns = box_of(clip, reading)
    bottom, right = top + rows, left + columns
    if mirrored:
        left, right = width - right, width - left
    if rotation == 90:  # the stored frame, turned counterclockwise by `rotation`, is upright
        top, bottom, left, right = left, right, height - bottom, height - top
    elif rotation == 180:
        top, bottom, left, right = height - bottom, height - top, width - right, width - left
    elif rotation == 270:
        top, bottom, left, right = width - right, width - left, top, bottom
    turned = rotation in (90, 270)
    flip = draw.flip != mirrored
    flip_rows = (rotation in (180, 270)) ^ (flip and turned)
    flip_columns = (rotation in (90, 180)) ^ (flip and not turned)
    return {
        "start": np.array([top, left], np.int32),
        "end": np.array([bottom, right], np.int32),
        "flips": np.array([flip_rows, flip_columns], np.float32),
        "turned": turned,
    }


def _pixels(clip: Clip, file: File, size: int) -> dict[str, Any]:
    draw = clip.draw
    matrix, _ = colour_map(draw.colour, np.zeros(3))
    # The bias is linear in the clip's mean colour: its columns are the biases at unit colours.
    pull = np.stack([colour_map(draw.colour, unit)[1] for unit in np.eye(3)], axis=1)
    shift = np.zeros(3)
    if file.matrix is not None:
        shift = (matrix + pull) @ file.shift
        matrix, pull = matrix @ file.matrix, pull @ file.matrix
    coloured = bool(draw.colour) or file.matrix is not None
    blurred = draw.blur_sigma > 0
    kernel = blur_kernel(draw.blur_sigma, size) if blurred else np.ones(1)
    return {
        "changed": coloured or blurred,
        "coloured": coloured,
        "matrix": matrix.astype(np.float32),
        "pull": pull.astype(np.float32),
        "shift": shift.astype(np.float32),
        "blurred": blurred,
        "sigma": np.float32(draw.blur_sigma if blurred else 1.0),
        "window": np.int32(len(kernel)),
        "kernel": kernel.astype(np.float32),
    }
