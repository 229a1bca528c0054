"""A folder of numbered pictures as a video: frame k is the k-th picture in numeric order."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_number
from fastseq.video.gaps import gaps_of
from fastseq.video.pictures_format import Header, PictureError, decode_picture, header_of
from fastseq.video.pictures_listing import (
    KINDS,
    listed,
    sequences_of,
    split_name,
    the_sequence,
    why_none,
)
from fastseq.video.source import (
    Contents,
    file_of,
    holds_pictures,
    pictures_in,
    read_bytes,
    tar_range,
)
from fastseq.video.timeline import Deadline, VideoInfo, reason_of

DEFAULT_FPS = 25.0  # FFmpeg's own for pictures
_HEAD = 16384
_SHOWN = 5


class File(Protocol):
    """One encoded picture: `PictureFile`, or any object with these two."""

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk."""

    name: str
    path: str

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def head(self) -> bytes:
        """The first bytes, with the size of most pictures."""
        with open(self.path, "rb", buffering=0) as file:
            return file.read(_HEAD)


@dataclass(frozen=True)
class PictureInTar:
    """A picture in a tar, by its name there and its locator."""

    name: str
    path: str

    def read(self) -> bytes:
        try:
            return read_bytes(self.path)
        except VideoError as error:
            raise PictureError(error.reason) from error


def is_pictures(path: str) -> bool:
    """Whether a path is a folder, a pattern ("FOLDER/img_*.jpg") of files in one, or pictures in a
    tar."""
    if isinstance(path, Contents):  # its name may be that of a folder
        return False
    if os.path.isdir(path):
        return True
    if tar_range(path) is not None:
        return holds_pictures(path)
    folder, name = os.path.split(path)
    return "*" in name and not os.path.exists(path) and os.path.isdir(folder or os.curdir)


def pictures_of(path: str) -> PictureFolder:
    """The pictures of a folder, of a pattern or of a part of a tar, in numeric order.

    Raises:
        VideoError: no pictures, pictures without numbers, or several sequences of them.
    """
    members = pictures_in(path)
    if members:
        tar = file_of(path)
        inside = [PictureInTar(name, f"{tar}#{first}+{size}") for name, first, size in members]
        numbers = [int(name.rsplit(".", 2)[1]) for name, *_ in members]
        return PictureFolder(path, inside, _different(path, numbers, inside))
    folder, pattern = (path, "*") if os.path.isdir(path) else os.path.split(path)
    try:
        with os.scandir(folder or os.curdir) as entries:
            names = {entry.name: entry.is_dir() for entry in entries if entry.name[0] != "."}
    except OSError as error:
        raise VideoError(path, reason_of(error)) from error
    files = [name for name, is_folder in names.items() if not is_folder]
    sequences = sequences_of(files, pattern)
    sequence = the_sequence(sequences)
    if sequence is None:
        raise VideoError(path, why_none(folder, pattern, names, sequences))
    made = [PictureFile(name, os.path.join(folder, name)) for name in sequence.names]
    numbers = _different(path, [number for number, _ in sequence.numbered], made)
    others = []
    if pattern == "*":  # a pattern states by itself which pictures are left out
        taken = set(sequence.names)
        others = [name for name in files if split_name(name)[1] and name not in taken]
    return PictureFolder(path, made, numbers, sorted(others))


def _different(path: str, numbers: list[int], files: Sequence[File]) -> list[int]:
    """The numbers, ascending; VideoError if two pictures have the same one."""
    for place, (number, after) in enumerate(pairwise(numbers)):
        if number == after:
            one, other = files[place].name, files[place + 1].name
            raise VideoError(path, f"{one} and {other} have the same number; remove one")
    return numbers


class PictureFolder:
    """A video of encoded pictures.

    The first picture with a readable header fixes the size; pictures of other sizes are scaled to
    it. Orientations in EXIF are applied, picture by picture.

    Args:
        path: the video's name in errors.
        files: the pictures in their order.
        numbers: the number in each name; None if the names do not count.
        others: pictures of the folder that are not frames.
    """

    def __init__(
        self,
        path: str,
        files: Sequence[File],
        numbers: Sequence[int] | None = None,
        others: Sequence[str] = (),
    ):
        self.path, self.files, self.numbers, self.others = path, files, numbers, others
        self._first: Header | None = None

    @property
    def first(self) -> Header:
        """The header that fixes codec and size."""
        if self._first is None:
            for file in self.files:
                try:
                    header = header_of(file.read())
                except (OSError, PictureError):
                    continue
                if header is not None:
                    self._first = header
                    return header
            raise VideoError(
                self.path,
                f"no frame can be decoded: none of the {len(self.files)} pictures from "
                f"{self.files[0].name} on is {KINDS}",
            )
        return self._first

    def info(self, fps: float | None = None) -> VideoInfo:
        """The contents by the names and the first picture alone."""
        if fps is not None and not 0 < as_number("fps", fps) < math.inf:
            raise ValueError(f"fps must be positive and finite, got {fps}")
        first = self.first
        width, height = first.upright
        return VideoInfo(
            path=self.path,
            frames=len(self.files),
            width=width,
            height=height,
            rotation=90 * first.quarter_turns,
            fps=DEFAULT_FPS if fps is None else float(fps),
            codec=first.codec,
            mirrored=first.mirrored,
        )

    def probe(self, *, decode: bool, deadline: Deadline, fps: float | None = None) -> VideoInfo:
        """`fastseq.video.probe` of the pictures: reads all headers, and decodes the first picture,
        or every one with `decode`."""
        info = self.info(fps)
        sizes: Counter[tuple[int, int]] = Counter()
        bad: dict[int, str] = {}
        begun = False
        for number, file in enumerate(self.files):
            deadline.check()
            try:
                if decode or not begun:
                    header, _ = self._decode(number)
                    begun = True
                else:
                    head = getattr(file, "head", file.read)
                    header = header_of(head()) or self._header(file.read())
                sizes[header.upright] += 1
            except (OSError, PictureError) as error:
                bad[number] = reason_of(error)
        if not begun:
            raise VideoError(self.path, f"no frame can be decoded: {self._damage(bad)}")
        remarks = []
        if fps is None:
            remarks.append(f"no frame rate given, {DEFAULT_FPS:g} is assumed: pass fps")
        remarks += filter(None, (self._missing(), _mixed(sizes, info)))
        if self.others:
            count = len(self.others)
            remarks.append(f"{count} other picture{'s' * (count > 1)}: {listed(self.others)}")
        return replace(info, gaps=gaps_of(bad), note=self._damage(bad), remarks=tuple(remarks))

    def deliver(
        self,
        wanted: np.ndarray,
        converter: Any,
        deadline: Deadline,
        take: Callable[[int, np.ndarray], None],
    ) -> None:
        """See `fastseq.video.decode.deliver`."""
        width, height = self.first.upright
        for place, number in enumerate(wanted.tolist()):
            deadline.check()
            try:
                header, frame = self._decode(number)
            except (OSError, PictureError) as error:
                raise VideoError(
                    self.path,
                    f"frame {number} was requested, but {self.files[number].name} does not decode "
                    f"({reason_of(error)})",
                ) from error
            stored = (height, width) if header.quarter_turns % 2 else (width, height)
            converter.settle(*stored, header.quarter_turns, header.mirrored)
            take(place, converter(frame))

    def _decode(self, number: int) -> tuple[Header, Any]:
        data = self.files[number].read()
        header = self._header(data)
        return header, decode_picture(data, header)

    def _header(self, data: bytes) -> Header:
        header = header_of(data)
        if header is None:
            size = "" if data else ": 0 bytes"
            raise PictureError(f"not a {KINDS} picture{size}")
        return header

    def _damage(self, bad: dict[int, str]) -> str:
        if not bad:
            return ""
        shown = [
            f"{self.files[number].name} (frame {number}: {reason})"
            for number, reason in list(bad.items())[:_SHOWN]
        ]
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        return f"{len(bad)} of {len(self.files)} pictures do not decode: {', '.join(shown)}{more}"

    def _missing(self) -> str:
        """A remark on numbers between the first and the last that no picture has."""
        if not self.numbers or len(self.numbers) < 2:
            return ""
        steps = np.diff(np.array(self.numbers, dtype=object))
        step = min(steps)
        first, last = self.numbers[0], self.numbers[-1]
        if all(steps == step):
            if step == 1:
                return ""
            return f"the numbers {first} to {last} count in steps of {step}"
        places = [place for place, gap in enumerate(steps) if gap > 1]
        ranges = [
            f"{a}" if a == b else f"{a} to {b}"
            for a, b in ((self.numbers[p] + 1, self.numbers[p + 1] - 1) for p in places)
        ]
        return (
            f"numbers missing between {first} and {last}: {listed(ranges)}; the pictures around "
            "them are consecutive frames"
        )


def _mixed(sizes: Counter[tuple[int, int]], info: VideoInfo) -> str:
    """A remark on pictures of another size than the first."""
    others = sizes - Counter({(info.width, info.height): info.frames})
    if not others:
        return ""
    each = [f"{count} of {wide} x {high}" for (wide, high), count in others.most_common()]
    return (
        f"pictures of another size than the first, {info.width} x {info.height}: {listed(each)}; "
        "they are scaled to it"
    )
