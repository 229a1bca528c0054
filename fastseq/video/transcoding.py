"""A copy of a video with the same frames that decodes fast from any frame on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastseq.video._av import VideoError, require_av, single_thread
from fastseq.video.arguments import as_int, as_path
from fastseq.video.decode import (
    INTERLACED,
    Converter,
    deliver,
    find_frames,
    past_the_end,
    upright_by,
)
from fastseq.video.interlaced import deinterlaced
from fastseq.video.orientation import upright
from fastseq.video.pictures import is_pictures
from fastseq.video.reader import probe
from fastseq.video.source import open_video
from fastseq.video.stretch import Stretch, counted
from fastseq.video.timeline import Deadline, Timeline, VideoInfo
from fastseq.video.writer import H264File

# FFmpeg's numbers of colour matrices and ranges.
_MATRIX_RGB, _MATRIX_BT601, _RANGE_LIMITED = 0, 5, 1


def transcode(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    short_side: int = 256,
    keyframe_every: int = 16,
    crf: int = 20,
    time_limit: float | None = None,
    comment: str = "",
    on_frame: Callable[[int, int], None] | None = None,
    frames: tuple[int, int] | None = None,
    fps: float | None = None,
) -> VideoInfo:
    """Copy a video to an H.264 mp4 file (yuv420p, no sound) whose frame k is the source's frame k.

    Frames equal those of `read_frames`: edit lists are applied, turned and mirrored pictures become
    upright. Interlaced frames, which `read_frames` rejects, become progressive by FFmpeg's bwdif,
    one picture for two fields. Frames follow each other at the source's average rate, without
    B-frames, so that packets, frames and time stamps are one to one for every reader. The colour
    matrix and range are kept; RGB sources and pictures become BT.601, limited range. The target
    appears once it is complete and its frames have been counted.

    Args:
        source: a file, pictures or a part of a tar, see `probe`. Contents and file objects have to
            be written to a file first.
        short_side: scale the shorter side down to this many pixels, an even number; a smaller
            video keeps its size, minus one row or column if that is odd.
        keyframe_every: distance of key frames, in frames.
        crf: x264's constant rate factor, 0 (lossless) to 51; smaller is better and larger on disk.
        time_limit: seconds without progress after which a `VideoError` is raised.
        comment: text for the target's metadata.
        on_frame: called with (frames done, frames in total) after each frame; an error that it
            raises ends the work.
        frames: (first, stop): copy frames `first` to `stop` - 1 alone, so that frame 0 of the copy
            is the source's frame `first`. Decoding begins at the key frame before them. None: all.
        fps: frames per second of pictures; default 25. Files have their own.
    Returns:
        `probe` of the target.
    Raises:
        VideoError: the source cannot be read, one of the frames to copy is damaged or does not
            exist, or the target cannot be written. No target is left then; an earlier one is kept.
        ValueError: an option out of range, or `fps` for a file.

    Example:
        >>> import tempfile
        >>> from fastseq.video import transcode, write_video
        >>> folder = tempfile.mkdtemp()
        >>> grey = [np.full((360, 640, 3), 9 * k, np.uint8) for k in range(20)]
        >>> write_video(f"{folder}/slow.mp4", grey, fps=25)
        >>> copy = transcode(f"{folder}/slow.mp4", f"{folder}/fast.mp4")
        >>> copy.frames, copy.width, copy.height
        (20, 456, 256)
    """
    check_settings(short_side, keyframe_every, crf)
    source = as_path(source, "source")
    info = probe(source, time_limit=time_limit, fps=fps)
    first, stop = (0, info.frames) if frames is None else _as_range(frames)
    if stop > info.frames:
        raise VideoError(source, past_the_end(stop - 1, info.frames, info.note))
    if info.note and (frames is None or not _sound_between(info, first, stop)):
        raise VideoError(source, info.note)

    def check(partial: Path) -> None:
        found = probe(partial).frames
        if found != stop - first:
            raise VideoError(source, f"the copy has {found} frames instead of {stop - first}")

    def copy(write: Callable[[Callable[[Any], None]], None]) -> None:
        picture = _Picture(source, short_side)
        options = _options(keyframe_every, crf)
        with H264File(target, info.fps, options, comment=comment, check=check) as file:

            def add(frame: Any) -> None:
                file.add(picture(frame))
                if on_frame is not None:
                    on_frame(file.count, stop - first)

            write(add)

    def in_order(add: Callable[[Any], None]) -> None:
        for frame in islice(_frames(info, time_limit), first, stop if frames else None):
            add(frame)

    if is_pictures(source):
        copy(lambda add: _add_pictures(info, first, stop, time_limit, add))
        return probe(target)
    timeline = info.timeline
    if frames is not None and timeline is not None:
        try:
            copy(lambda add: _add_found(info, timeline, first, stop, time_limit, add))
            return probe(target)
        except VideoError:  # damaged, interlaced, or other frames than from the start of the file
            pass
    try:
        copy(in_order)
    except VideoError as error:
        judged = probe(source, decode=True, time_limit=time_limit)
        if frames is not None and not _sound_between(judged, first, stop):
            raise VideoError(source, judged.note) from error
        if judged.note or (judged.timeline is None) == (info.timeline is None):
            raise
        info = judged  # frames are not in the order of their time stamps
        copy(in_order)
    return probe(target)


def _as_range(frames: Any) -> tuple[int, int]:
    try:
        first, stop = frames
    except (TypeError, ValueError):
        raise ValueError(f"frames must be (first, stop), got {frames!r}") from None
    first, stop = as_int("frames[0]", first, 0), as_int("frames[1]", stop)
    if stop <= first:
        raise ValueError(f"frames must be (first, stop) with first < stop, got {(first, stop)}")
    return first, stop


def _sound_between(info: VideoInfo, first: int, stop: int) -> bool:
    return not any(gap < stop and first < end for gap, end in info.gaps)


def check_settings(short_side: int, keyframe_every: int, crf: int) -> None:
    """Raise ValueError for a setting of `transcode` that is out of range."""
    if short_side < 2 or short_side % 2:
        raise ValueError(f"short_side must be an even number from 2, got {short_side}")
    if keyframe_every < 1:
        raise ValueError(f"keyframe_every must be at least 1, got {keyframe_every}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be from 0 to 51, got {crf}")


def _options(keyframe_every: int, crf: int) -> dict[str, str]:
    # fastdecode (CAVLC, no deblocking) halves the time to read a frame for 10 % more bytes.
    # Without B-frames no edit list is needed. mbtree is not reproducible on small pictures.
    distance = f"keyint={keyframe_every}:min-keyint={keyframe_every}"
    return {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": str(crf),
        "x264-params": f"{distance}:scenecut=0:bframes=0:mbtree=0",
    }


def _frames(info: VideoInfo, time_limit: float | None) -> Iterator[Any]:
    """Every frame of a video in order, progressive; a VideoError at the first unsound one."""
    deadline = Deadline(info.path, time_limit)
    with open_video(info.path, deadline) as (container, stream):
        stretch = Stretch(container, stream, deadline)
        yield from deinterlaced(stream, _sound(info, stretch, deadline))


def _sound(info: VideoInfo, stretch: Stretch, deadline: Deadline) -> Iterator[Any]:
    pts = None if info.timeline is None else info.timeline.pts
    frames = stretch if pts is not None else (frame for _, frame, _ in counted(stretch))
    count = 0
    for count, frame in enumerate(frames, 1):
        why = f" ({stretch.reason})" if stretch.reason else ""
        if (
            count > info.frames
            or stretch.damaged
            or (pts is not None and frame.pts != pts[count - 1])
        ):
            raise VideoError(info.path, f"frame {count - 1} does not decode without errors{why}")
        yield frame
        deadline.restart()
    if count != info.frames or stretch.damaged:
        why = f" ({stretch.reason})" if stretch.reason else ""
        raise VideoError(info.path, f"only {count} of {info.frames} frames decode{why}")


def _add_found(
    info: VideoInfo,
    timeline: Timeline,
    first: int,
    stop: int,
    time_limit: float | None,
    add: Callable[[Any], None],
) -> None:
    """Add frames `first` to `stop` - 1 of a file, decoded from the key frame before them."""
    deadline = Deadline(info.path, time_limit)

    def put(_: int, frame: Any) -> None:
        if frame.interlaced_frame:  # its neighbours are needed
            raise VideoError(info.path, INTERLACED)
        add(frame)
        deadline.restart()

    problem = find_frames(info.path, np.arange(first, stop), timeline, deadline, True, put)
    if problem:
        raise VideoError(info.path, problem)


def _add_pictures(
    info: VideoInfo,
    first: int,
    stop: int,
    time_limit: float | None,
    add: Callable[[Any], None],
) -> None:
    """Add pictures `first` to `stop` - 1, in RGB: their formats and colours may differ."""
    av = require_av()
    deadline = Deadline(info.path, time_limit)

    def take(_: int, pixels: np.ndarray) -> None:
        add(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))
        deadline.restart()

    converter = Converter(info.path, None, (info.height, info.width))
    deliver(info.path, np.arange(first, stop), info, converter, deadline, take)


class _Picture:
    """Frame -> yuv420p frame of even sizes, scaled and upright. The first frame fixes the size."""

    def __init__(self, path: str, short_side: int):
        self.path = path
        self.short_side = short_side
        self.size: tuple[int, int] | None = None  # width, height before rotation
        self.quarter_turns, self.mirrored = 0, False
        self.reformatter = require_av().video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> Any:
        if self.size is None:
            self.size = even_size(frame.width, frame.height, self.short_side)
            self.quarter_turns, self.mirrored = upright_by(self.path, frame)
        colours = {}
        if frame.colorspace == _MATRIX_RGB or frame.format.is_rgb:
            colours = {"dst_colorspace": _MATRIX_BT601, "dst_color_range": _RANGE_LIMITED}
        small = self.reformatter.reformat(
            frame, *self.size, "yuv420p", interpolation="BILINEAR", **colours, **single_thread()
        )
        if not self.quarter_turns and not self.mirrored:
            return small
        return _turned(small, self.quarter_turns, self.mirrored)


def even_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Nearest even sizes with the shorter side at most `short_side`; nothing is enlarged.

    A side of one pixel becomes two: yuv420p has nothing smaller.
    """
    scale = min(1.0, short_side / min(width, height))
    width, height = (
        max(2, min(2 * round(side * scale / 2), side // 2 * 2)) for side in (width, height)
    )
    return width, height


def _turned(frame: Any, quarter_turns: int, mirrored: bool) -> Any:
    """A yuv420p frame turned counterclockwise, then mirrored left to right."""
    width, height = frame.width, frame.height
    luma, chroma = np.split(frame.to_ndarray(), [height])
    planes = [luma, *chroma.reshape(2, height // 2, width // 2)]
    planes = [upright(plane, quarter_turns, mirrored) for plane in planes]
    stacked = np.concatenate([plane.ravel() for plane in planes])
    turned = require_av().VideoFrame.from_ndarray(
        stacked.reshape(-1, planes[0].shape[1]), format="yuv420p"
    )
    for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(turned, name, getattr(frame, name))
    return turned
