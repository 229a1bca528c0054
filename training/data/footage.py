"""The used part of a video and its place among synchronised videos: trim, crop and sync."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastseq.video.gaps import Gaps
from training.data.label_frames import Clock, footage_in_frames, in_frames
from training.data.label_values import (
    in_seconds,
    in_unit,
    is_time,
    known_hint,
    shown,
    time_advice,
)

_SYNC_KEYS = ("group", "offset")


class _Info(Protocol):
    """The required properties of a file; `fastseq.video.VideoInfo` has them, and `times`."""

    frames: int
    fps: float
    width: int
    height: int
    gaps: Gaps


@dataclass(frozen=True)
class Footage:
    """trim, crop and sync of one video; `training.data.index.VideoRecord` describes them.

    Attributes:
        gaps: ranges (first, stop) of frames that are damaged or outside trim.
    """

    trim: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None
    sync: tuple[str, int] | None
    gaps: Gaps


def footage_problems(entry: Mapping[str, Any]) -> list[str]:
    """Messages about malformed "trim", "crop" and "sync" in an entry of a labels file."""
    problems = _trim_problems(entry) if "trim" in entry else []
    problems += _crop_problems(entry["crop"]) if "crop" in entry else []
    return problems + (_sync_problems(entry) if "sync" in entry else [])


def _crop_problems(crop: Any) -> list[str]:
    if not _is_list(crop, 4, seconds=False):
        return [f"crop is {shown(crop)}, expected [left, top, width, height] in whole pixels"]
    if min(crop[:2]) < 0 or min(crop[2:]) < 1:
        return [
            f"crop {crop} is [left, top, width, height]: left and top must be at least 0, width "
            "and height at least 1"
        ]
    return []


def _trim_problems(entry: Mapping[str, Any]) -> list[str]:
    trim, seconds = entry["trim"], in_seconds(entry)
    what = "times of the first and the last" if seconds else "first and the last"
    if not _is_list(trim, 2, seconds):
        example = "[0.48, 3.84] in seconds" if seconds else "[12, 96]"
        wrong = (
            [value for value in trim if not is_time(value, seconds)] if type(trim) is list else []
        )
        advice = time_advice(wrong[0]) if wrong else ""
        return [
            f"trim is {shown(trim)}, expected the {what} usable frame, such as {example}{advice}"
        ]
    if not 0 <= trim[0] <= trim[1]:
        return [f"trim {trim} must be the {what} usable frame, in this order, counted from 0"]
    return []


def _sync_problems(entry: Mapping[str, Any]) -> list[str]:
    sync = entry["sync"]
    example = '{"group": "trial 1", "offset": 12}'
    if not isinstance(sync, dict):
        return [f"sync is {shown(sync)}, expected an object such as {example}"]
    problems = []
    for key in sync:
        if key not in _SYNC_KEYS:
            problems.append(f"unknown key {key!r} in sync{known_hint(key, _SYNC_KEYS)}")
    for key in getattr(sync, "twice", []):
        problems.append(f"sync: the key {key!r} is there twice; remove one")
    group, offset = sync.get("group"), sync.get("offset", 0)
    if not isinstance(group, str) or not group.strip():
        problems.append(
            f"the group of sync is {shown(group)}, expected a name that the videos of one event "
            f"share, such as {example}"
        )
    if not is_time(offset, in_seconds(entry)):
        kind = "seconds" if in_seconds(entry) else "a whole number of this video's frames"
        problems.append(
            f"the offset of sync is {shown(offset)}, expected {kind}{time_advice(offset)}"
        )
    return problems


def footage_of(entry: Mapping[str, Any], info: _Info, damaged: bool) -> tuple[Footage, bool]:
    """The footage of one video, and whether its trim was cut to the frames of a damaged file.

    Raises:
        ValueError: trim or crop lies outside the video, or trim in seconds contains no frame.
    """
    # `phases_of` reports the phases that do not fit, but not those of a damaged video.
    fitted = in_frames(entry, info) if damaged else footage_in_frames(entry, info)
    trim, cut = None, False
    gaps = tuple(info.gaps)
    if "trim" in fitted:
        first, last = fitted["trim"]
        cut = last >= info.frames
        if cut and not damaged:
            raise ValueError(_past_the_end(entry, info))
        trim = (first, min(last, info.frames - 1))
        gaps = _outside(trim, gaps, info.frames)
    crop = None
    if "crop" in entry:
        crop = tuple(entry["crop"])
        check_crop(crop, info.width, info.height)
    sync = None
    if "sync" in entry:
        sync = (fitted["sync"]["group"], fitted["sync"].get("offset", 0))
    return Footage(trim, crop, sync, gaps), cut


def _past_the_end(entry: Mapping[str, Any], info: _Info) -> str:
    if in_seconds(entry):
        times = ", ".join(in_unit(value, True) for value in entry["trim"])
        return (
            f"trim [{times}] lies past the end of the video, which has {info.frames} frames and "
            f"ends at {Clock(info).end:.4g} s"
        )
    return (
        f"trim {[*entry['trim']]} lies past the video's {info.frames} frames, 0 to "
        f"{info.frames - 1}; its second number is the last usable frame itself"
    )


def _outside(trim: tuple[int, int], gaps: Gaps, frames: int) -> Gaps:
    """The gaps together with the frames outside trim."""
    first, stop = trim[0], trim[1] + 1
    inside = [(max(a, first), min(b, stop)) for a, b in gaps]
    ranges = [(0, first), *(gap for gap in inside if gap[0] < gap[1]), (stop, frames)]
    joined: list[tuple[int, int]] = []
    for a, b in ranges:
        if joined and joined[-1][1] == a:
            joined[-1] = (joined[-1][0], b)
        elif a < b:
            joined.append((a, b))
    return tuple(joined)


def begins_past_the_end(entry: Mapping[str, Any], info: _Info, damaged: bool) -> str:
    """The reason why no frame of a damaged file is usable; empty if some are usable."""
    if not damaged or "trim" not in entry:
        return ""
    seconds = in_seconds(entry)
    first = entry["trim"][0]
    if (Clock(info).first(first) if seconds else first) < info.frames:
        return ""
    begin = in_unit(first, True) if seconds else f"frame {first}"
    return f"no usable frame: trim begins at {begin}, but only {info.frames} frames can be decoded"


def check_crop(crop: tuple[int, ...], width: int, height: int) -> None:
    """Raise ValueError for a crop that reaches past the upright picture of this size."""
    left, top, wide, high = crop
    for what, start, length, most in (
        ("left + width", left, wide, width),
        ("top + height", top, high, height),
    ):
        if start + length > most:
            raise ValueError(
                f"crop {[*crop]} reaches past the picture of {width} x {height} pixels: {what} is "
                f"{start + length}, expected at most {most}"
            )


def scaled_crop(
    crop: tuple[int, ...], size: tuple[int, int], new_size: tuple[int, int]
) -> list[int]:
    """The same crop in a copy of another size, rounded outwards; sizes are (width, height)."""
    left, top, wide, high = crop
    (width, height), (new_width, new_height) = size, new_size
    left, right = left * new_width // width, -(-(left + wide) * new_width // width)
    top, bottom = top * new_height // height, -(-(top + high) * new_height // height)
    return [left, top, right - left, bottom - top]


def _is_list(values: Any, count: int, seconds: bool) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(is_time(value, seconds) for value in values)
    )
