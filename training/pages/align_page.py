"""The page of one alignment: two videos that play in step, and their similarity map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from training.evaluation.alignment import Alignment
from training.evaluation.embed import EmbeddedVideo
from training.pages import html, sections
from training.pages.payload import payload
from training.pages.player import player, similarity_map
from training.support.files import replacing

ONE_ACTION = "all"  # as in an index that names no actions


def write_align_page(
    a: EmbeddedVideo,
    b: EmbeddedVideo,
    alignment: Alignment,
    back: Alignment,
    file: Path,
    *,
    classes: Mapping[str, Sequence[str]],
    said: Sequence[str],
) -> None:
    """Write the page; one file, nothing from a network.

    Args:
        alignment: of a with b; back: of b with a, which the page shows once they are swapped.
        classes: action -> names of its phases, for videos with labels.
        said: lines on the alignment, such as where an open one begins and ends.
    """
    two = of_one_action(a, b)
    data = payload(two, classes, start=(0, 1), alignments={(0, 1): alignment, (1, 0): back})
    items = "".join(f"<li>{escape(line)}</li>" for line in said)
    names = f"{a.record.id} and {b.record.id}"
    body = [
        f"<h1>{escape(names)}</h1>",
        player(data),
        f"<ul>{items}</ul>",
        html.paragraph(sections.sizes(two, data), quiet=True),
        similarity_map(),
    ]
    with replacing(file) as partial:
        partial.write_text(html.page(f"fastseq: {names}", body), encoding="utf-8")


def of_one_action(a: EmbeddedVideo, b: EmbeddedVideo) -> tuple[EmbeddedVideo, EmbeddedVideo]:
    """Both videos with the same action, which is what makes them a pair.

    Where the actions differ both have that of the labelled one. Phases of two different actions
    cannot be compared: both are then without labels.
    """
    if a.record.action == b.record.action:
        return a, b
    labelled = [video.record for video in (a, b) if video.record.phases is not None]
    change = {"action": labelled[0].action if len(labelled) == 1 else ONE_ACTION}
    if len(labelled) == 2:
        change["phases"] = None
    return (
        EmbeddedVideo(replace(a.record, **change), a.embeddings),
        EmbeddedVideo(replace(b.record, **change), b.embeddings),
    )
