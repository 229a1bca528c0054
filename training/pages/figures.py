"""Sections of the report with pictures of embeddings and phases: lists of HTML blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.pages import html
from training.pages.sections import SHOWN
from training.support.command import counted

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection
    from training.evaluation.embed import EmbeddedVideo


def of_strips(index: Selection, split: str, videos: Sequence[EmbeddedVideo]) -> list[VideoRecord]:
    """The videos of a split that the classifier of `strips` is fitted to.

    These are the labelled videos of the action that is shown; none where no shown video has labels.
    """
    if all(video.record.phases is None for video in _shown(videos)):
        return []
    return [
        record
        for record in index.videos
        if record.split == split
        and record.action == videos[0].record.action
        and record.phases is not None
    ]


def classifier(evaluation: Path) -> str:
    """The classifier of an evaluation.json: "svm" or "logistic", which is the default."""
    from training.evaluation.protocols import PROTOCOLS

    known = evaluation.is_file()
    result = json.loads(evaluation.read_text(encoding="utf-8")) if known else {}
    protocol = PROTOCOLS.get(result.get("protocol", ""))
    return "svm" if getattr(protocol, "classifier", "") == "svm" else "logistic"


def _shown(videos: Sequence[EmbeddedVideo]) -> list[EmbeddedVideo]:
    """The first videos of the first action."""
    action = videos[0].record.action
    return [video for video in videos if video.record.action == action][:SHOWN]


def strips(
    videos: Sequence[EmbeddedVideo],
    train: Sequence[EmbeddedVideo],
    index: Selection,
    pictures: Path,
    kind: str,
    *,
    classifier: str = "logistic",
) -> list[str]:
    """Embeddings over time with labelled phases and, with ``train``, predicted ones.

    train: embedded videos of `of_strips`.
    """
    from training.evaluation.boundaries import predicted_phases
    from training.evaluation.strips import embedding_strips

    shown = _shown(videos)
    predicted = predicted_phases(train, shown, classifier)
    known = [phases for phases in predicted if phases is not None]
    embedding_strips(
        shown, index.classes, pictures / "embeddings.png", predicted=predicted if known else ()
    )
    action = shown[0].record.action
    body = [
        "<h2>Embeddings over time</h2>",
        html.paragraph(
            f"The first {len(shown)} {kind} videos of the action {action!r}, each stretched to the "
            "same width. Upper bar: the embedding of each frame as a colour (its first three "
            "principal components). The bar below: the labelled phase. If the network has found "
            "the phases, the upper bar changes where the labels do, and like phases have like "
            "colours in all videos. If it only knows the time, all upper bars look the same. If "
            "each video has one colour throughout, it mostly sees how the video looks."
        ),
        html.picture(pictures / "embeddings.png", "embeddings over time as colours"),
    ]
    return body + (_predicted(shown, predicted, train, index, classifier) if known else [])


def _predicted(
    shown: Sequence[EmbeddedVideo],
    predicted: Sequence[np.ndarray | None],
    train: Sequence[EmbeddedVideo],
    index: Selection,
    classifier: str,
) -> list[str]:
    """How the predicted phases were made, how far their boundaries are off, and the table."""
    name = {"svm": "a support vector machine", "logistic": "a logistic regression"}[classifier]
    text = (
        f"Lowest bar: the phase that {name} predicts for each frame, fitted to the labelled frames "
        f"of {counted(len(train), 'training video')}. A line and a number mark the frame where a "
        "phase begins; where numbers would overlap, only the line is there. A predicted phase "
        "covers the frames where it prevails, so a few wrong frames do not move its beginning."
    )
    from training.evaluation.boundaries import boundaries, off_by

    found = [
        (video, boundary)
        for video, phases in zip(shown, predicted, strict=True)
        if phases is not None
        for boundary in boundaries(video, phases)
    ]
    errors = [error for video, boundary in found if (error := off_by(video, boundary)) is not None]
    if not found:
        return [html.paragraph(text)]
    if errors:
        frames, seconds = np.abs(np.array(errors)).mean(axis=0)
        text += (
            f" On average, a phase is predicted to begin {frames:.1f} frames ({seconds:.2f} s) "
            "away from its label."
        )
    if missing := len(found) - len(errors):
        text += f" {missing} of {len(found)} labelled beginnings have no predicted phase."
    table = "".join(_boundary_rows(found, index))
    return [html.paragraph(text), html.folded("where phases begin, in numbers", table)]


def _boundary_rows(found: Sequence[tuple[EmbeddedVideo, Any]], index: Selection) -> Iterator[str]:
    from training.evaluation.boundaries import off_by

    yield (
        '<div class="scroll"><table><tr><th>video, phase</th><th>labelled, frame</th>'
        "<th>predicted, frame</th><th>difference, frames</th><th>same, seconds</th></tr>\n"
    )
    for video, boundary in found:
        names = index.classes.get(video.record.action, ())
        known = boundary.phase < len(names)
        phase = names[boundary.phase] if known else f"phase {boundary.phase}"
        error = off_by(video, boundary)
        cells = ("-", "-", "-")
        if error is not None:
            cells = (str(boundary.predicted), f"{error[0]:+d}", f"{error[1]:+.2f}")
        yield (
            f"<tr><td>{escape(video.record.id)}, {escape(phase)}</td><td>{boundary.labelled}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>\n"
        )
    yield "</table></div>"


def embedding_map(
    videos: Sequence[EmbeddedVideo], index: Selection, pictures: Path, kind: str
) -> list[str]:
    """The map of the embeddings by t-SNE; nothing where `embedding_map.tsne` makes none."""
    from training.evaluation import embedding_map as maps

    file = pictures / "map.png"
    count = maps.embedding_map(videos, index.classes, file)
    if not count:
        return []
    total = sum(len(video.embeddings) for video in videos)
    every = "all" if count == total else f"{count:,} of the {total:,}"
    return [
        "<h2>Map of the embeddings</h2>",
        html.paragraph(
            f"One mark per frame: {every} frames of the {len(videos)} {kind} videos by t-SNE. It "
            "keeps neighbours together; distances between groups mean nothing. Where the network "
            "has found the phases, marks of one phase lie together, whichever video they are from. "
            "Where it mostly sees how a video looks, each video has its own island."
        ),
        html.picture(file, "map of the embeddings, coloured by phase and by video"),
    ]


def confusion(evaluation: Path) -> list[str]:
    """The confusion matrix, confusion*.png, beside its evaluation*.json.

    `python -m training.evaluate --protocol action` writes both.
    """
    from training.runs.folder import picture_beside

    picture = picture_beside(evaluation, "confusion")
    if not (evaluation.is_file() and picture.is_file()):
        return []
    if "confusion" not in json.loads(evaluation.read_text(encoding="utf-8")):
        return []
    return [
        "<h2>Which actions are confused</h2>",
        html.paragraph(
            "A row is the true action of the test videos, a column the action that the network "
            "scores highest."
        ),
        html.picture(picture, "confusion matrix of the actions"),
    ]


def few_shot(evaluation: Path) -> list[str]:
    """The picture of few-shot classification, few_shot*.png, beside its evaluation*.json.

    `python -m training.evaluate --few-shot` writes both.
    """
    from training.runs.folder import picture_beside

    picture = picture_beside(evaluation, "few_shot")
    if not (evaluation.is_file() and picture.is_file()):
        return []
    rows = json.loads(evaluation.read_text(encoding="utf-8"))["rows"]
    if not any(row.get("few_shot") for row in rows.values()):
        return []
    return [
        "<h2>Classification from few labelled videos</h2>",
        html.paragraph(
            "Classifiers fitted to a few training videos only: mean over random choices of these "
            "videos, which are the same for all rows."
        ),
        html.picture(picture, "classification over the number of labelled videos"),
    ]
