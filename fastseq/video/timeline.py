"""Which frames a video presents, read from its packets without decoding them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq.video._av import VideoError, require_av

# Containers that store one presented frame per packet, each with its own time stamp. Elsewhere
# (AVI, MPEG-TS, raw streams) time stamps are missing or a packet may hold one field only.
_ONE_PACKET_PER_FRAME = {"mov", "mp4", "matroska", "webm"}
# VP8 stores its hidden reference frames as packets of their own.
_HIDDEN_FRAME_CODECS = {"vp8"}


@dataclass(frozen=True)
class Timeline:
    """Presentation time stamps `pts` (n,) ascending, and `keys` (k,), those of the key packets."""

    pts: np.ndarray
    keys: np.ndarray

    def entry(self, index: int) -> tuple[int, int]:
        """Time stamp of the last key packet at or before frame `index`, and its first frame."""
        key = int(self.keys[np.searchsorted(self.keys, self.pts[index], side="right") - 1])
        return key, int(np.searchsorted(self.pts, key))


class Deadline:
    """Raises `VideoError` at the first check after `seconds` (None: never)."""

    def __init__(self, path: str, seconds: float | None):
        self.path = path
        self.seconds = seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        if self.end is not None and time.monotonic() > self.end:
            raise self.error()

    def error(self) -> VideoError:
        return VideoError(self.path, f"took longer than the limit of {self.seconds:g} s")


def scan(container: Any, stream: Any, deadline: Deadline) -> tuple[Timeline | None, str]:
    """Walk all packets once: (timeline, note).

    Packets that an edit list discards are left out: they are decoded, never presented. The timeline
    is None where packets do not map to frames one to one for certain; only decoding tells then.
    `note` says that the file breaks off, if the demuxer notices.
    """
    av = require_av()
    stamps: list[int | None] = []
    keys: list[int] = []
    first_pts, starts_with_key, note = None, False, ""
    try:
        for count, packet in enumerate(container.demux(stream)):
            if count % 256 == 0:
                deadline.check()
            if not packet.size:
                continue
            if first_pts is None:
                first_pts, starts_with_key = packet.pts, packet.is_keyframe
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if packet.is_corrupt and not note:
                note = f"the file breaks off in the packet of frame {len(stamps)}"
            if not packet.is_discard:
                stamps.append(packet.pts)
    except av.error.ExitError as error:  # a read that FFmpeg gave up at the time limit
        raise deadline.error() from error
    except av.error.FFmpegError as error:
        note = note or f"the file breaks off after {len(stamps)} frames ({reason_of(error)})"
    formats = set(container.format.name.split(","))
    exact = (
        formats & _ONE_PACKET_PER_FRAME
        and stream.codec_context.name not in _HIDDEN_FRAME_CODECS
        and stamps
        and starts_with_key
        and first_pts is not None
        and None not in stamps
    )
    if not exact:
        return None, note
    pts = np.sort(np.asarray(stamps, dtype=np.int64))
    # A frame presented before the first key frame needs frames that are not in the file.
    if np.any(np.diff(pts) == 0) or pts[0] < first_pts:
        return None, note
    return Timeline(pts, np.unique(np.asarray(keys, dtype=np.int64))), note


def breaks_off_early(container: Any, stream: Any, timeline: Timeline | None) -> str:
    """A note if a Matroska file ends well before the duration in its header; its demuxer takes a
    file that was cut off for a shorter one."""
    formats = set(container.format.name.split(","))
    # With other streams the duration is that of the longest.
    if timeline is None or not formats & {"matroska", "webm"} or len(container.streams) > 1:
        return ""
    if container.duration is None or len(timeline.pts) < 2:
        return ""
    gap = float(np.diff(timeline.pts).max() * stream.time_base)
    end = float(timeline.pts[-1] * stream.time_base) + gap
    declared = container.duration / 1e6
    if end > declared - max(2 * gap, 0.02 * declared):
        return ""
    return f"the header declares {declared:.1f} s, the frames end at {end:.1f} s"


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from the container's current position on; FFmpeg's errors pass through."""
    for packet in container.demux(stream):
        yield from packet.decode()


def reason_of(error: Exception) -> str:
    """FFmpeg's own words, without the number and the name of the C function."""
    return str(getattr(error, "strerror", None) or error)
