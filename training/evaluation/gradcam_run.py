"""The networks that Grad-CAM compares, the videos that it shows, and its picture of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.retrieval import spread

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.support.command import LeftOut

START = "step_00000000"  # the checkpoint before the first step, which `training.convert` writes
BEFORE, AFTER = "before training", "after training"
SAME = "The training did not change the backbone, so its maps before the training are the same."
BEHIND = "The layers behind the backbone do not count."
NOT_TRAINED = "The run has not been trained: the picture shows the weights that it starts from."
PLACES = (
    "{} keep positions (small_cnn, small_cnn3d, model.pool=grid); Grad-CAM averages the gradient "
    "over them."
)


@dataclass(frozen=True)
class Networks:
    """Networks of one configuration.

    Attributes:
        models: name in the picture -> model.
        cfg: their configuration.
        classes: names of the classifier's classes, empty without a classifier.
        note: why the network before the training is not shown.
    """

    models: dict[str, Any]
    cfg: Any
    classes: Sequence[str] = ()
    note: str = ""


def remarks_of(groups: Sequence[Networks]) -> list[str]:
    """Paragraphs for the text below the picture."""
    models = {name: model for group in groups for name, model in group.models.items()}
    kept = [
        name
        for name, model in models.items()
        if model.backbone.out_features != model.backbone.out_channels
    ]
    whose = "The backbone's features"
    if len(kept) < len(models):
        whose = f"The features of {', '.join(kept)}"
    behind = any(group.cfg.model.encoder in ("fve", "conv3d") for group in groups)
    notes = [group.note for group in groups if group.note]
    return notes + [PLACES.format(whose)] * bool(kept) + [BEHIND] * behind


def networks_of(
    run: str | Path, *, beside: str | Path | None = None, checkpoint: str | None = None
) -> list[Networks]:
    """The run's network before and after the training, or the trained networks of two runs.

    The network before is left out where the training did not change what Grad-CAM uses, and for a
    run that has not been trained (`training.convert`).
    ``checkpoint``: see `training.runs.model.restore`; with ``beside`` that of both runs.
    """
    from training.evaluation import encoders
    from training.evaluation.gradcam import classifier_of

    after = encoders._load(run, untrained=False, checkpoint=checkpoint)
    if beside is not None:
        other = encoders._load(beside, untrained=False, checkpoint=checkpoint)
        names = [Path(one).resolve().name for one in (run, beside)]
        names = names if names[0] != names[1] else [str(one) for one in (run, beside)]
        return [
            Networks({name: found.model}, found.cfg, _classes(place))
            for name, place, found in zip(names, (run, beside), (after, other), strict=True)
        ]
    if after.checkpoint == START:
        weights = after.cfg.model.weights
        name = Path(weights).name if weights else "initial weights"
        return [Networks({name: after.model}, after.cfg, _classes(run), NOT_TRAINED)]
    before = encoders._load(run, untrained=True, checkpoint=None)
    name = f"{AFTER}, step {after.step}" if after.step is not None else AFTER
    if classifier_of(after.model) is None and encoders._same_backbone(before.model, after.model):
        return [Networks({"frozen backbone": after.model}, after.cfg, note=SAME)]
    models = {BEFORE: before.model, name: after.model}
    return [Networks(models, after.cfg, _classes(run))]


def _classes(run: str | Path) -> list[str]:
    """The names of RUN/classes.json, which a run with a classifier has."""
    from training.loop.labels import read_classes

    return [", ".join(one) for one in read_classes(Path(run)) or ()]


def spread_over_actions(records: Sequence[VideoRecord], count: int) -> list[VideoRecord]:
    """At most ``count`` videos, spread evenly over those of all actions; always the same."""
    ordered = sorted(records, key=lambda record: record.action)
    return [ordered[place] for place in spread(len(ordered), min(count, len(ordered)))]


def write_gradcam(
    groups: Sequence[Networks],
    records: Sequence[VideoRecord],
    file: str | Path,
    columns: int,
    left_out: LeftOut,
) -> list[VideoRecord]:
    """Write the picture of ``columns`` frames of each video; returns the videos shown.

    Videos that cannot be read are added to ``left_out``. Without any other one, no file is written.
    """
    from training.evaluation.gradcam import heat_of_videos
    from training.evaluation.gradcam_sheet import blocks_of, gradcam_sheet

    seen = []
    for group in groups:
        kept = left_out.kept(records)
        options = {"classes": group.classes}
        seen.append([*heat_of_videos(group.models, kept, group.cfg, columns, left_out, **options)])
    shown = left_out.kept(records)
    if shown:
        ids = {record.id for record in shown}
        seen = [[one for one in videos if one.record.id in ids] for videos in seen]
        gradcam_sheet(blocks_of(seen), file, remarks=remarks_of(groups))
    return shown
