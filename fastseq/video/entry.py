"""Which packets decoding can begin with, found from their bytes.

Containers and encoders flag more packets as key frames: H.264 and HEVC with intra refresh (a few
columns renewed in each frame) mark a recovery point, after which pictures become right within about
a second; cameras and cutters flag pictures that refer to earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator

_SEI, _RECOVERY_POINT = 6, 6
_INTRA_SLICES = (2, 4)  # I, SI


def is_entry(codec: str, extradata: bytes | None, packet: bytes) -> bool:
    """Whether frames from this key packet on need nothing before it.

    Codecs other than H.264, HEVC and VVC have only such key frames; for them the flag is trusted.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the codec's configuration from the container.
        packet: the packet's bytes.
    """
    if codec == "h264":
        return _h264(list(_units(packet, _length_size(extradata, 4))))
    if codec == "hevc":
        kinds = [unit[0] >> 1 & 0x3F for unit in _units(packet, _length_size(extradata, 21))]
        pictures = [kind for kind in kinds if kind < 32]
        return bool(pictures) and all(16 <= kind <= 23 for kind in pictures)  # IRAP
    if codec == "vvc":
        kinds = [unit[1] >> 3 for unit in _units(packet, _length_size(extradata, 4)) if unit[1:]]
        pictures = [kind for kind in kinds if kind < 12]
        return bool(pictures) and all(7 <= kind <= 9 for kind in pictures)  # IDR, CRA
    return True


def _length_size(extradata: bytes | None, place: int) -> int:
    """Bytes of the length field before each unit; 0 if start codes separate them."""
    if not extradata or len(extradata) <= place or extradata[:3] in (b"\0\0\0", b"\0\0\1"):
        return 0
    return (extradata[place] & 3) + 1


def _units(packet: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a packet."""
    if length_size:
        start = 0
        while start + length_size < len(packet):
            length = int.from_bytes(packet[start : start + length_size], "big")
            start += length_size
            if length:
                yield packet[start : start + length]
            start += length
        return
    for unit in packet.split(b"\0\0\1")[1:]:
        if unit:
            yield unit


def _h264(units: list[bytes]) -> bool:
    kinds = [unit[0] & 0x1F for unit in units]
    if 5 in kinds:  # IDR
        return True
    slices = [unit for unit, kind in zip(units, kinds, strict=True) if kind == 1]
    return (
        bool(slices)
        and all(_slice_type(unit) in _INTRA_SLICES for unit in slices)
        and any(_exact_at_once(unit) for unit in units if unit[0] & 0x1F == _SEI)
    )


def _slice_type(unit: bytes) -> int:
    bits = _Bits(_payload(unit[1:32]))
    bits.ue()  # first macroblock
    return bits.ue() % 5


def _exact_at_once(unit: bytes) -> bool:
    """Whether a supplemental information unit has a recovery point of 0 frames, exact."""
    data, start = _payload(unit[1:]), 0
    while start + 2 < len(data):
        kind = size = 0
        for value in range(2):
            total = 0
            while start < len(data) and data[start] == 0xFF:
                total, start = total + 255, start + 1
            if start == len(data):
                return False
            total, start = total + data[start], start + 1
            kind, size = (total, size) if value == 0 else (kind, total)
        if kind == _RECOVERY_POINT:
            bits = _Bits(data[start : start + size])
            return bits.ue() == 0 and bits.bit() == 1
        start += size
    return False


def _payload(data: bytes) -> bytes:
    return data.replace(b"\0\0\3", b"\0\0")  # without the bytes inserted to prevent start codes


class _Bits:
    """Reads bits from the left; past the end it returns zeros."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def bit(self) -> int:
        byte, shift = divmod(self.place, 8)
        self.place += 1
        return self.data[byte] >> (7 - shift) & 1 if byte < len(self.data) else 0

    def ue(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while not self.bit():
            zeros += 1
            if zeros > 32:
                return -1
        value = 1
        for _ in range(zeros):
            value = 2 * value + self.bit()
        return value - 1
