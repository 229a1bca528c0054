"""Reads TFRecord files of SequenceExamples without TensorFlow.

A record is its length (uint64), the masked CRC-32C of the length (uint32), the data, and the masked
CRC-32C of the data (uint32), all little-endian. The data is a protobuf message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numba
import numpy as np

from training.support.command import UserError

_MASK = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values.astype(np.uint32)


_TABLE = _table()


@numba.njit(nogil=True)
def _crc(data: np.ndarray, table: np.ndarray) -> int:
    value = np.uint32(0xFFFFFFFF)
    for byte in data:
        value = table[(value ^ byte) & np.uint32(0xFF)] ^ (value >> np.uint32(8))
    return value ^ np.uint32(0xFFFFFFFF)


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum of a TFRecord file: CRC-32C, turned by 15 bits, plus a constant."""
    value = int(_crc(np.frombuffer(data, np.uint8), _TABLE))
    return (((value >> 15) | (value << 17)) + _MASK) & 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """One record of a file: its number from 0, and the place of its data in bytes."""

    path: Path
    number: int
    offset: int
    size: int

    def read(self) -> bytes:
        """The data, checked; raises UserError if it is cut off or damaged."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data, footer = file.read(self.size), file.read(_FOOTER.size)
        if len(data) < self.size or len(footer) < _FOOTER.size:
            raise UserError(self._problem("is cut off; the file is incomplete, fetch it again"))
        if _FOOTER.unpack(footer)[0] != masked_crc(data):
            raise UserError(self._problem("is damaged (its checksum differs); fetch it again"))
        return data

    def example(self) -> SequenceExample:
        """The record as a SequenceExample; UserError if it is none."""
        try:
            return _example(memoryview(self.read()))
        except (ValueError, IndexError, struct.error) as error:
            raise UserError(self._problem(f"is no SequenceExample ({error})")) from error

    def _problem(self, what: str) -> str:
        return f"{self.path}: record {self.number} (byte {self.offset - _HEADER.size}) {what}"


def records(path: Path) -> Iterator[Record]:
    """The records of a file; the data is not read yet.

    Raises UserError for a file that is no TFRecord file or ends within a record's header.
    """
    size, offset, number = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(_HEADER.size)
            record = Record(path, number, offset + _HEADER.size, 0)
            if len(header) < _HEADER.size:
                raise UserError(record._problem("is cut off; the file is incomplete"))
            length, checksum = _HEADER.unpack(header)
            if checksum != masked_crc(header[:8]):
                what = "is damaged" if number else "has no header of a TFRecord file"
                raise UserError(record._problem(f"{what} (the checksum of its length differs)"))
            yield Record(path, number, record.offset, length)
            offset, number = record.offset + length + _FOOTER.size, number + 1


@dataclass
class SequenceExample:
    """Features by name: `context` has a list of values each, `lists` a list of values per step."""

    context: dict[str, list] = field(default_factory=dict)
    lists: dict[str, list[list]] = field(default_factory=dict)


def _example(data: memoryview) -> SequenceExample:
    example = SequenceExample()
    for number, value in _fields(data):
        if number == 1:
            for name, feature in _map(value):
                example.context[name] = _feature(feature)
        elif number == 2:
            for name, steps in _map(value):
                example.lists[name] = [_feature(step) for k, step in _fields(steps) if k == 1]
    return example


def _map(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    for number, entry in _fields(data):
        if number == 1:
            parts = dict(_fields(entry))
            yield bytes(parts[1]).decode(), parts.get(2, memoryview(b""))


def _feature(data: memoryview) -> list:
    """The values of a Feature: bytes as memoryviews, floats or whole numbers."""
    for kind, values in _fields(data):
        if kind == 1:
            return [value for number, value in _fields(values) if number == 1]
        if kind == 2:
            raw = b"".join(bytes(value) for number, value in _fields(values) if number == 1)
            return list(struct.unpack(f"<{len(raw) // 4}f", raw))
        if kind == 3:
            return [number for key, value in _fields(values) if key == 1 for number in _ints(value)]
    return []


def _ints(value: memoryview | int) -> Iterator[int]:
    """Signed 64-bit numbers, packed or single."""
    if isinstance(value, int):
        yield _signed(value)
        return
    place = 0
    while place < len(value):
        number, place = _varint(value, place)
        yield _signed(number)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of the fields of a message: numbers, or the bytes of everything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is unknown")
        if place + size > len(data):
            raise ValueError("a field is longer than its message")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
