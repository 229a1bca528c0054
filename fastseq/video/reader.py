"""Exact frame reading on PyAV: frame k is the k-th frame a player would show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastseq.video._av import VideoError, require_av, single_thread
from fastseq.video.timeline import Deadline, Timeline, decoded, reason_of, scan

__all__ = ["VideoError", "VideoInfo", "probe", "read_frames"]

# Decoding this many unwanted frames is cheaper than a seek.
_SEEK_GAP = 8


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    Attributes:
        frames: frames that come out: edit lists honoured, damaged tails left out if decoded.
        width, height: in pixels, after rotation.
        rotation: degrees counterclockwise (0, 90, 180, 270) that reading applies.
        fps: average over the presented frames.
        note: why `frames` is less than the file promises; empty if it is not.
    """

    path: str
    frames: int
    width: int
    height: int
    rotation: int
    fps: float
    codec: str
    note: str = ""
    timeline: Timeline | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.path


def probe(
    path: str | os.PathLike, *, decode: bool = False, time_limit: float | None = None
) -> VideoInfo:
    """Look into a video file.

    By default the packets are counted and the first frame is decoded. Files that break off, and
    those whose packets do not map to frames one to one for certain (AVI, MPEG-TS, VP8, a start
    without a key frame), are decoded whole.

    Args:
        decode: decode every frame, to find damage that packets do not show.
        time_limit: seconds after which the file is given up with a `VideoError`.
    Raises:
        VideoError: no readable video stream, no frame comes out, or the time limit is passed.
    """
    path = os.fspath(path)
    deadline = Deadline(path, time_limit)
    with _open(path, deadline) as (container, stream):
        declared = stream.frames
        timeline, note = scan(container, stream, deadline)
        codec, average_rate = stream.codec_context.name, stream.average_rate
        time_base = stream.time_base
    decode = decode or bool(note)
    with _open(path, deadline) as (container, stream):
        count, first = 0, None
        try:
            for frame in decoded(container, stream):
                deadline.check()
                if timeline is not None and (
                    count == len(timeline.pts) or frame.pts != timeline.pts[count]
                ):
                    note = note or f"frame {count} does not decode"
                    break
                first = first or (frame.width, frame.height, _rotation(frame))
                count += 1
                if timeline is not None and not decode:
                    break
        except require_av().error.ExitError as error:
            raise deadline.error() from error
        except require_av().error.FFmpegError as error:
            note = note or f"decoding stops after {count} frames ({reason_of(error)})"
    if first is None:
        raise VideoError(path, f"no frame can be decoded{f': {note}' if note else ''}")
    if timeline is not None:
        promised = len(timeline.pts)
        frames = count if decode else promised
        if decode and count < promised and not note:
            note = f"only {count} of {promised} frames decode"
        timeline = Timeline(timeline.pts[:frames], timeline.keys)
    else:
        frames = count
    if not note and timeline is None and declared > frames:
        note = f"the header declares {declared} frames, {frames} come out"
    fps = float(average_rate or 0)
    if timeline is not None and frames > 1 and time_base:
        fps = float((frames - 1) / ((timeline.pts[-1] - timeline.pts[0]) * time_base))
    width, height, rotation = first
    if rotation in (90, 270):
        width, height = height, width
    return VideoInfo(path, frames, width, height, rotation, fps, codec, note, timeline)


def read_frames(
    path: str | os.PathLike,
    indices: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    *,
    short_side: int | None = None,
    size: int | tuple[int, int] | None = None,
    info: VideoInfo | None = None,
    time_limit: float | None = None,
) -> torch.Tensor:
    """Read exactly the frames asked for.

    Frame k is the k-th presented frame: edit lists are honoured, variable frame rates do not
    matter, rotation is applied. Decoding starts at the key frame before each index where that
    is certain to give the same frames, and at the beginning of the file elsewhere.

    Args:
        indices: frame numbers from 0, in any order, repeats allowed. None: all frames.
        short_side: scale the shorter side to this many pixels, aspect kept.
        size: scale to exactly this size, an int for a square or (height, width).
        info: `probe(path)` from before; spares a walk over the packets on each call.
        time_limit: seconds after which the file is given up with a `VideoError`.
    Returns:
        uint8 tensor (n, H, W, 3), RGB.
    Raises:
        VideoError: the file cannot be read, or a frame asked for does not come out of it. Never
            fewer frames, nor a stand-in for a missing one.
        ValueError: negative or non-integer indices, both sizes given.
    """
    path = os.fspath(path)
    if short_side is not None and size is not None:
        raise ValueError("give short_side or size, not both")
    asked = None if indices is None else _as_indices(indices)
    if asked is None and info is not None:
        asked = np.arange(info.frames)
    if asked is not None and info is not None and asked.size and asked.max() >= info.frames:
        raise VideoError(path, _past_the_end(int(asked.max()), info.frames, info.note))
    converter = _Converter(short_side, size)
    deadline = Deadline(path, time_limit)
    if asked is None:
        with _open(path, deadline) as (container, stream):
            timeline, note = scan(container, stream, deadline)
        if note:
            raise VideoError(path, f"{note}; ask for the frames before that by their indices")
        if timeline is None:
            return torch.from_numpy(_read_counted(path, converter, deadline))
        asked = np.arange(len(timeline.pts))
    wanted, places = np.unique(asked, return_inverse=True)
    if not wanted.size:
        first = _collect(path, np.array([0]), info, converter, deadline)
        return torch.from_numpy(first[:0])
    frames = _collect(path, wanted, info, converter, deadline)
    if not np.array_equal(wanted, asked):
        frames = frames[places]
    return torch.from_numpy(frames)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) that `read_frames` scales a frame to for a given `short_side`."""
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


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


def _past_the_end(index: int, frames: int, note: str) -> str:
    why = f" ({note})" if note else ""
    return f"frame {index} was asked for, but the video has {frames} frames, 0 to {frames - 1}{why}"


@contextlib.contextmanager
def _open(path: str, deadline: Deadline | None = None) -> Iterator[tuple[Any, Any]]:
    av = require_av()
    try:
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise VideoError(path, "the file is empty (0 bytes)")
        container = av.open(path, timeout=deadline.seconds if deadline else None)
    except av.error.ExitError as error:
        raise deadline.error() from error  # only happens with a time limit
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, av.error.InvalidDataError):
            reason = "not a video file, or cut off before its index (FFmpeg cannot open it)"
        else:
            reason = reason_of(error)
        raise VideoError(path, reason) from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            kinds = sorted({stream.type for stream in container.streams})
            raise VideoError(path, f"no video stream (holds {', '.join(kinds) or 'nothing'})")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(path, "the video's codec is unknown to this FFmpeg")
        # One thread a file: where decoding stops in a damaged file must not depend on the number
        # of cores. Callers work on several files at once instead.
        stream.codec_context.thread_count = 1
        yield container, stream


def _rotation(frame: Any) -> int:
    return round(frame.rotation / 90) % 4 * 90


class _Converter:
    """Frame -> uint8 array (H, W, 3), scaled while it is converted to RGB, then rotated.

    The first frame settles the size: a stream that changes resolution still gives one shape.
    """

    def __init__(self, short_side: int | None, size: int | tuple[int, int] | None):
        self.short_side = short_side
        self.size = (size, size) if isinstance(size, int) else size
        self.reformatter = require_av().video.reformatter.VideoReformatter()
        self.stored_size: tuple[int, int] | None = None  # width, height before rotation
        self.quarter_turns = 0

    def _settle(self, frame: Any) -> tuple[int, int]:
        self.quarter_turns = _rotation(frame) // 90
        width, height = frame.width, frame.height
        if self.size is not None:
            height, width = self.size[::-1] if self.quarter_turns % 2 else self.size
        elif self.short_side is not None:
            height, width = scaled_size(height, width, self.short_side)
        self.stored_size = (width, height)
        return self.stored_size

    def __call__(self, frame: Any) -> np.ndarray:
        width, height = self.stored_size or self._settle(frame)
        rgb = self.reformatter.reformat(
            frame, width, height, "rgb24", interpolation="BILINEAR", **single_thread()
        ).to_ndarray()
        return np.rot90(rgb, self.quarter_turns) if self.quarter_turns else rgb


def _read_counted(path: str, converter: _Converter, deadline: Deadline) -> np.ndarray:
    """Every frame of a file without a timeline. One that breaks off is not called a shorter one."""
    frames: list[np.ndarray] = []
    with _open(path, deadline) as (container, stream):
        frames_of = _within(deadline, container, stream)
        problem = _play(frames_of, None, None, lambda _, f: frames.append(converter(f)))
    if problem or not frames:
        raise VideoError(path, problem or "no frame can be decoded")
    return np.stack(frames)


def _collect(
    path: str,
    wanted: np.ndarray,
    info: VideoInfo | None,
    converter: _Converter,
    deadline: Deadline,
) -> np.ndarray:
    """Frames at the ascending indices `wanted`, (len(wanted), H, W, 3)."""
    timeline, note = (info.timeline, info.note) if info is not None else (None, "")
    if info is None:
        with _open(path, deadline) as (container, stream):
            timeline, note = scan(container, stream, deadline)
    if timeline is not None and wanted[-1] >= len(timeline.pts):
        raise VideoError(path, _past_the_end(int(wanted[-1]), len(timeline.pts), note))
    out: list[np.ndarray | None] = [None]
    filled = 0

    def put(place: int, frame: Any) -> None:
        nonlocal filled
        pixels = converter(frame)
        if out[0] is None:
            out[0] = np.empty((len(wanted), *pixels.shape), dtype=np.uint8)
        out[0][place] = pixels
        filled = place + 1

    if timeline is not None:
        with _open(path, deadline) as (container, stream):
            if _jump(container, stream, wanted, timeline, put, deadline):
                return out[0]
    with _open(path, deadline) as (container, stream):
        problem = _play(_within(deadline, container, stream), wanted, timeline, put)
    if problem:
        raise VideoError(path, f"frame {wanted[filled]} was asked for, but {problem}")
    return out[0]


def _jump(
    container: Any,
    stream: Any,
    wanted: np.ndarray,
    timeline: Timeline,
    put: Callable[[int, Any], None],
    deadline: Deadline,
) -> bool:
    """Decode the wanted frames from the key frames before them.

    Every frame from a key frame on must come with the very next time stamp of the timeline;
    False as soon as one does not, so that the caller reads from the start instead.
    """
    position, key = 0, int(timeline.pts[0])
    frames = _within(deadline, container, stream)
    try:
        for place, index in enumerate(wanted):
            entry, entry_index = timeline.entry(index)
            if entry_index > position + _SEEK_GAP:
                container.seek(entry, stream=stream, backward=True, any_frame=False)
                position, key = entry_index, entry
                frames = _within(deadline, container, stream)
            for frame in frames:
                if frame.pts is None:
                    return False
                if frame.pts < key:  # frames of an earlier group that lack their references
                    continue
                if frame.pts != timeline.pts[position] or frame.is_corrupt:
                    return False
                if frame.pts == key and position and not frame.key_frame:
                    return False
                position += 1
                if position > index:
                    put(place, frame)
                    break
            else:
                return False
    except require_av().error.FFmpegError:
        return False
    return True


def _within(deadline: Deadline, container: Any, stream: Any) -> Iterator[Any]:
    """Frames from the container's current position on, until the time limit is passed."""
    try:
        for frame in decoded(container, stream):
            deadline.check()
            yield frame
    except require_av().error.ExitError as error:
        raise deadline.error() from error


def _play(
    frames: Iterator[Any],
    wanted: np.ndarray | None,
    timeline: Timeline | None,
    put: Callable[[int, Any], None],
) -> str:
    """Decode from the start up to the last wanted frame; the reason if it does not get there.

    With a timeline a missing or damaged frame is noticed, so that no later frame moves up into
    its place. Without one, frames are counted as they come.
    """
    count, place = 0, 0
    try:
        for frame in frames:
            if timeline is not None and (
                count >= len(timeline.pts) or frame.pts != timeline.pts[count]
            ):
                return f"frame {count} does not decode (the file is damaged there)"
            if wanted is None or count == wanted[place]:
                put(place, frame)
                place += 1
                if wanted is not None and place == len(wanted):
                    return ""
            count += 1
    except require_av().error.FFmpegError as error:
        return f"decoding stops after {count} frames ({reason_of(error)})"
    if wanted is None:
        return ""
    return f"only {count} frames come out of the file"
