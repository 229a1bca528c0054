"""Decoding the frames asked for, from the nearest key frame where that is certain to be exact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastseq.video._av import VideoError, require_av, single_thread
from fastseq.video.timeline import Deadline, Timeline, reason_of, scan

if TYPE_CHECKING:
    from fastseq.video.reader import VideoInfo

# Decoding this many unwanted frames is cheaper than a seek.
_SEEK_GAP = 8


@contextlib.contextmanager
def open_video(path: str, deadline: Deadline | None = None) -> Iterator[tuple[Any, Any]]:
    av = require_av()
    name = path
    try:
        if Path(path).is_file():
            if Path(path).stat().st_size == 0:
                raise VideoError(path, "the file is empty (0 bytes)")
            name = f"file:{path}"  # or FFmpeg takes "take:1.mp4" for a protocol
        # Titles and names in another encoding than UTF-8 are no reason not to read the frames.
        timeout = deadline.seconds if deadline else None
        container = av.open(name, timeout=timeout, metadata_errors="replace")
    except av.error.ExitError as error:
        raise deadline.error() from error  # only happens with a time limit
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
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


def rotation_of(frame: Any) -> int:
    return round(frame.rotation / 90) % 4 * 90


def past_the_end(index: int, frames: int, note: str) -> str:
    why = f" ({note})" if note else ""
    return f"frame {index} was asked for, but the video has {frames} frames, 0 to {frames - 1}{why}"


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) that `read_frames` scales a frame to for a given `short_side`.

    The longer side is the nearest even number: FFmpeg's scaler is half as fast for odd widths. A
    square stays one, so that turning a frame turns its size.
    """
    if height == width:
        return short_side, short_side
    scale = short_side / min(height, width)
    longer = max(short_side, 2 * round(max(height, width) * scale / 2))
    return (longer, short_side) if height > width else (short_side, longer)


class Converter:
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
        self.quarter_turns = rotation_of(frame) // 90
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


def read_counted(path: str, converter: Converter, deadline: Deadline) -> np.ndarray:
    """Every frame of a file without a timeline. One that breaks off is not called a shorter one."""
    frames: list[np.ndarray] = []
    with open_video(path, deadline) as (container, stream):
        frames_of = _within(deadline, container, stream)
        problem = _play(frames_of, None, None, lambda _, f: frames.append(converter(f)))
    if problem or not frames:
        raise VideoError(path, problem or "no frame can be decoded")
    return np.stack(frames)


def collect(
    path: str,
    wanted: np.ndarray,
    info: VideoInfo | None,
    converter: Converter,
    deadline: Deadline,
) -> np.ndarray:
    """Frames at the ascending indices `wanted`, (len(wanted), H, W, 3)."""
    out: list[np.ndarray] = []

    def keep(place: int, pixels: np.ndarray) -> None:
        if not out:
            out.append(np.empty((len(wanted), *pixels.shape), dtype=np.uint8))
        out[0][place] = pixels

    deliver(path, wanted, info, converter, deadline, keep)
    return out[0]


def deliver(
    path: str,
    wanted: np.ndarray,
    info: VideoInfo | None,
    converter: Converter,
    deadline: Deadline,
    take: Callable[[int, np.ndarray], None],
) -> None:
    """Call `take(place, pixels)` for the frame at each of the ascending indices `wanted`.

    `pixels` (H, W, 3) are the decoder's own memory, to be copied or used at once. After damage that
    seeking did not get past, places come a second time, from the first on.
    """
    timeline, note = (info.timeline, info.note) if info is not None else (None, "")
    if info is None:
        with open_video(path, deadline) as (container, stream):
            timeline, note = scan(container, stream, deadline)
    frames = info.frames if info is not None else timeline and len(timeline.pts)
    if frames is not None and wanted[-1] >= frames:
        raise VideoError(path, past_the_end(int(wanted[-1]), frames, note))
    if wanted[0] < 0:
        raise VideoError(path, f"frame {wanted[0]} was asked for, but frames count from 0")
    filled = 0

    def put(place: int, frame: Any) -> None:
        nonlocal filled
        take(place, converter(frame))
        filled = place + 1

    if timeline is not None:
        with open_video(path, deadline) as (container, stream):
            if _jump(container, stream, wanted, timeline, put, deadline):
                return
    with open_video(path, deadline) as (container, stream):
        problem = _play(_within(deadline, container, stream), wanted, timeline, put)
    if problem:
        raise VideoError(path, f"frame {wanted[filled]} was asked for, but {problem}")


def _jump(
    container: Any,
    stream: Any,
    wanted: np.ndarray,
    timeline: Timeline,
    put: Callable[[int, Any], None],
    deadline: Deadline,
) -> bool:
    """Decode the wanted frames from the key frames before them.

    Between a key frame and a wanted one the decoder leaves out what neither is wanted nor referred
    to (B-frames, mostly). All else must come in the timeline's order; False as soon as a frame does
    not, so that the caller reads everything from the start instead.
    """
    stamps = set(timeline.pts[wanted].tolist())
    position, key = 0, int(timeline.pts[0])
    frames = _within(deadline, container, stream, stamps)
    try:
        for place, index in enumerate(wanted):
            entry, entry_index = timeline.entry(index)
            if entry_index > position + _SEEK_GAP:
                container.seek(entry, stream=stream, backward=True, any_frame=False)
                position, key = entry_index, entry
                frames = _within(deadline, container, stream, stamps)
            for frame in frames:
                if frame.pts is None:
                    return False
                if frame.pts < key:  # frames of an earlier group that lack their references
                    continue
                here = int(np.searchsorted(timeline.pts, frame.pts))
                if not position <= here <= index or frame.pts != timeline.pts[here]:
                    return False
                if frame.is_corrupt or (frame.pts == key and position and not frame.key_frame):
                    return False
                position = here + 1
                if here == index:
                    put(place, frame)
                    break
            else:
                return False
    except require_av().error.FFmpegError:
        return False
    return True


def _within(
    deadline: Deadline, container: Any, stream: Any, stamps: set[int] | None = None
) -> Iterator[Any]:
    """Frames from the container's current position on, until the time limit is passed.

    With `stamps` the decoder need not make frames of other time stamps that no frame refers to.
    """
    try:
        for packet in container.demux(stream):
            deadline.check()
            if stamps is not None:
                needed = packet.pts is None or packet.pts in stamps
                stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from packet.decode()
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
