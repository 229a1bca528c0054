"""Finds videos that are stored as numbered pictures and explains how to convert them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from training.data.files import PICTURES, ending_of

_FEWEST = 3  # pictures in a sequence
_SHOWN = 5

_PROGRAM = """\
import re
from pathlib import Path
from fastseq.video import read_frames, write_video

source, target, fps = Path({source!r}), Path({target!r}), 25
videos = {{}}
for path in source.rglob("*"):
    numbered = re.fullmatch(r"(.*?)(\\d+)", path.stem)
    if numbered and path.suffix == "{ending}":
        name = path.parent.relative_to(source.parent) / numbered[1]
        videos.setdefault(name, []).append((int(numbered[2]), path))
for name, pictures in videos.items():
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    frames = (read_frames(path)[0] for _, path in sorted(pictures))
    write_video(f"{{target / name}}.mp4", frames, fps)
"""


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures of one folder: `count` files, each named `prefix` plus a number."""

    folder: str
    prefix: str
    ending: str
    count: int

    def __str__(self) -> str:
        named = f" {self.prefix}*" if self.prefix else ""
        return f"{self.folder} ({self.count}{named} {self.ending})"


def numbered_pictures(names: Iterable[str]) -> list[Pictures]:
    """Sequences of pictures among the files of a folder."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for name in names:
        path = PurePosixPath(name)
        numbered = re.fullmatch(r"(.*?)\d+", path.stem)
        if numbered and ending_of(name) in PICTURES:
            counts[str(path.parent), numbered[1], path.suffix] += 1
    return [Pictures(*key, count) for key, count in sorted(counts.items()) if count >= _FEWEST]


def named(found: Sequence[Pictures]) -> str:
    """One line with the number of sequences and the names of the first."""
    shown = ", ".join(map(str, found[:_SHOWN]))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"numbered pictures, not read as videos: {len(found)} sequences: {shown}{more}"


def program(folder: Path, found: Sequence[Pictures]) -> str:
    """A Python program that makes a video of each sequence of `folder`, in a folder beside it."""
    ending = Counter(one.ending for one in found).most_common(1)[0][0]
    target = folder.with_name(f"{folder.name}_videos")
    return _PROGRAM.format(source=str(folder), target=str(target), ending=ending)
