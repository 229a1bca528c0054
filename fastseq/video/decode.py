"""Decoding the requested frames, from the nearest key frame where that is certain to be exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq.video._av import VideoError, require_av, single_thread
from fastseq.video.damage import Judged, judge
from fastseq.video.orientation import UnknownOrientation, orientation_of, upright
from fastseq.video.pictures import is_pictures, pictures_of
from fastseq.video.source import open_video
from fastseq.video.stretch import Stretch, counted, whole_pictures
from fastseq.video.timeline import Deadline, Timeline, VideoInfo, scan

# Decoding this many unwanted frames is cheaper than a seek.
_SEEK_GAP = 8
_DISORDER = "frames are not in the order of their time stamps"

INTERLACED = (
    "two fields per frame (interlaced), which look like combs in one picture; "
    "`fastseq.video.transcode(source, target)` makes a progressive copy"
)


def past_the_end(index: int, frames: int, note: str) -> str:
    why = f" ({note})" if note else ""
    return f"frame {index} was requested, but the video has {frames} frames, 0 to {frames - 1}{why}"


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) that `read_frames` scales a frame to for a given `short_side`.

    The longer side is rounded to an even number: FFmpeg's scaler is half as fast for odd widths. A
    square stays square, so that turning a frame swaps its sizes.
    """
    if height == width:
        return short_side, short_side
    scale = short_side / min(height, width)
    longer = max(short_side, 2 * round(max(height, width) * scale / 2))
    return (longer, short_side) if height > width else (short_side, longer)


@dataclass(frozen=True)
class Area:
    """The part of a frame that is used, in pixels of the frame scaled to short side `side`."""

    side: int
    top: int
    left: int
    height: int
    width: int


def scaled_area(
    height: int, width: int, short_side: int, crop: tuple[int, int, int, int] | None
) -> Area:
    """Scaling and area for which a crop's shorter side has `short_side` pixels, or one less.

    Args:
        crop: (left, top, width, height) in pixels of the upright frame; None = the whole frame.
            Rounded inwards: nothing outside is used.
    """
    if crop is None or (crop[2], crop[3]) == (width, height):
        return Area(short_side, 0, 0, *scaled_size(height, width, short_side))
    left, top, wide, high = crop
    side = max(1, round(short_side * min(height, width) / min(wide, high)))
    scaled_height, scaled_width = scaled_size(height, width, side)
    y, bottom = _inside(top, top + high, scaled_height, height)
    x, right = _inside(left, left + wide, scaled_width, width)
    return Area(side, y, x, bottom - y, right - x)


def _inside(first: int, stop: int, scaled: int, whole: int) -> tuple[int, int]:
    """A range of `whole` pixels in `scaled` ones, at least one."""
    first, stop = -(-first * scaled // whole), stop * scaled // whole
    first = min(first, scaled - 1)
    return first, max(stop, first + 1)


class Converter:
    """Frame -> uint8 array (H, W, 3): scaled during the conversion to RGB, then turned upright.

    The first frame fixes the output size, so a stream that changes resolution still yields one
    shape. With a `crop`, (left, top, width, height) of the upright frame, the result is the crop,
    and `short_side` is the crop's.
    """

    def __init__(
        self,
        path: str,
        short_side: int | None,
        size: int | tuple[int, int] | None,
        crop: tuple[int, int, int, int] | None = None,
    ):
        self.path = path
        self.short_side = short_side
        self.crop = crop
        self.area: Area | None = None
        self.size = (size, size) if isinstance(size, int) else size
        self.reformatter = require_av().video.reformatter.VideoReformatter()
        self.stored_size: tuple[int, int] | None = None  # width, height before rotation
        self.quarter_turns, self.mirrored = 0, False

    def settle(
        self, width: int, height: int, quarter_turns: int, mirrored: bool
    ) -> tuple[int, int]:
        """Fix the output by a stored size and its turn, as the first frame otherwise does."""
        self.quarter_turns, self.mirrored = quarter_turns, mirrored
        if self.size is not None:
            height, width = self.size[::-1] if self.quarter_turns % 2 else self.size
        elif self.crop is not None:
            self.area = self._area(self.crop, height, width)
            if self.short_side is not None:
                height, width = scaled_size(height, width, self.area.side)
        elif self.short_side is not None:
            height, width = scaled_size(height, width, self.short_side)
        self.stored_size = (width, height)
        return self.stored_size

    def _area(self, crop: tuple[int, int, int, int], height: int, width: int) -> Area:
        if self.quarter_turns % 2:
            height, width = width, height
        left, top, wide, high = crop
        if left + wide > width or top + high > height:
            raise VideoError(
                self.path,
                f"crop {crop} (left, top, width, height) reaches past its picture of {width} "
                f"x {height} pixels",
            )
        if self.short_side is None:
            return Area(min(height, width), top, left, high, wide)
        return scaled_area(height, width, self.short_side, crop)

    def __call__(self, frame: Any) -> np.ndarray:
        if frame.interlaced_frame:
            raise VideoError(self.path, INTERLACED)
        width, height = self.stored_size or self.settle(
            frame.width, frame.height, *upright_by(self.path, frame)
        )
        rgb = self.reformatter.reformat(
            frame, width, height, "rgb24", interpolation="BILINEAR", **single_thread()
        ).to_ndarray()
        pixels = upright(rgb, self.quarter_turns, self.mirrored)
        if self.area is None:
            return pixels
        rows = slice(self.area.top, self.area.top + self.area.height)
        columns = slice(self.area.left, self.area.left + self.area.width)
        return np.ascontiguousarray(pixels[rows, columns])


def upright_by(path: str, frame: Any) -> tuple[int, bool]:
    """`orientation_of` a frame, or a VideoError."""
    try:
        return orientation_of(frame)
    except UnknownOrientation as error:
        raise VideoError(path, str(error)) from error


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

    `pixels` (H, W, 3) is the decoder's own memory: copy it or use it at once. If seeking does not
    yield the right frames, all places are delivered a second time, from the first on.
    """
    known: VideoInfo | Judged | None = info
    pictures = pictures_of(path) if is_pictures(path) else None
    if pictures is not None:
        known = known or pictures.info()
        if known.frames != len(pictures.files):
            changed = f"{len(pictures.files)} pictures instead of {known.frames}"
            raise VideoError(path, f"the folder has changed since it was probed: {changed}")
    if known is None:
        with open_video(path, deadline) as (container, stream):
            found = scan(container, stream, deadline)
        timeline, note = found.timeline, found.note
        gaps: tuple[tuple[int, int], ...] = ()
        frames = None if timeline is None else len(timeline.pts)
        if timeline is not None and not found.certain:
            known = judge(path, found, deadline, whole=True)
    if known is not None:
        timeline, note, gaps, frames = known.timeline, known.note, known.gaps, known.frames
    if frames is not None and wanted[-1] >= frames:
        raise VideoError(path, past_the_end(int(wanted[-1]), frames, note))
    if wanted[0] < 0:
        raise VideoError(path, f"frame {wanted[0]} was requested, but frames count from 0")
    for first, stop in gaps:
        place = int(np.searchsorted(wanted, first))
        if place < len(wanted) and wanted[place] < stop:
            raise VideoError(path, f"frame {wanted[place]} was requested, but {note}")

    if pictures is not None:
        pictures.deliver(wanted, converter, deadline, take)
        return

    def put(place: int, frame: Any) -> None:
        take(place, converter(frame))

    problem = _DISORDER
    if timeline is not None:
        for seeks in (True, False):
            problem = find_frames(path, wanted, timeline, deadline, seeks, put)
            if not problem:
                return
        if problem != _DISORDER and shows_all(path, timeline, deadline):
            problem = _DISORDER
    if problem == _DISORDER:
        with open_video(path, deadline) as (container, stream):
            problem = _by_count(Stretch(container, stream, deadline), wanted, put)
    if problem:
        raise VideoError(path, problem)


def find_frames(
    path: str,
    wanted: np.ndarray,
    timeline: Timeline,
    deadline: Deadline,
    seeks: bool,
    put: Callable[[int, Any], None],
) -> str:
    """Call `put(place, frame)` for the frames at the ascending indices `wanted`, found by their
    time stamps; the reason if one is not sound. Without `seeks`, from the start of the file."""
    with open_video(path, deadline) as (container, stream):
        return _ByTime(container, stream, wanted, timeline, deadline, seeks).deliver(put)


def read_counted(path: str, converter: Converter, deadline: Deadline) -> np.ndarray:
    """Every frame of a file without a timeline. A file that breaks off is an error, not shorter."""
    frames: list[np.ndarray] = []
    with open_video(path, deadline) as (container, stream):
        stretch = Stretch(container, stream, deadline)
        problem = _by_count(stretch, None, lambda _, frame: frames.append(converter(frame)))
    if problem or not frames:
        raise VideoError(path, problem or "no frame can be decoded")
    return np.stack(frames)


class _ByTime:
    """Finds the wanted frames of a file by their time stamps.

    With `seeks`, decoding begins at the key before each frame, and skips frames that are neither
    wanted nor referred to (mostly B-frames). Frames are counted from the key, if its frame is the
    key frame of the timeline. Without `seeks`, decoding runs from the start of the file, and a
    missing frame is noticed.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        wanted: np.ndarray,
        timeline: Timeline,
        deadline: Deadline,
        seeks: bool,
    ):
        self.container, self.stream, self.deadline = container, stream, deadline
        self.wanted, self.timeline, self.seeks = wanted, timeline, seeks
        self.stamps = set(timeline.pts[wanted].tolist())
        self.key = int(timeline.pts[0])
        self.position = 0  # the earliest frame that can come next
        self.begun = True  # whether the key frame has been decoded
        self.missing: set[int] = set()
        self.stretch = Stretch(container, stream, deadline, self.stamps if seeks else None)

    def deliver(self, put: Callable[[int, Any], None]) -> str:
        """Return the reason if a frame is not sound, otherwise an empty string."""
        for place, index in enumerate(self.wanted.tolist()):
            key, first = self.timeline.entry(index)
            if self.seeks and first > self.position + _SEEK_GAP:
                self._seek(key, first)
            frame = self._find(index)
            if isinstance(frame, str) and self.seeks and self.key != key:
                self._seek(key, first)  # for example behind damage
                frame = self._find(index)
            if isinstance(frame, str):
                return frame
            put(place, frame)
        return ""

    def _seek(self, key: int, first: int) -> None:
        self.container.seek(key, stream=self.stream, backward=True, any_frame=False)
        self.stamps.add(key)
        self.key, self.position, self.begun = key, first, False
        self.stretch = Stretch(self.container, self.stream, self.deadline, self.stamps)

    def _find(self, index: int) -> Any:
        """The frame, or the reason why it is missing."""
        pts, stretch = self.timeline.pts, self.stretch
        asked = f"frame {index} was requested, but"
        for frame in stretch:
            if frame.pts is None:
                return _DISORDER
            if frame.pts < self.key:  # of an earlier group, without its references
                continue
            if frame.pts > pts[-1]:  # beyond the counted frames of a file that breaks off
                break
            here = int(np.searchsorted(pts, frame.pts))
            if frame.pts != pts[here] or here < self.position:
                return _DISORDER
            if not self.begun and not _begins(frame, self.key):
                return f"{asked} the key frame before it is falsely marked as one"
            self.begun = True
            if not self.seeks:
                self.missing.update(pts[self.position : here].tolist())
            self.position = here + 1
            damaged = stretch.damaged | self.missing
            if damaged and self.timeline.spoilt(damaged)[index]:
                return f"{asked} it is damaged ({stretch.reason or 'frames are missing'})"
            if here == index:
                return frame
            if here > index:
                return f"{asked} it does not decode"
        why = stretch.reason or f"only {self.position} frames can be decoded"
        return f"{asked} decoding stops before it ({why})"


def _begins(frame: Any, key: int) -> bool:
    return frame.pts == key and frame.key_frame and frame.pict_type in whole_pictures()


def _by_count(stretch: Stretch, wanted: np.ndarray | None, put: Callable[[int, Any], None]) -> str:
    """Count frames in their order; the reason if a wanted one (None: any) is not sound."""
    place, count = 0, 0
    for count, frame, sound in counted(stretch):
        number = count - 1
        if wanted is not None and number != wanted[place]:
            continue
        if not sound:
            return f"frame {number} is damaged ({stretch.reason})"
        put(place, frame)
        place += 1
        if wanted is not None and place == len(wanted):
            return ""
    if stretch.reason and stretch.stopped:
        stops = f"decoding stops after {count} frames ({stretch.reason})"
    else:
        stops = f"only {count} frames can be decoded"
    if wanted is None:
        return stops if stretch.stopped else ""
    return f"frame {wanted[place]} was requested, but {stops}"


def shows_all(path: str, timeline: Timeline, deadline: Deadline) -> bool:
    """Whether every frame is sound, in the order of time stamps or another."""
    with open_video(path, deadline) as (container, stream):
        stretch = Stretch(container, stream, deadline)
        stamps = [frame.pts for frame in stretch]
    return not stretch.damaged and sorted(stamps, key=lambda s: -1 if s is None else s) == list(
        timeline.pts
    )
