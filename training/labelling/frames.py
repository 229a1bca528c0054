"""Pictures of a video's frames as JPEG, decoded in chunks and kept in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

    from fastseq.video import VideoInfo

CHUNK = 32  # frames
# Where reading a frame begins at the start of the file, fewer and longer chunks are read.
CHUNK_WITHOUT_SEEKING = 256
KEPT_BYTES = 200_000_000
_QUALITY = 85


def chunk_of(info: VideoInfo) -> int:
    """Frames in one chunk of a video."""
    from fastseq.video.pictures import is_pictures

    seeks = info.random_access and (info.timeline is not None or is_pictures(info.path))
    return CHUNK if seeks else CHUNK_WITHOUT_SEEKING


class Pictures:
    """Chunks of pictures, the least recently used ones dropped beyond ``kept_bytes``.

    Args:
        short_side: pixels of a picture's shorter side at most; smaller videos stay as they are.
    """

    def __init__(self, short_side: int, kept_bytes: int = KEPT_BYTES):
        self.short_side = short_side
        self.kept_bytes = kept_bytes
        self.bytes = 0
        self._chunks: OrderedDict[tuple[str, int], Sequence[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}
        self._verified: dict[str, VideoInfo] = {}  # videos whose damage showed when decoded

    def chunk(self, info: VideoInfo, number: int) -> Sequence[bytes]:
        """One JPEG for each frame of chunk ``number``; empty for a frame that is damaged.

        Raises:
            IndexError: the video has no such chunk.
            VideoError: frames cannot be read.
        """
        if not 0 <= number * chunk_of(info) < info.frames:
            raise IndexError(f"chunk {number} of {info.path} does not exist")
        key = (info.path, number)
        with self._lock:
            reading = self._reading.setdefault(info.path, threading.Lock())
        with reading:  # two requests of one chunk decode it once
            with self._lock:
                if key in self._chunks:
                    self._chunks.move_to_end(key)
                    return self._chunks[key]
            pictures = self._read(info, number)
            with self._lock:
                self._chunks[key] = pictures
                self.bytes += sum(map(len, pictures))
                while self.bytes > self.kept_bytes and len(self._chunks) > 1:
                    _, dropped = self._chunks.popitem(last=False)
                    self.bytes -= sum(map(len, dropped))
        return pictures

    def _read(self, info: VideoInfo, number: int) -> list[bytes]:
        from fastseq.video import VideoError, probe

        first = number * chunk_of(info)
        numbers = range(first, min(first + chunk_of(info), info.frames))
        if info.path not in self._verified:
            try:
                return self._jpegs(info, numbers)
            except VideoError:
                self._verified[info.path] = probe(info.path, decode=True)
        return self._jpegs(self._verified[info.path], numbers)

    def _jpegs(self, info: VideoInfo, numbers: range) -> list[bytes]:
        from fastseq.video import read_frames
        from fastseq.video.gaps import frames_of

        sound = [frame for frame in frames_of(info).tolist() if frame in numbers]
        pictures = [b""] * len(numbers)
        side = min(self.short_side, info.width, info.height)
        if sound:
            frames = read_frames(info.path, sound, short_side=side, info=info).numpy()
            for frame, pixels in zip(sound, frames, strict=True):
                pictures[frame - numbers[0]] = _jpeg(pixels)
        return pictures


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
