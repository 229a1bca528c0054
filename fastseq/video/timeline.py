"""The contents of a video file and the frames it presents, from its packets, without decoding."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from fastseq.video._av import VideoError, require_av
from fastseq.video.entry import is_entry

# Containers that store one presented frame per packet, each with a time stamp. In others (AVI,
# MPEG-TS, raw streams) time stamps are missing or a packet may have only one field.
_ONE_PACKET_PER_FRAME = {"mov", "mp4", "matroska", "webm"}
_FEW = 0.1
# VP8 stores its hidden reference frames as separate packets.
_HIDDEN_FRAME_CODECS = {"vp8"}


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown.

    Attributes:
        pts: int64 (n,), presentation time stamps, ascending.
        keys: int64 (k,), time stamps of packets that decoding can begin with, ascending.
        order: int32 (n,), the frames in the order of their packets.
        time_base: seconds of one unit of the time stamps.
    """

    pts: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    time_base: Fraction

    def times(self) -> np.ndarray:
        """float64 (n,): seconds since the first frame."""
        ticks = (self.pts - self.pts[0]) * self.time_base.numerator
        return ticks / self.time_base.denominator

    def entry(self, index: int) -> tuple[int, int]:
        """Time stamp of the last key at or before frame `index` and its frame number.

        Without such a key, those of the first frame: decoding begins at the start of the file.
        """
        place = np.searchsorted(self.keys, self.pts[index], side="right") - 1
        key = int(self.keys[place] if place >= 0 else self.pts[0])
        return key, int(np.searchsorted(self.pts, key))

    def until(self, frames: int) -> Timeline:
        """The timeline of the first frames alone."""
        order = self.order[self.order < frames]
        return Timeline(self.pts[:frames], self.keys, order, self.time_base)

    def settled(self) -> Timeline:
        """The timeline of a file that breaks off, up to the last frame whose number is known.

        Frames between two others come after both: at the end of such a file it is unknown how many
        were to follow.
        """
        if not self.delay():
            return self
        last = int(np.flatnonzero(self.order == len(self.order) - 1)[0])
        return self.until(int(self.order[last:].min()))

    def delay(self) -> int:
        """Frames that a decoder must hold back to return them in the order of their time stamps."""
        return int((np.arange(len(self.order)) - self.order).max(initial=0))

    def doubtful(self, reorders: bool) -> bool:
        """Whether frames may come in another order than that of their time stamps.

        They may if the stream claims to be in order and these time stamps are not, or if few
        packets are out of order: in a stream, either most frames lie between two others or none,
        and a few are exchanged time stamps.
        """
        moved = np.mean(self.order != np.arange(len(self.order)))
        return (moved > 0 and not reorders) or 0 < moved < _FEW

    def spoilt(self, stamps: Iterable[int | None]) -> np.ndarray:
        """bool (n,): frames that may refer to one of the damaged packets of these time stamps.

        These are all frames whose packets lie between the damaged one and the next key, and those
        shown before that key that follow it: they refer to both.
        """
        out = np.zeros(len(self.pts), dtype=bool)
        rank = np.empty(len(self.order), dtype=np.int64)
        rank[self.order] = np.arange(len(self.order))
        keys = np.flatnonzero(np.isin(self.pts, self.keys))
        key_ranks = rank[keys]
        for stamp in {stamp for stamp in stamps if stamp is not None}:
            if stamp > self.pts[-1]:
                continue
            # For a frame hidden by an edit list: from the frame before it on.
            index = int(np.searchsorted(self.pts, stamp, side="right")) - 1
            begin = rank[index] if index >= 0 else 0
            later = np.searchsorted(key_ranks, begin, side="right")
            stop, shown = len(rank), len(rank)
            if later < len(keys):
                stop, shown = key_ranks[later], keys[later]
            out[self.order[begin:stop]] = True
            leading = self.order[stop:]
            out[leading[leading < shown]] = True
        return out


@dataclass(frozen=True)
class VideoInfo:
    """The contents of a video file.

    Attributes:
        frames: number of frames that can be read: edit lists applied, damaged tails left out if
            decoded.
        width, height: in pixels, after rotation.
        rotation: degrees counterclockwise (0, 90, 180, 270) that reading applies.
        mirrored: whether reading mirrors the picture left to right after that.
        fps: average over the presented frames, above 0; 25 if unknown, as with a single frame.
        note: what is damaged; empty if no damage was found.
        gaps: ranges (first, stop) of frames that are damaged, or may refer to damaged ones; they
            are not read. Empty unless all frames were decoded (`decode=True`, or a doubtful file).
        interlaced: two fields per frame; such files are not read, `transcode` makes them
            progressive.
        random_access: False if key frames are missing or cannot be trusted, so that reading begins
            far before a frame, at worst at the start of the file.
        remarks: other remarks, such as which of several video streams is read.
        crop, sync: the part to use and when it was shot, see `fastseq.video.items.Video`. No file
            contains them; `dataclasses.replace(info, crop=...)` sets them.
        times: float64 (frames,), seconds since the first frame at which a player shows each frame:
            true presentation times, also for variable frame rates. k / fps where the file has no
            usable time stamps.

    Example:
        >>> import tempfile
        >>> from fastseq.video import probe, write_video
        >>> path = f"{tempfile.mkdtemp()}/grey.mp4"
        >>> write_video(path, [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(4)], fps=25)
        >>> probe(path).times.tolist()
        [0.0, 0.04, 0.08, 0.12]
    """

    path: str
    frames: int
    width: int
    height: int
    rotation: int
    fps: float
    codec: str
    note: str = ""
    mirrored: bool = False
    gaps: tuple[tuple[int, int], ...] = ()
    interlaced: bool = False
    random_access: bool = True
    remarks: tuple[str, ...] = ()
    timeline: Timeline | None = field(default=None, repr=False, compare=False)
    crop: tuple[int, int, int, int] | None = None
    sync: tuple[str, int] | None = None
    # Seconds of the frames of a file without a timeline, where decoding yields them.
    decoded_at: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.path

    @property
    def times(self) -> np.ndarray:
        if self.timeline is not None:
            return self.timeline.times()
        return np.arange(self.frames) / self.fps if self.decoded_at is None else self.decoded_at

    @property
    def action(self) -> str:
        return "all"  # a file does not state what it shows


@dataclass(frozen=True)
class Scan:
    """The result of reading the packets of a file.

    Attributes:
        timeline: None if packets do not certainly map to frames one to one.
        note: states that the file breaks off, if the demuxer notices; otherwise empty.
        begins: whether decoding can begin with the first packet.
        certain: whether the timeline is right without a look at the decoded frames.
        random_access: False if packets are falsely flagged as key frames.
        declared: frames that the header declares beyond the number of packets.
        packets: number of packets, and `rate`: packets per second by their decoding time stamps;
            None if these do not tell.
    """

    timeline: Timeline | None
    note: str
    begins: bool
    certain: bool
    random_access: bool
    declared: int
    packets: int
    rate: float | None


class Deadline:
    """Raises `VideoError` at the first check after `seconds` (None: never)."""

    def __init__(self, path: str, seconds: float | None):
        self.path = path
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self.end = None if self.seconds is None else time.monotonic() + self.seconds

    def check(self) -> None:
        if self.end is not None and time.monotonic() > self.end:
            raise self.error()

    def error(self) -> VideoError:
        return VideoError(self.path, f"took longer than the limit of {self.seconds:g} s")


def scan(container: Any, stream: Any, deadline: Deadline) -> Scan:
    """Read all packets once.

    Packets that an edit list discards are left out: they are decoded but never presented.
    """
    av = require_av()
    codec = stream.codec_context
    stamps: list[int | None] = []
    decoding: list[int | None] = []
    keys: list[int] = []
    first: Any = None
    begins, random_access, note = False, True, ""
    breaks_at: int | None = None
    try:
        for count, packet in enumerate(container.demux(stream)):
            if count % 256 == 0:
                deadline.check()
            if not packet.size:
                continue
            key = packet.is_keyframe and is_entry(codec.name, codec.extradata, bytes(packet))
            random_access = random_access and key == packet.is_keyframe
            if first is None:
                first, begins = packet, key
            if key and packet.pts is not None:
                keys.append(packet.pts)
            if packet.is_corrupt and breaks_at is None:
                breaks_at = len(decoding)
            decoding.append(packet.dts)
            if not packet.is_discard:
                stamps.append(packet.pts)
    except av.error.ExitError as error:  # a read that FFmpeg gave up at the time limit
        raise deadline.error() from error
    except av.error.FFmpegError as error:
        note = note or f"the file breaks off after {len(stamps)} frames ({reason_of(error)})"
    declared, rate = _declared(stream, decoding), _rate(stream, decoding)
    formats = set(container.format.name.split(","))
    exact = (
        formats & _ONE_PACKET_PER_FRAME
        and codec.name not in _HIDDEN_FRAME_CODECS
        and stamps
        and first.pts is not None
        and None not in stamps
    )
    timeline, certain = None, begins
    if exact:
        shown = np.asarray(stamps, dtype=np.int64)
        order = np.argsort(shown, kind="stable")
        pts, ranks = shown[order], np.empty(len(order), dtype=np.int32)
        ranks[order] = np.arange(len(order))
        # A frame presented before the first key frame needs frames that are not in the file.
        if np.all(np.diff(pts) > 0) and pts[0] >= first.pts:
            entries = np.unique(np.asarray(keys, dtype=np.int64))
            timeline = Timeline(pts, entries, ranks, Fraction(stream.time_base))
    if breaks_at is not None and breaks_at < len(decoding) - 1:
        breaks_at, certain = None, False  # a gap: decoding shows its effect
    if breaks_at is not None:
        note = note or f"the file breaks off in the packet of frame {breaks_at}"
    note = note or _breaks_off_early(container, stream, timeline)
    if note and timeline is not None:
        timeline = timeline.settled()
    if timeline is not None and timeline.doubtful(codec.has_b_frames):
        certain = False
    return Scan(timeline, note, begins, certain, random_access, declared, len(decoding), rate)


def _breaks_off_early(container: Any, stream: Any, timeline: Timeline | None) -> str:
    """A note if a Matroska file ends well before the duration in its header: the demuxer treats a
    file that was cut off as a shorter one."""
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


def _declared(stream: Any, decoding: list[int | None]) -> int:
    """Frames in the header. AVI counts ticks: with several ticks per frame only its end tells."""
    declared, rate = stream.frames, stream.average_rate
    stamps = [stamp for stamp in decoding if stamp is not None]
    if not declared or not rate or stream.time_base * rate != 1 or len(stamps) < 2:
        return declared
    ticks = max(stamps) - min(stamps) + int(np.diff(sorted(stamps)).max())
    return len(decoding) if ticks >= declared else declared


def _rate(stream: Any, decoding: list[int | None]) -> float | None:
    """Packets per second, if each has a later decoding time stamp than the one before."""
    stamps = [stamp for stamp in decoding if stamp is not None]
    if len(stamps) < max(2, len(decoding)) or not np.all(np.diff(stamps) > 0):
        return None
    return (len(stamps) - 1) / float((stamps[-1] - stamps[0]) * stream.time_base)


def reason_of(error: Exception) -> str:
    """FFmpeg's own words, without the number and the name of the C function."""
    return str(getattr(error, "strerror", None) or error)
