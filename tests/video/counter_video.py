"""Videos in which every frame shows its own number, in many kinds of files."""

from __future__ import annotations

import functools
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK = 12, 16  # a 4 x 3 grid of black and white blocks
WIDTH, HEIGHT = 4 * BLOCK, 3 * BLOCK

# One thread and no macroblock tree, so that every run writes the same bytes for tests that damage
# files.
X264 = {
    "crf": "18",
    "x264-params": "keyint=12:min-keyint=12:bframes=3:scenecut=0:threads=1:mbtree=0",
}
OPEN_GOP = {**X264, "x264-params": X264["x264-params"] + ":open-gop=1"}
HEVC = {"x265-params": "keyint=12:min-keyint=12:bframes=3:open-gop=1:log-level=none:pools=none"}


def encoded_once(encode: Callable[..., Path]) -> Callable[..., Path]:
    """``encode(path, ...)``, which encodes each kind of file once and copies it to every path."""

    @functools.cache
    def content(suffix: str, *args, **options) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return encode(Path(folder, f"a{suffix}"), *args, **options).read_bytes()

    @functools.wraps(encode)
    def copy(path: Path, *args, **options) -> Path:
        path.write_bytes(content(path.suffix, *args, **options))
        return path

    return copy


def counter_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8).reshape(3, 4)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:HEIGHT, :WIDTH] = (bits * 255).repeat(BLOCK, 0).repeat(BLOCK, 1)[:, :, None]
    return image


def read_counter(frame: np.ndarray) -> int:
    """The number in the top left 64 x 48 pixels; fails if the blocks are blurred."""
    blocks = np.asarray(frame)[:HEIGHT, :WIDTH].mean(2).reshape(3, BLOCK, 4, BLOCK).mean((1, 3))
    assert np.all((blocks < 70) | (blocks > 185)), f"blurred counter: {blocks.round()}"
    return int((blocks.reshape(-1) > 128) @ (1 << np.arange(BITS)))


def encode(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    stamps: list[int] | None = None,
    audio_first: bool = False,
) -> Path:
    """`stamps`: presentation times in ms, for a variable frame rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        sound = container.add_stream("aac", rate=8000) if audio_first else None
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.options = options or {}
        stream.codec_context.thread_count = 1  # more threads only wait for each other
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            tone = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
            )
            tone.sample_rate, tone.pts = 8000, 0
            container.mux(sound.encode(tone))
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(counter_frame(number, *size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def remux(source: Path, target: Path, *, first_packet: int = 0, shift: int = 0) -> Path:
    """Copy packets from the given one on, with time stamps moved `shift` frames earlier.

    In mp4, time stamps below zero become an edit list that hides those frames.
    """
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        step = int(1 / (stream.average_rate * stream.time_base))
        for number, packet in enumerate(old.demux(stream)):
            if not packet.size or number < first_packet:
                continue
            packet.pts -= shift * step
            packet.dts -= shift * step
            packet.stream = copy
            new.mux(packet)
    return target


def set_rotation(path: Path, degrees_clockwise: int) -> Path:
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees_clockwise]
    return set_matrix(path, cos, sin, -sin, cos)


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Rewrite the display matrix in the track header of an mp4 file: (x, y) -> (a x + c y, ...)."""
    a, b, c, d = (round(entry * 65536) for entry in (a, b, c, d))
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version-0 header fields before the matrix
    data[start : start + 36] = matrix
    path.write_bytes(bytes(data))
    return path
