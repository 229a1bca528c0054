"""Matches the names of videos in the labels file with the files of the folder."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

_TAR = ".tar"
_CLOSE = 5  # candidates that a hint names


def composed(name: str) -> str:
    """The composed spelling of a name: some systems store "é" as one character, others as two."""
    return unicodedata.normalize("NFC", name)


def shard_of(name: str) -> str:
    """The tar file that a video lies in, from its name; empty if it lies in none."""
    head, mark, _ = name.partition(f"{_TAR}/")
    return head + _TAR if mark else ""


class Names:
    """The files of a folder, looked up by name.

    Args:
        videos: paths of the videos relative to the folder, with forward slashes.
        ignored: other files -> what they are instead, such as ".txt".
    """

    def __init__(self, folder: Path, videos: Iterable[str], ignored: Mapping[str, str]):
        self.folder = folder
        self.ignored = ignored
        self.videos = dict.fromkeys(videos)
        self.spellings: dict[str, list[str]] = defaultdict(list)
        for name in self.videos:
            self.spellings[composed(name)].append(name)
        self.stems: dict[str, list[str]] | None = None

    def match(self, name: str) -> str | None:
        """The video with this name, however its accents are stored.

        Raises ValueError with the reason if two files have this name.
        """
        if name in self.videos:
            return name
        found = self.spellings.get(composed(name), [])
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files have this name, with accented letters stored in different "
                f"ways ({', '.join(map(ascii, found))}); rename one"
            )
        return found[0] if found else None

    def shard_is_gone(self, name: str) -> bool:
        """Whether a name is that of a video in a tar file that the folder does not have."""
        shard = shard_of(name)
        return bool(shard) and not os.path.lexists(self.folder / shard)

    def hint(self, name: str) -> str:
        """Advice about a name that no video has."""
        shard = shard_of(name)
        if shard in self.ignored:
            return f"{shard} has no video or cannot be read: write it again, or remove it"
        if name in self.ignored:
            what = self.ignored[name]
            return f"it exists but is not used as a video ({what}); name it with --include"
        near = self._near(name)
        if not near and shard:
            return f"{shard} has no member of this name; remove the entry"
        if not near:
            return "remove the entry or add the file"
        if len(near) == 1:
            return f"did you mean {near[0]}?"
        more = f" and {len(near) - _CLOSE} more" if len(near) > _CLOSE else ""
        return f"did you mean one of {', '.join(near[:_CLOSE])}{more}?"

    def _near(self, name: str) -> list[str]:
        """The videos whose names differ least: in the folder, the case or the extension.

        For a name in a shard only videos of this shard: equal keys of two shards are two videos.
        """
        if self.stems is None:
            self.stems = defaultdict(list)
            for video in self.videos:
                self.stems[_folded(PurePosixPath(video).stem)].append(video)
        wanted = PurePosixPath(self._relative(name.strip()))
        # "clip.v1" may be a name without its extension, or a name with another extension.
        alike = self.stems.get(_folded(wanted.stem), []) + self.stems.get(_folded(wanted.name), [])
        shard = shard_of(name)
        ranks = defaultdict(list)
        for video in dict.fromkeys(alike):
            if shard and shard_of(video) != shard:
                continue
            ranks[_distance(wanted, PurePosixPath(video))].append(video)
        if ranks:
            return ranks[min(ranks)]
        return [] if shard else difflib.get_close_matches(str(wanted), self.videos, n=1)

    def _relative(self, name: str) -> str:
        """The path below the folder; accepts Windows' spelling and absolute paths."""
        name = name.replace("\\", "/")
        path = Path(os.path.normpath(name))
        return path.relative_to(self.folder).as_posix() if self._inside(path) else path.as_posix()

    def _inside(self, path: Path) -> bool:
        return path.is_absolute() and path.is_relative_to(self.folder)


def _folded(name: str) -> str:
    return composed(name).casefold()


def _distance(wanted: PurePosixPath, video: PurePosixPath) -> tuple[bool, int, bool, bool]:
    """Sort key, smallest first: other extension, folders in common, other base name, other case."""
    ending = _folded(wanted.name) != _folded(video.name)
    common = 0
    for one, other in zip(wanted.parts[-2::-1], video.parts[-2::-1], strict=False):
        if _folded(one) != _folded(other):
            break
        common += 1
    same = composed(wanted.name) == composed(video.name)
    return ending, -common, not same, composed(str(wanted)) != composed(str(video))
