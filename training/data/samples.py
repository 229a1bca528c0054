"""The videos in a tar, found by the names of its members, as WebDataset does."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from fastseq.video.source import NUMBERED_PICTURE
from training.data.label_entries import ENTRY_KEYS
from training.support.command import UserError

UNKNOWN_ENDING = ".video"  # of a member whose file has no extension of a video
_FEWEST = 3  # pictures of a sample, as in a folder
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ShardError(UserError):
    """A tar whose samples cannot be found; `reason` states why and how to fix it."""

    def __init__(self, tar: Path, reason: str):
        super().__init__(f"{tar}: {reason}")
        self.tar, self.reason = tar, reason


@dataclass(frozen=True)
class Sample:
    """A video in a tar.

    Attributes:
        key: name up to the first dot of its last part.
        name: KEY.mp4 for a video file, KEY for numbered pictures.
        offset, size: its bytes in the tar; for pictures from the tar header of the first one to
            the end of the last one.
        entry: the keys of labels.json in KEY.json, empty if there is none.
    """

    key: str
    name: str
    offset: int
    size: int
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> bool:
        """Whether it is numbered pictures."""
        return self.name == self.key


@dataclass(frozen=True)
class Shard:
    """The samples of a tar in their order, and extension -> number of members that are unused."""

    samples: list[Sample]
    ignored: dict[str, int]


def samples_of(tar: Path) -> list[Sample]:
    """The videos of a tar, see `read_shard`."""
    return read_shard(tar).samples


def read_shard(tar: Path) -> Shard:
    """Find the videos of a tar by its headers; no video is opened.

    A video is a member with the extension of one, or at least 3 numbered pictures KEY.000001.jpg
    (jpeg, png, webp) that follow each other. KEY.json, anywhere in the tar, has its labels: keys of
    an entry of labels.json; other keys are ignored. Other members are counted. Members whose name
    starts with a dot are ignored.

    Raises:
        ShardError: the tar is compressed, damaged or cut off, two members have one name, pictures
            of a sample do not follow each other, or KEY.json is not JSON.
        OSError: the file cannot be read.
    """
    with open(tar, "rb") as file:
        begin = file.read(6)
        for mark, kind in _PACKED.items():
            if begin.startswith(mark):
                raise ShardError(
                    tar, f"compressed ({kind}); a video in it cannot be read alone: unpack it first"
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as members:
                return _Finder(tar, members, file).shard()
        except tarfile.TarError as error:
            raise ShardError(tar, f"no tar file, damaged or cut off ({error})") from error


class _Finder:
    """Sorts the members of a tar into samples."""

    def __init__(self, tar: Path, members: tarfile.TarFile, file: IO[bytes]):
        self.tar, self.members, self.file = tar, members, file
        self.found: dict[str, Sample] = {}
        self.pictures: dict[str, list[tarfile.TarInfo]] = {}
        self.texts: dict[str, tarfile.TarInfo] = {}
        self.ignored: Counter[str] = Counter()

    def shard(self) -> Shard:
        count, last = 0, ""
        for count, member in enumerate(self.members, 1):  # noqa: B007
            name = member.name.removeprefix("./").lstrip("/")
            folder, _, base = name.rpartition("/")
            if member.isdir() or base.startswith("."):
                continue
            key = base.partition(".")[0]
            key = f"{folder}/{key}" if folder else key
            self._sort(name, key, member, last)
            last = key
        self._check_end(count)
        for key, pictures in self.pictures.items():
            if len(pictures) >= _FEWEST:
                numbers = Counter(int(one.name.rsplit(".", 2)[1]) for one in pictures)
                number, times = numbers.most_common(1)[0]
                if times > 1:
                    raise ShardError(self.tar, f"two pictures of {key} have the number {number}")
                end = pictures[-1].offset_data + pictures[-1].size
                self._add(Sample(key, key, pictures[0].offset, end - pictures[0].offset))
            else:
                self.ignored.update(_ending(member) for member in pictures)
        entries = {
            key: self._entry(self.texts[key])
            for key in {sample.key for sample in self.found.values()} & self.texts.keys()
        }
        if len(entries) < len(self.texts):
            self.ignored[".json"] = len(self.texts) - len(entries)
        samples = [
            replace(sample, entry=dict(entries.get(sample.key, {})))
            for sample in sorted(self.found.values(), key=lambda sample: sample.offset)
        ]
        return Shard(samples, dict(sorted(self.ignored.items())))

    def _sort(self, name: str, key: str, member: tarfile.TarInfo, last: str) -> None:
        from training.data.files import by_name  # imports this module

        if not member.isreg():
            self.ignored["link"] += 1
        elif NUMBERED_PICTURE.fullmatch(name):
            if key in self.pictures and key != last:
                raise ShardError(
                    self.tar,
                    f"the pictures of {key} do not follow each other; sort the members by name",
                )
            self.pictures.setdefault(key, []).append(member)
        elif name == f"{key}.json":
            if key in self.texts:
                raise self._twice(name)
            self.texts[key] = member
        elif by_name(name) is True or name.endswith(UNKNOWN_ENDING):
            if member.issparse():
                raise ShardError(self.tar, f"{name} is stored sparse; use tar without --sparse")
            self._add(Sample(key, name, member.offset_data, member.size))
        else:
            self.ignored[_ending(member)] += 1

    def _add(self, sample: Sample) -> None:
        if sample.name in self.found:
            raise self._twice(sample.name)
        self.found[sample.name] = sample

    def _twice(self, name: str) -> ShardError:
        return ShardError(self.tar, f"two members have the name {name}; give each its own")

    def _entry(self, member: tarfile.TarInfo) -> dict[str, Any]:
        self.file.seek(member.offset_data)
        try:
            content = json.loads(self.file.read(member.size))
        except ValueError as error:
            raise ShardError(self.tar, f"{member.name} is not JSON: {error}") from error
        if not isinstance(content, dict):
            return {}
        return {key: value for key, value in content.items() if key in ENTRY_KEYS}

    def _check_end(self, count: int) -> None:
        """tarfile ends without an error where a header is damaged or the file is cut off."""
        self.file.seek(self.members.offset)
        if self.file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ShardError(
                self.tar,
                f"damaged or cut off after {count} members (byte {self.members.offset}): the end "
                "mark of a tar is missing; copy or write it again",
            )


def _ending(member: tarfile.TarInfo) -> str:
    from training.data.files import NO_ENDING, ending_of

    return ending_of(member.name) or NO_ENDING
