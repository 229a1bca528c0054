"""One encoded picture: its codec, size and orientation, read from its bytes, and its frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastseq.video._av import require_av
from fastseq.video.timeline import reason_of

ENDINGS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"))

# By EXIF's orientation: quarter turns counterclockwise, then mirrored left to right.
_ORIENTATIONS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
_ORIENTATION, _SHORT = 0x0112, 3  # EXIF's tag and the type of its value
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers with the size
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))


class PictureError(ValueError):
    """A picture that cannot be decoded; the message states why."""


@dataclass(frozen=True)
class Header:
    """The codec by FFmpeg's name, the stored size in pixels, and the turn to the upright picture.

    Attributes:
        quarter_turns, mirrored: turns counterclockwise, then whether left and right are exchanged.
    """

    codec: str
    width: int
    height: int
    quarter_turns: int = 0
    mirrored: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after the turn."""
        sides = self.width, self.height
        return sides[::-1] if self.quarter_turns % 2 else sides


def header_of(data: bytes) -> Header | None:
    """The header of a JPEG, PNG or WebP picture by its content; None for anything else.

    The first kilobytes suffice for the size. The orientation of PNG and WebP pictures may stand at
    the end of the file.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):  # cut off within the header
        pass
    return None


def decode_picture(data: bytes, header: Header) -> Any:
    """The `av.VideoFrame` of a whole picture, as stored. Raises PictureError.

    Pictures that break off are errors; FFmpeg alone would make up the rest of a JPEG.
    """
    av = require_av()
    codec = av.CodecContext.create(header.codec, "r")
    codec.thread_count = 1
    codec.options = {"err_detect": "explode"}
    try:
        frames = codec.decode(av.Packet(data)) or codec.decode(None)
    except (av.error.FFmpegError, ValueError) as error:
        raise PictureError(reason_of(error)) from error
    if not frames:
        raise PictureError("FFmpeg returns no picture")
    return frames[0]


def _jpeg(data: bytes) -> Header | None:
    turn, place = (0, False), 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _SIZES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return Header("mjpeg", width, height, *turn) if height and width else None
        elif marker in (0xD9, 0xDA):
            return None
        else:
            (length,) = struct.unpack_from(">H", data, place + 2)
            if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
                turn = _turn(data[place + 10 : place + 2 + length])
            place += 2 + length
    return None


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    exif = next((body for kind, body in _chunks(data, 8, ">I4s", 4) if kind == b"eXIf"), b"")
    return Header("png", width, height, *_turn(exif))


def _webp(data: bytes) -> Header | None:
    kind, turn = data[12:16], (0, False)
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        for name, body in _chunks(data, 12, "<4sI", 0):
            if name == b"EXIF":
                turn = _turn(body.removeprefix(b"Exif\0\0"))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return Header("webp", width, height, *turn)


def _chunks(data: bytes, place: int, form: str, check: int) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the chunks of a PNG or WebP picture; `check` bytes follow each."""
    while place + 8 <= len(data):
        one, other = struct.unpack_from(form, data, place)
        kind, length = (one, other) if isinstance(one, bytes) else (other, one)
        yield kind, data[place + 8 : place + 8 + length]
        place += 8 + length + check
        if not check:  # WebP's chunks begin at even places
            place += length % 2


def _turn(exif: bytes) -> tuple[int, bool]:
    """Quarter turns and mirroring by the orientation in a block of EXIF."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0, False
    try:
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, place)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place + 2 + 12 * entry)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return _ORIENTATIONS.get(value, (0, False))
    except struct.error:  # cut off: players show such pictures as stored
        pass
    return 0, False
