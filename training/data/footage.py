"""The used part of a video and its place among synchronised videos: trim, crop and sync."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastseq.video.gaps import Gaps, gaps_of, sound_frames

_SYNC_KEYS = ("group", "offset")


class _Info(Protocol):
    """The required properties of a file; `fastseq.video.VideoInfo` has them."""

    frames: int
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
    problems = []
    trim = entry.get("trim", [0, 0])
    if not _whole_numbers(trim, 2):
        problems.append(
            f"trim is {_shown(trim)}, expected the first and the last usable frame, such as "
            "[12, 96]"
        )
    elif not 0 <= trim[0] <= trim[1]:
        problems.append(
            f"trim {trim} must be the first and the last usable frame, in this order, counted "
            "from 0"
        )
    crop = entry.get("crop", [0, 0, 1, 1])
    if not _whole_numbers(crop, 4):
        problems.append(
            f"crop is {_shown(crop)}, expected [left, top, width, height] in whole pixels"
        )
    elif min(crop[:2]) < 0 or min(crop[2:]) < 1:
        problems.append(
            f"crop {crop} is [left, top, width, height]: left and top must be at least 0, width "
            "and height at least 1"
        )
    return problems + (_sync_problems(entry["sync"]) if "sync" in entry else [])


def known_hint(key: str, known: Sequence[str]) -> str:
    """A hint for an unknown key: the most similar known key, or all known keys."""
    near = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _sync_problems(sync: Any) -> list[str]:
    example = '{"group": "trial 1", "offset": 12}'
    if not isinstance(sync, dict):
        return [f"sync is {_shown(sync)}, expected an object such as {example}"]
    problems = []
    for key in sync:
        if key not in _SYNC_KEYS:
            problems.append(f"unknown key {key!r} in sync{known_hint(key, _SYNC_KEYS)}")
    for key in getattr(sync, "twice", []):
        problems.append(f"sync: the key {key!r} is there twice; remove one")
    group, offset = sync.get("group"), sync.get("offset", 0)
    if not isinstance(group, str) or not group.strip():
        problems.append(
            f"the group of sync is {_shown(group)}, expected a name that the videos of one event "
            f"share, such as {example}"
        )
    if type(offset) is not int:
        problems.append(
            f"the offset of sync is {_shown(offset)}, expected a whole number of this video's "
            "frames"
        )
    return problems


def footage_of(entry: Mapping[str, Any], info: _Info, damaged: bool) -> tuple[Footage, bool]:
    """The footage of one video, and whether its trim was cut to the frames of a damaged file.

    Raises:
        ValueError: trim or crop lies outside the video.
    """
    trim, cut = _trim(entry, info.frames, damaged)
    gaps = tuple(info.gaps)
    if trim is not None:
        sound = sound_frames(info.frames, gaps).tolist()
        used = {frame for frame in sound if trim[0] <= frame <= trim[1]}
        gaps = gaps_of(frame for frame in range(info.frames) if frame not in used)
    crop = None
    if "crop" in entry:
        crop = tuple(entry["crop"])
        check_crop(crop, info.width, info.height)
    sync = None
    if "sync" in entry:
        sync = (entry["sync"]["group"], entry["sync"].get("offset", 0))
    return Footage(trim, crop, sync, gaps), cut


def _trim(
    entry: Mapping[str, Any], frames: int, damaged: bool
) -> tuple[tuple[int, int] | None, bool]:
    if "trim" not in entry:
        return None, False
    first, last = entry["trim"]
    if last < frames:
        return (first, last), False
    if not damaged:
        raise ValueError(
            f"trim [{first}, {last}] lies past the video's {frames} frames, 0 to {frames - 1}; its "
            "second number is the last usable frame itself"
        )
    return (first, frames - 1), True


def begins_past_the_end(entry: Mapping[str, Any], frames: int, damaged: bool) -> str:
    """The reason why no frame of a damaged file is usable; empty if some are usable."""
    first = entry.get("trim", (0, 0))[0]
    if not damaged or first < frames:
        return ""
    return f"no usable frame: trim begins at frame {first}, but only {frames} frames can be decoded"


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


def _whole_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(v) is int for v in values)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
