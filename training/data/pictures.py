"""Which folders of pictures are videos, and what is to be done about the others."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastseq.video.pictures_format import ENDINGS
from fastseq.video.pictures_listing import FEWEST, PictureSequence, sequences_of, the_sequence

_SHOWN = 5


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures of one folder that are no video, and the reason with the remedy."""

    folder: str
    sequences: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        more = f" and {len(self.sequences) - _SHOWN} more" if len(self.sequences) > _SHOWN else ""
        return f"{self.folder} ({', '.join(self.sequences[:_SHOWN])}{more}): {self.why}"


def pick_sequences(
    folders: Mapping[str, Sequence[str]],
    with_videos: Container[str],
    pattern: str | None,
    endings: frozenset[str],
) -> tuple[dict[str, PictureSequence], dict[str, str], list[Pictures]]:
    """Folder -> the pictures that are a video; the locators that differ from the folder; the rest.

    Args:
        folders: folder -> the names of its pictures.
        with_videos: folders with a video file in them.
        pattern: only sequences that match it are used, by their name or their path.
        endings: those of all pictures, also of the kinds that are not read.
    """
    chosen, places, rest = {}, {}, []
    for folder, names in sorted(folders.items()):
        all_of_them = sequences_of(names)
        large = [sequence for sequence in all_of_them if len(sequence) >= FEWEST]
        if pattern is not None:
            large = [one for one in large if _matches(folder, one.names[0], pattern)]
        if not large:
            others = sequences_of(names, endings=endings - ENDINGS)
            others = [sequence for sequence in others if len(sequence) >= FEWEST]
            if others and pattern is None:
                rest.append(_left(folder, others, "pictures of this kind are not read, make PNGs"))
        elif folder in with_videos:
            rest.append(_left(folder, large, "they lie beside a video file; move them elsewhere"))
        elif len(large) > 1:
            advice = f"several sequences; pick one, such as --pictures {large[-1].pattern!r}"
            rest.append(_left(folder, large, advice))
        else:
            chosen[folder] = large[0]
            if the_sequence(all_of_them) is not large[0]:
                places[folder] = f"{folder}/{large[0].pattern}"
    return chosen, places, rest


def _left(folder: str, sequences: Sequence[PictureSequence], why: str) -> Pictures:
    return Pictures(folder, tuple(map(str, sequences)), why)


def _matches(folder: str, name: str, pattern: str) -> bool:
    """The pattern may name a whole file, its path, or leave the ending out."""
    return any(
        fnmatchcase(one, wanted)
        for one in (name, f"{folder}/{name}")
        for wanted in (pattern, f"{pattern}.*")
    )


def named(found: Sequence[Pictures]) -> list[str]:
    """Lines about the first ones, and the number of the others."""
    lines = [f"pictures not used: {one}" for one in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"pictures not used: {len(found) - _SHOWN} more folders")
    return lines
