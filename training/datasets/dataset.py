"""The result of reading a data set: its classes, its videos and what did not fit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Clip:
    """One video of a data set.

    Attributes:
        name: name in the output folder, with forward slashes; a folder of pictures has no
            extension.
        source: the video file or the folder of pictures that the owner releases; None if `pictures`
            has the frames.
        entry: entry for labels.json (action, split, view, boundaries, segments, ...). Its frame
            numbers or seconds count from the beginning of the clip.
        cut: (first, stop) in seconds of the source, the only part that the clip shows; None: all.
        pictures: function that returns the encoded pictures of the clip in order, for data sets
            that keep them in one large file; None otherwise.
        fps: frames per second of pictures; None for a video file.
    """

    name: str
    source: Path | None
    entry: dict[str, Any]
    cut: tuple[float, float] | None = None
    pictures: Callable[[], list[bytes]] | None = None
    fps: float | None = None


@dataclass
class DataSet:
    """A data set that was read.

    Attributes:
        clips: its videos that are there.
        classes: action -> names of its phases; with several class sets use `class_sets` instead.
        class_sets: name of a class set -> action -> names of its phases.
        missing: name -> reason, for annotated videos whose file is not there.
        unused: name -> reason, for videos or annotations that are left out on purpose.
        remarks: what was adjusted: remark -> names.
    """

    clips: list[Clip] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    class_sets: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, text: str, name: str) -> None:
        self.remarks.setdefault(text, []).append(name)


@dataclass(frozen=True)
class Reader:
    """A data set that `python -m training.labels` reads.

    Attributes:
        name: name on the command line.
        summary: one line for --help.
        layout: the expected files below SOURCE, shown by --help of this data set.
        add_arguments: adds the data set's own options to its parser.
        read: reads SOURCE; raises UserError for a layout that is not this data set's.
    """

    name: str
    summary: str
    layout: str
    read: Callable[[Path, Namespace], DataSet]
    add_arguments: Callable[[ArgumentParser], None] = lambda parser: None
