"""Exact frame reading with PyAV: frame k is the k-th frame that a player would show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_int
from fastseq.video.damage import judge
from fastseq.video.decode import Converter, collect, read_counted, upright_by
from fastseq.video.pictures import is_pictures, pictures_of
from fastseq.video.source import (
    Contents,
    VideoSource,
    as_source,
    chosen_stream,
    file_of,
    open_video,
)
from fastseq.video.timeline import Deadline, VideoInfo, scan

_DEFAULT_FPS = 25  # FFmpeg's own


def probe(
    path: VideoSource,
    *,
    decode: bool = False,
    time_limit: float | None = None,
    fps: float | None = None,
) -> VideoInfo:
    """Inspect a video file, or a folder of numbered pictures.

    By default the packets are counted and the first frame is decoded. Two kinds of files are
    decoded whole: files that break off, and files whose packets do not certainly map to frames one
    to one (all but mp4, mov, mkv and webm; VP8; a start without a key frame; time stamps out of
    order). Of pictures the headers are read and the first one is decoded.

    Args:
        path: the name of a file; a folder of numbered pictures (JPEG, PNG, WebP); the pattern of
            one of several sequences in a folder, such as "frames/img_*.jpg"; the contents of a file
            (bytes, bytearray, memoryview); a binary file object that can seek; or
            "FILE.tar#OFFSET+SIZE", a member of a tar that is not compressed, or the headers and
            pictures of one video in it. Contents are copied unless they are bytes. A file object is
            read from its beginning and keeps its position. `VideoInfo.path` is "<bytes>", or the
            name of the file object.
        decode: decode every frame, to find damage that only decoding shows: see `VideoInfo.gaps`.
        time_limit: seconds after which a `VideoError` is raised.
        fps: frames per second of pictures; default 25, FFmpeg's, with a remark.
    Raises:
        VideoError: no readable video stream, no pictures or several sequences of them, no sound
            frame, pictures not turned by a right angle, or the time limit exceeded.
        TypeError: `path` is none of these, or a file object in text mode or without seek.
        ValueError: `fps` is not positive, or passed for a video file.

    Example:
        >>> import tempfile
        >>> from fastseq.video import probe, write_video
        >>> path = f"{tempfile.mkdtemp()}/grey.mp4"
        >>> write_video(path, [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(20)], fps=25)
        >>> info = probe(path)
        >>> info.frames, info.width, info.height, float(info.fps)
        (20, 64, 48, 25.0)
    """
    path = as_source(path)
    deadline = Deadline(path, time_limit)
    if is_pictures(path):
        return pictures_of(path).probe(decode=decode, deadline=deadline, fps=fps)
    if fps is not None and (isinstance(path, Contents) or file_of(path).exists()):
        raise ValueError(f"fps is for folders of pictures; {path} is a file with its own rate")
    with open_video(path, deadline) as (container, stream):
        found = scan(container, stream, deadline)
        codec, average_rate = stream.codec_context.name, stream.average_rate
        time_base = stream.time_base
        _, remark = chosen_stream(path, container)
    timeline = found.timeline
    whole = decode or bool(found.note) or timeline is None or not found.certain
    judged = judge(path, found, deadline, whole)
    if judged.first is None:
        why = found.note or judged.note
        raise VideoError(path, f"no frame can be decoded{f': {why}' if why else ''}")
    timeline, frames = judged.timeline, judged.frames
    note = "; ".join(part for part in (found.note, judged.note) if part)
    if not note and timeline is None and found.declared > frames:
        note = f"the header declares {found.declared} frames, {frames} can be decoded"
    times = judged.times
    if timeline is not None:
        times = [float(timeline.pts[0] * time_base), float(timeline.pts[-1] * time_base)]
    # If the rate varies, the header's is nominal or missing; if time stamps restart, it is used.
    if timeline is None and found.rate and found.packets == frames:
        fps = found.rate
    elif times == sorted(times) and times[-1:] > times[:1]:
        fps = (frames - 1) / (times[-1] - times[0])
    else:
        fps = float(average_rate or _DEFAULT_FPS)
    turns, mirrored = upright_by(path, judged.first)
    width, height = judged.first.width, judged.first.height
    if turns % 2:
        width, height = height, width
    return VideoInfo(
        str(path),
        frames,
        width,
        height,
        90 * turns,
        fps,
        codec,
        note,
        mirrored,
        judged.gaps,
        judged.interlaced,
        found.random_access,
        (remark,) if remark else (),
        timeline,
        decoded_at=_decoded_at(judged.times, frames),
    )


def _decoded_at(times: Sequence[float], frames: int) -> np.ndarray | None:
    """Seconds since the first frame, if each of the frames has a time and these ascend."""
    seconds = np.asarray(times, dtype=np.float64)
    known = len(seconds) == frames and np.all(np.diff(seconds) > 0)
    return seconds - seconds[0] if known else None


def read_frames(
    path: VideoSource,
    indices: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    *,
    short_side: int | None = None,
    size: int | tuple[int, int] | None = None,
    crop: Sequence[int] | None = None,
    info: VideoInfo | None = None,
    time_limit: float | None = None,
) -> torch.Tensor:
    """Read exactly the requested frames.

    Frame k is the k-th presented frame: edit lists are applied, variable frame rates do not
    matter, pictures are upright. Decoding starts at the key frame before each index if that
    certainly yields the same frames, and otherwise at the beginning of the file.

    Args:
        path: a file, pictures, contents, a file object or a part of a tar: see `probe`.
        indices: frame numbers from 0, in any order, repeats allowed. None: all frames.
        short_side: scale the shorter side to this many pixels, aspect kept.
        size: scale to exactly this size in pixels, an int for a square or (height, width).
        crop: (left, top, width, height) in pixels of the upright frame: only that part is
            returned, and `short_side` is its shorter side. None: the whole frame.
        info: an earlier result of `probe(path)`; avoids reading the packets in each call.
        time_limit: seconds after which a `VideoError` is raised.
    Returns:
        uint8 tensor (n, H, W, 3), RGB.
    Raises:
        VideoError: the file cannot be read, a requested frame cannot be decoded, is damaged or
            interlaced, or `crop` reaches past its picture. The result never has fewer frames, nor
            a substitute for a missing one.
        TypeError: `path` is none of these, or a file object in text mode or without seek.
        ValueError: negative or non-integer indices, both sizes passed, a size below 1, a `crop`
            that is not four whole numbers, is empty, or is combined with `size`.

    Example:
        >>> import tempfile
        >>> from fastseq.video import read_frames, write_video
        >>> path = f"{tempfile.mkdtemp()}/grey.mp4"
        >>> write_video(path, [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(20)], fps=25)
        >>> read_frames(path, [19, 0, 7], short_side=24).shape
        torch.Size([3, 24, 32, 3])
    """
    path = as_source(path)
    if short_side is not None and size is not None:
        raise ValueError("pass short_side or size, not both")
    box = None if crop is None else _as_box(crop)
    if box is not None and size is not None:
        raise ValueError("pass crop with short_side, not with size")
    sides = np.ravel([side for side in (short_side, size) if side is not None])
    if (sides < 1).any():
        raise ValueError(f"short_side and size must be at least 1, got {sides.tolist()}")
    asked = None if indices is None else _as_indices(indices)
    if asked is None and info is not None:
        asked = np.arange(info.frames)
    converter = Converter(path, short_side, size, box)
    deadline = Deadline(path, time_limit)
    if asked is None and is_pictures(path):
        asked = np.arange(len(pictures_of(path).files))
    if asked is None:
        with open_video(path, deadline) as (container, stream):
            found = scan(container, stream, deadline)
        if found.note:
            raise VideoError(path, f"{found.note}; request the frames before that by their indices")
        if found.timeline is not None and not found.certain:
            info = probe(path, time_limit=time_limit)
            if info.note:
                raise VideoError(path, info.note)
            return read_frames(path, short_side=short_side, size=size, crop=crop, info=info)
        if found.timeline is None:
            return torch.from_numpy(read_counted(path, converter, deadline))
        asked = np.arange(len(found.timeline.pts))
    wanted, places = np.unique(asked, return_inverse=True)
    if not wanted.size:
        first = collect(path, np.array([0]), info, converter, deadline)
        return torch.from_numpy(first[:0])
    frames = collect(path, wanted, info, converter, deadline)
    if not np.array_equal(wanted, asked):
        frames = frames[places]
    return torch.from_numpy(frames)


def _as_box(crop: Any) -> tuple[int, int, int, int]:
    expected = "crop must be (left, top, width, height) in whole pixels"
    try:
        left, top, width, height = (as_int("crop", value) for value in crop)
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, got {crop!r}") from None
    if left < 0 or top < 0 or width < 1 or height < 1:
        raise ValueError(f"{expected}, the first two from 0, the others from 1, got {crop!r}")
    return left, top, width, height


def _as_indices(indices: Any) -> np.ndarray:
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"indices must be a 1-D sequence of integers, got {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0:
        raise ValueError(f"indices count from 0, got {array.min()}")
    return array.astype(np.int64)
