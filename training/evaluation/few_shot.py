"""The plot of few-shot classification that belongs to an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.evaluation.protocols import COLUMNS


def write_few_shot(file: Path, rows: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Draw the few-shot scores of the rows of an evaluation, if they have any.

    Args:
        file: RUN/evaluation.json. The picture is RUN/few_shot.png; for RUN/evaluation_val.json it
            is RUN/few_shot_val.png.
        rows: name -> its entry in the file.

    Returns:
        The picture, None where no row has few-shot scores.
    """
    scored = {name: row["few_shot"] for name, row in rows.items() if row.get("few_shot")}
    if not scored:
        return None
    from training.evaluation.plots import few_shot_curves  # loads matplotlib
    from training.runs.folder import picture_beside  # loads torch

    score = next(iter(next(iter(scored.values()))))
    picture = picture_beside(file, "few_shot")
    curves = {row: found[score] for row, found in scored.items()}
    few_shot_curves(curves, picture, label=COLUMNS[score])
    return picture
