"""Frames in the decoder's order, and which of them are sound."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from fastseq.video._av import require_av
from fastseq.video.timeline import Deadline, reason_of

# These decoders return no picture before the first right one, a key frame or a recovery point.
_WAIT_FOR_KEY = {"h264", "hevc", "vvc"}
# No decoder holds back more frames to put them into order.
_MOST_HELD = 17


@functools.cache
def whole_pictures() -> frozenset[int]:
    """Types of pictures that refer to no other: PyAV has none for codecs without such types."""
    kinds = require_av().video.frame.PictureType
    return frozenset({int(kinds.NONE), int(kinds.I), int(kinds.SI)})


class Stretch:
    """Frames of a file from its current position on.

    A frame between two others (a B-frame) is returned after the decoder has decoded the later one:
    if the later one is damaged, `damaged` includes it by then.

    Args:
        stamps: time stamps of wanted frames. The decoder may skip other frames that no frame refers
            to. None: all frames are wanted.

    Attributes:
        damaged: time stamps of packets that raised an error and of frames that the decoder had to
            make up in part; None for one without a time stamp.
        stopped: whether a packet raised an error: from there on frames cannot be counted.
        reason: FFmpeg's words for the first error.
    """

    def __init__(
        self, container: Any, stream: Any, deadline: Deadline, stamps: set[int] | None = None
    ):
        self.damaged: set[int | None] = set()
        self.stopped, self.reason = False, ""
        self._waits = stream.codec_context.name in _WAIT_FOR_KEY
        self._starts_with_key: bool | None = None
        self._frames = self._in_order(self._decoded(container, stream, deadline, stamps))

    def __iter__(self) -> Iterator[Any]:
        return self._frames

    def begins_with(self, frame: Any) -> bool:
        """Whether the first decoded frame can be trusted.

        For a file that starts between two key frames some decoders return pictures built on frames
        that they never had, up to the next key frame.
        """
        return self._waits or bool(self._starts_with_key) or is_whole(frame)

    def _decoded(
        self, container: Any, stream: Any, deadline: Deadline, stamps: set[int] | None
    ) -> Iterator[Any]:
        av = require_av()
        packets = container.demux(stream)
        hidden: set[int | None] | None = set()  # None after the first packet of a shown frame
        before: set[int | None] = set()
        while True:
            packet = None
            try:
                packet = next(packets, None)
                deadline.check()
                if packet is None:
                    return
                if self._starts_with_key is None:
                    self._starts_with_key = packet.is_keyframe
                if stamps is not None:
                    needed = packet.pts is None or packet.pts in stamps
                    stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
                if hidden is not None and packet.is_discard:
                    hidden.add(packet.pts)
                    before = hidden
                    made = stream.codec_context.decode(_shown(packet))
                else:
                    hidden = None
                    made = packet.decode()
            except av.error.ExitError as error:
                raise deadline.error() from error
            except av.error.FFmpegError as error:
                self.stopped, self.reason = True, self.reason or reason_of(error)
                if packet is None:  # the file ends here
                    return
                self.damaged.add(packet.pts)
                continue
            for frame in made:
                if frame.is_corrupt:
                    self.reason = self.reason or "FFmpeg had to make up a part of it"
                    self.damaged.add(frame.pts)
                if frame.pts not in before:
                    yield frame

    def _in_order(self, frames: Iterator[Any]) -> Iterator[Any]:
        between = int(require_av().video.frame.PictureType.B)
        held: list[Any] = []
        for frame in frames:
            held.append(frame)
            if frame.pict_type != between or len(held) > _MOST_HELD:
                yield from held
                held.clear()
        yield from held


def _shown(packet: Any) -> Any:
    """A copy of a packet that an edit list hides, for which the decoder returns the frame: only the
    frame tells whether it is sound, and the first shown frames refer to it."""
    copy = require_av().Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.is_keyframe = packet.is_keyframe
    return copy


def is_whole(frame: Any) -> bool:
    """Whether the frame is a sound key frame that refers to no other picture."""
    return frame.key_frame and not frame.is_corrupt and frame.pict_type in whole_pictures()


def counted(stretch: Stretch) -> Iterator[tuple[int, Any, bool]]:
    """(frames so far, frame, whether it is sound) from the start of a file without a timeline.

    After damage, frames are sound again from the next key frame on. The iterator ends where a
    packet raises an error, since the number of lost frames is unknown. If a file starts between two
    key frames, frames before the first one are not counted.
    """
    count = 0
    for frame in stretch:
        whole = is_whole(frame)
        if not count:
            if not stretch.begins_with(frame):
                continue
            stretch.stopped, stretch.reason = False, ""
            if whole or not frame.is_corrupt:
                stretch.damaged.clear()
        if stretch.stopped:
            return
        if whole:
            stretch.damaged.clear()
        count += 1
        yield count, frame, not stretch.damaged
