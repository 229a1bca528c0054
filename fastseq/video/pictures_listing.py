"""Which pictures of a folder are a video: those whose names differ in one number."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastseq.video.pictures_format import ENDINGS

FEWEST = 3  # pictures that make a sequence where others lie beside it
KINDS = "JPEG, PNG or WebP"
_SHOWN = 5
_DIGITS = "0123456789"


@dataclass
class PictureSequence:
    """Pictures of one folder whose names differ in one number.

    Attributes:
        pattern: their names, with * in place of the number.
        numbered: (number, name), in the order of the numbers.
    """

    pattern: str
    numbered: list[tuple[int, str]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.numbered]

    def __len__(self) -> int:
        return len(self.numbered)

    def __str__(self) -> str:
        return f"{self.pattern} ({len(self)})"


def sequences_of(
    names: Iterable[str], pattern: str = "*", endings: Container[str] = ENDINGS
) -> list[PictureSequence]:
    """The sequences among the names of one folder that match a pattern, by their patterns.

    Args:
        pattern: one * that stands for the number, and what may stand before it: "img_*.jpg", "*".
        endings: the endings of pictures, in lower case.
    """
    stem, ending = split_name(pattern, endings)
    head, _, tail = stem.partition("*")
    found: dict[str, PictureSequence] = {}
    for name in names:
        stem, its = split_name(name, endings)
        if not its or name.startswith(".") or (ending and its.lower() != ending.lower()):
            continue
        if not (stem.startswith(head) and stem.endswith(tail)):
            continue
        middle = stem[len(head) : len(stem) - len(tail)]
        before = middle.rstrip(_DIGITS)
        if len(before) == len(middle):
            continue
        key = f"{head}{before}*{tail}{its.lower()}"
        sequence = found.setdefault(key, PictureSequence(f"{head}{before}*{tail}{its}"))
        sequence.numbered.append((int(middle[len(before) :]), name))
    for sequence in found.values():
        sequence.numbered.sort()
    return [found[key] for key in sorted(found)]


def the_sequence(sequences: Sequence[PictureSequence]) -> PictureSequence | None:
    """The one that a folder shows: the only one, or the only one of at least `FEWEST` pictures."""
    if len(sequences) > 1:
        sequences = [sequence for sequence in sequences if len(sequence) >= FEWEST]
    return sequences[0] if len(sequences) == 1 else None


def split_name(name: str, endings: Container[str] = ENDINGS) -> tuple[str, str]:
    """(stem, ending) of a picture's name; the ending is empty for other files."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if dot + ending.lower() in endings else (name, "")


def why_none(
    folder: str, pattern: str, names: Mapping[str, bool], sequences: Sequence[PictureSequence]
) -> str:
    """Why `the_sequence` finds none in a folder of these `names` (-> whether it is a folder)."""
    if len(sequences) > 1:
        largest = max(sequences, key=lambda one: (len(one), -len(one.pattern)))
        return (
            f"the folder has {len(sequences)} sequences of pictures, {listed(sequences)}: pass "
            f"one of them, such as {os.path.join(folder, largest.pattern)!r}"
        )
    if pattern != "*":
        others = sequences_of(name for name, is_folder in names.items() if not is_folder)
        has = f"; the folder has {listed(others)}" if others else ""
        return f"no {KINDS} picture matches {pattern!r} with a number in place of the *{has}"
    if not names:
        return f"the folder is empty; expected numbered {KINDS} pictures"
    pictures = sorted(n for n, is_folder in names.items() if not is_folder and split_name(n)[1])
    if pictures:
        return (
            f"none of the {len(pictures)} pictures ({listed(pictures)}) has a number at the end "
            "of its name; rename them, or pass a pattern whose * stands for the number, such as "
            f"{os.path.join(folder, 'frame_*_left.jpg')!r}"
        )
    folders = sorted(name for name, is_folder in names.items() if is_folder)
    kinds = Counter(
        os.path.splitext(name)[1].lower() or "without ending"
        for name, is_folder in names.items()
        if not is_folder
    )
    there = [f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    if folders:
        there.append(f"{len(folders)} folders")
    advice = "pass a video file, or a folder of numbered pictures"
    if folders and not kinds:
        advice += f", such as {os.path.join(folder, folders[0])!r}"
    return f"the folder has no {KINDS} pictures ({', '.join(there)}); {advice}"


def listed(what: Sequence[Any]) -> str:
    """The first few, and the number of others."""
    more = f" and {len(what) - _SHOWN} more" if len(what) > _SHOWN else ""
    return ", ".join(map(str, what[:_SHOWN])) + more
