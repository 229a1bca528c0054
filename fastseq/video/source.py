"""Opening a video at the stream that players show: a file, a part of a tar, or data in memory."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from fastseq.video._av import VideoError, require_av
from fastseq.video.timeline import Deadline, reason_of

VideoSource = str | os.PathLike | bytes | bytearray | memoryview | IO[bytes]

_RANGE = re.compile(r"(.+\.tar)#([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL | re.IGNORECASE)
# A frame in a tar, by WebDataset's naming: KEY.000001.jpg; a key ends at the first dot.
NUMBERED_PICTURE = re.compile(r"(?:.*/)?[^./]+\.(\d+)\.(?:jpe?g|png|webp)", re.DOTALL | re.I)
_BLOCK = tarfile.BLOCKSIZE
_MOST_IN_HEADER = 8**11  # bytes; larger members have their size in an extended header
_LONGEST_NAME = 4096
_MEANT = (b"path=", b"size=", b"GNU.sparse")  # extended headers that change name, place or size


class TarRange(NamedTuple):
    """Bytes `first` to `first + size` of a tar that is not compressed."""

    tar: str
    first: int
    size: int


class _Member(NamedTuple):
    """A member of a tar: its name, the place of its bytes, and whether it is a file."""

    name: str
    offset: int
    size: int
    regular: bool = True


class Contents(str):
    """Name of a video that has no path, for messages; `data` is its bytes or its file object."""

    data: bytes | IO[bytes]

    def __new__(cls, name: str, data: bytes | IO[bytes]) -> Contents:
        made = super().__new__(cls, name)
        made.data = data
        return made

    def __reduce__(self) -> tuple[Any, ...]:  # errors carry the name to another process
        return str, (str(self),)


def as_source(path: Any) -> str:
    """The name of a file, the locator of a part of a tar ("a.tar#1536+2048"), or `Contents`.

    Raises:
        TypeError: something else, a file object that is not binary or cannot seek, or the name of
            a file as bytes.
    """
    if isinstance(path, Contents):
        return path
    if isinstance(path, bytes | bytearray | memoryview):
        data = bytes(path)
        if len(data) <= _LONGEST_NAME and os.path.exists(data):
            raise TypeError(
                "path must be str or os.PathLike for the name of a file; bytes are the contents of "
                f"a video, got bytes {data!r}; pass os.fsdecode(path)"
            )
        return Contents("<bytes>", data)
    if isinstance(path, str | os.PathLike):
        return os.fsdecode(path)
    kind = type(path).__name__
    if not callable(getattr(path, "read", None)):
        raise TypeError(
            "path must be the name of a file (str or os.PathLike), its contents (bytes) or a "
            f"binary file object, got {kind}"
        )
    seekable = getattr(path, "seekable", lambda: True)
    if not all(callable(getattr(path, name, None)) for name in ("seek", "tell")) or not seekable():
        raise TypeError(
            f"path must be a file object that can seek, got {kind} without; pass its contents: "
            "path.read()"
        )
    if not isinstance(path.read(0), bytes):
        raise TypeError(
            f"path must be a binary file object, got {kind} in text mode; pass open(path, 'rb')"
        )
    name = getattr(path, "name", None)
    return Contents(name if isinstance(name, str) else f"<{kind}>", path)


def file_of(path: str | os.PathLike) -> Path:
    """The file or folder on disk in which a video lies: its tar, or the folder of a pattern."""
    name = os.fsdecode(path)
    place = tar_range(name)
    if place is not None:
        return Path(place.tar)
    found = Path(name)
    return found.parent if "*" in found.name and not found.exists() else found


def read_bytes(path: str) -> bytes:
    """The bytes of a video file, or of a member of a tar.

    Raises:
        VideoError: the file cannot be read, or the tar has changed.
    """
    try:
        place = tar_range(path)
        if place is None:
            return Path(path).read_bytes()
        with open(place.tar, "rb") as file:
            _check_member(path, file, place)
            file.seek(place.first)
            return file.read(place.size)
    except OSError as error:
        raise VideoError(path, str(error.strerror or error)) from error


def holds_pictures(path: str) -> bool:
    """Whether a part of a tar begins with the header of a member, so that `pictures_in` reads it.

    False for any other path, and for a tar that cannot be read.
    """
    place = tar_range(path)
    if place is None:
        return False
    try:
        with open(place.tar, "rb") as file:
            return _header(file, place.first) is not None
    except OSError:
        return False


def pictures_in(path: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the numbered pictures in a part of a tar, in order of their numbers.

    The range is that from the tar header of a sample's first picture to the last byte of its last
    one; the list is empty for any other path. `offset` counts from the beginning of the tar:
    "TAR#OFFSET+SIZE" locates one picture, as for `read_bytes`.

    Raises:
        VideoError: the tar cannot be read or has changed.
    """
    place = tar_range(path)
    if place is None:
        return []
    pictures, end = [], 0
    try:
        with open(place.tar, "rb") as file:
            if _header(file, place.first) is None:
                return []
            for member in _members(file, place.first, place.first + place.size):
                end = member.offset + member.size
                numbered = NUMBERED_PICTURE.fullmatch(member.name)
                if numbered and member.regular:
                    pictures.append((int(numbered[1]), member))
            length = file.seek(0, os.SEEK_END)
    except tarfile.TarError as error:
        raise _changed(path) from error
    except OSError as error:
        raise VideoError(path, str(error.strerror or error)) from error
    if not pictures or end != place.first + place.size or end > length:
        raise _changed(path)
    pictures.sort(key=lambda found: found[0])
    return [(member.name, member.offset, member.size) for _, member in pictures]


def tar_range(path: str) -> TarRange | None:
    """The part of a tar that a locator names; None for any other path, or a file of that name."""
    found = None if isinstance(path, Contents) else _RANGE.fullmatch(path)
    if found is None or os.path.exists(path):
        return None
    return TarRange(found[1], int(found[2]), int(found[3]))


def _header(file: IO[bytes], offset: int) -> tarfile.TarInfo | None:
    """The tar header at a place of a file, None if there is none."""
    if offset < 0:
        return None
    file.seek(offset)
    try:
        return tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _members(file: IO[bytes], place: int, stop: int) -> Iterator[_Member]:
    """The members of a tar whose headers begin at `place` or later, but before `stop`.

    `tarfile` takes about 0.1 ms for a member, as long as a small picture takes to decode. It reads
    only those that are not plain files, or whose extended headers have their names or sizes.
    """
    while place < stop:
        member = _plain_member(file, place)
        if member is None:
            file.seek(place)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                found = tar.next()
                if found is None:
                    return
                member = _Member(found.name, found.offset_data, found.size, found.isreg())
                place = tar.offset
        else:
            place = -(-(member.offset + member.size) // _BLOCK) * _BLOCK
        yield member


def _plain_member(file: IO[bytes], place: int) -> _Member | None:
    """The plain file whose header is at `place`; None if it is not certain to be one."""
    file.seek(place)
    try:
        kind, name, size = _fields(file.read(_BLOCK))
        if kind == tarfile.XHDTYPE and size < _LONGEST_NAME:
            extended = file.read(-(-size // _BLOCK) * _BLOCK)
            if any(word in extended for word in _MEANT):
                return None
            place += _BLOCK + len(extended)
            kind, name, size = _fields(file.read(_BLOCK))
    except ValueError:  # numbers that are not octal, no header, names in another encoding
        return None
    plain = kind in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/")
    return _Member(name, place + _BLOCK, size) if plain else None


def _fields(header: bytes) -> tuple[bytes, str, int]:
    """(type, name, size) in a header of a tar."""
    checksum = int(header[148:156].strip(b" \0"), 8)
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        raise ValueError("no header")
    name, before = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    if before:
        name = before + b"/" + name
    return header[156:157], name.decode(), int(header[124:136].strip(b" \0"), 8)


def _check_member(path: str, file: IO[bytes], place: TarRange) -> None:
    """Raise VideoError unless the range is still one whole member of the tar."""
    header = _header(file, place.first - _BLOCK)
    sizes = (place.size, 0) if place.size >= _MOST_IN_HEADER else (place.size,)
    if header is None or not header.isreg() or header.size not in sizes:
        raise _changed(path)
    if place.first + place.size > file.seek(0, os.SEEK_END):
        raise _changed(path)


def _changed(path: str) -> VideoError:
    return VideoError(
        path,
        "the tar has changed since it was indexed; prepare its folder again",
    )


@contextlib.contextmanager
def open_video(path: str, deadline: Deadline | None = None) -> Iterator[tuple[Any, Any]]:
    """(container, stream) of a video; the stream is that of `chosen_stream`.

    Args:
        path: result of `as_source`. A file object is read from its beginning and has its present
            position again afterwards.
    """
    av = require_av()
    deadline = deadline or Deadline(path, None)
    with contextlib.ExitStack() as stack:
        try:
            # Metadata in another encoding than UTF-8 must not prevent reading the frames.
            # The mode of a file object may be that of writing, or a number.
            container = av.open(
                _input(path, stack), "r", timeout=deadline.seconds, metadata_errors="replace"
            )
        except av.error.ExitError as error:
            raise deadline.error() from error  # only happens with a time limit
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
                reason = "not a video file, or cut off before its index (FFmpeg cannot open it)"
            else:
                reason = reason_of(error)
            raise VideoError(path, reason) from error
        stack.enter_context(container)
        stream, _ = chosen_stream(path, container)
        # One thread per file: where decoding stops in a damaged file must not depend on the number
        # of cores. Callers process several files at once instead.
        stream.codec_context.thread_count = 1
        yield container, stream


def _input(path: str, stack: contextlib.ExitStack) -> str | IO[bytes]:
    """What PyAV opens: FFmpeg's name of the data, or a file object at its beginning."""
    if isinstance(path, Contents):
        file = io.BytesIO(path.data) if isinstance(path.data, bytes) else path.data
        stack.callback(file.seek, file.tell())
        file.seek(0)
        if not file.read(1):
            raise VideoError(path, "it is empty (0 bytes)")
        file.seek(0)
        return file
    place = tar_range(path)
    if place is not None:
        with open(place.tar, "rb") as tar:
            _check_member(path, tar, place)
        return f"subfile,,start,{place.first},end,{place.first + place.size},,:file:{place.tar}"
    if Path(path).is_file():
        if Path(path).stat().st_size == 0:
            raise VideoError(path, "the file is empty (0 bytes)")
        return f"file:{path}"  # otherwise FFmpeg reads "take:1.mp4" as a protocol
    return path


def chosen_stream(path: str, container: Any) -> tuple[Any, str]:
    """The video stream that players show, and a remark if there are several.

    FFmpeg's choice: the stream marked as default; among several, the one with the most frames, then
    the largest. Never cover pictures or thumbnails.
    """
    flags = require_av().stream.Disposition
    pictures = flags.attached_pic | flags.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(path, f"no video stream (contains {', '.join(kinds) or 'nothing'})")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise VideoError(path, "the video's codec is unknown to this FFmpeg")
    if len(streams) == 1:
        return known[0], ""
    best = container.streams.best("video")
    stream = next((s for s in known if best and s.index == best.index), known[0])
    marked = [stream for stream in known if stream.disposition & flags.default]
    alone = len(marked) == 1 and marked[0] is stream
    why = "the only one marked as default" if alone else "the one that FFmpeg prefers"
    codec = stream.codec_context
    return stream, (
        f"of {len(streams)} video streams number {stream.index} is read, {why} "
        f"({codec.name}, {codec.width} x {codec.height})"
    )
