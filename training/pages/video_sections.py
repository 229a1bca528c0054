"""Sections of the report about whole videos: retrieval, and where the network looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.pages import html
from training.support.command import UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection
    from training.evaluation.encoders import Encoder
    from training.support.command import LeftOut

MOST_ACTIONS = 20  # rows of the table of R@1
SEEN_VIDEOS, SEEN_FRAMES = 3, 5


def retrieved_videos(
    encoder: Encoder,
    index: Selection,
    cfg: Any,
    evaluation: Path,
    pictures: Path,
    left_out: LeftOut,
) -> list[str]:
    """The sheet of whole videos and R@1 by action, for runs that are about whole videos.

    These are runs of VCLR's and of classifying encoders, and those whose evaluation*.json is by
    ``--protocol vclr``. Others embed frames, and the sheet of frames shows them.
    """
    from training.evaluation.video_level import NAME
    from training.evaluation.video_retrieval import retrieve_videos, video_sheet

    known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {}
    if getattr(cfg.model, "encoder", "") not in ("vclr", "tsn") and known.get("protocol") != NAME:
        return []
    splits = (cfg.data.train_split, cfg.data.test_split)
    actions = [{r.action for r in index.videos if r.split == split} for split in splits]
    if splits[0] == splits[1] or len(actions[0]) < 2 or not actions[1]:
        return []
    heading = "<h2>Nearest training videos</h2>"
    try:
        found = retrieve_videos(encoder, index, cfg, splits[1], left_out)
    except UserError as error:  # no training video can be read
        return [heading, html.paragraph(f"There is no picture: {error}.")]
    file = pictures / "retrieval_videos.png"
    video_sheet(found, file)
    rows = found.by_action
    table = ""
    if len(rows) <= MOST_ACTIONS:
        cells = "".join(
            f"<tr><td>{escape(action)}</td><td>{recall:.3f}</td><td>{count}</td></tr>"
            for action, (recall, count) in rows.items()
        )
        table = (
            '<div class="scroll"><table><tr><th>action</th><th>R@1</th><th>test videos</th></tr>'
            f"{cells}</table></div>"
        )
    return [
        heading,
        html.paragraph(
            "Left: test videos. Right of each: the three training videos with the most similar "
            "feature. Green and ✓: the same action. Red and ✗: another action. `python -m "
            "training.retrieve --run RUN --scope videos --queries 20 --neighbours 5` shows more "
            "of them."
        ),
        html.picture(file, "test videos and the training videos nearest to each"),
        *([html.folded("R@1 by action", table)] if table else []),
    ]


def attention(
    run: Path,
    records: Sequence[VideoRecord],
    pictures: Path,
    kind: str,
    left_out: LeftOut,
    *,
    checkpoint: str | None = None,
) -> list[str]:
    """Grad-CAM for SEEN_FRAMES frames of SEEN_VIDEOS videos.

    It is that before and after the training where these differ.
    """
    from training.evaluation.gradcam import has_map
    from training.evaluation.gradcam_run import networks_of, spread_over_actions, write_gradcam

    file = pictures / "gradcam.png"
    heading = "<h2>Where the network looks</h2>"
    try:
        groups = networks_of(run, checkpoint=checkpoint)
        if not all(has_map(model) for group in groups for model in group.models.values()):
            return []
        shown = spread_over_actions(records, SEEN_VIDEOS)
        if not write_gradcam(groups, shown, file, SEEN_FRAMES, left_out):
            return []
    except (UserError, FileNotFoundError) as error:  # no map, or no weights before the training
        return [heading, html.paragraph(f"There is no picture: {error}.")]
    compared = " before and after the training" if len(groups[0].models) > 1 else ""
    return [
        heading,
        html.paragraph(
            f"Frames of {kind} videos, and over them Grad-CAM of the backbone's last map"
            f"{compared}. Red: the parts of the frame where the score y is from. They show what "
            "the network uses, not whether it is right. `python -m training.gradcam RUN` shows "
            "more videos, and two runs with `--beside`."
        ),
        html.picture(file, f"heat maps over frames{compared}"),
    ]
