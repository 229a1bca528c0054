"""The report of a run, RUN/report.html: the player first, the configuration last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.folders import labels_file, place, prepare
from training.evaluation.videos import open_index, require_some, split_videos, videos_digest
from training.pages import figures, html, sections, video_sections
from training.pages.result_section import HEADING, result_section
from training.recipe.losses import loss_terms
from training.support.command import LeftOut
from training.support.files import replacing, write_json

if TYPE_CHECKING:
    from training.data.selection import Selection


def write_report(
    run: str | Path,
    *,
    folder: str | Path | None = None,
    checkpoint: str | None = None,
    store: bool = True,
    left_out: LeftOut | None = None,
) -> Path:
    """Embed the test videos with the trained network and write RUN/report.html; returns its path.

    Without test videos those of training are shown, and the page says so.

    RUN/evaluation.json is written first where it is missing and the labels allow it. The pictures
    of the page are also left in RUN/pictures. ``checkpoint``, ``store``: see
    `training.evaluation.stored.run_embeddings`. Test videos that cannot be read go to ``left_out``,
    and the page names them.
    """
    from training.evaluation.encoders import TRAINED
    from training.evaluation.stored import RunEmbeddings
    from training.pages.player import embedding_plot, similarity_map
    from training.runs.folder import evaluation_file
    from training.runs.log import read_log

    run, left_out = Path(run), LeftOut() if left_out is None else left_out
    embeddings = RunEmbeddings(run, checkpoint=checkpoint, folder=folder, store=store)
    cfg = embeddings.cfg
    index = open_index(cfg, folder)
    splits = (cfg.data.train_split, cfg.data.test_split)
    split = next((s for s in splits[::-1] if any(r.split == s for r in index.videos)), splits[1])
    records = split_videos(index, split)
    left_out.in_index = len(index.bad)
    videos = embeddings.embed(records, left_out)[TRAINED]
    require_some(left_out.kept(records), split, place(index))
    kind = "training" if split == cfg.data.train_split else "test"
    fitted_to = [] if kind == "training" else figures.of_strips(index, cfg.data.train_split, videos)
    train = embeddings.embed(fitted_to, left_out)[TRAINED]
    evaluation = run / evaluation_file(checkpoint=checkpoint)
    pictures = run / "pictures"
    pictures.mkdir(exist_ok=True)
    log = read_log(run)
    shown = sections.chosen(videos)
    with_player = len(shown) > 1
    body = [
        f"<h1>{escape(sections.title(videos, index))}</h1>",
        html.paragraph(
            f"Frame embeddings learned from video {_learned_from(cfg)}. Run: {run.resolve().name}.",
            quiet=True,
        ),
        *sections.empty_test_split(index, splits[1]),
        *sections.player_section(videos, shown, index, kind),
        *evaluation_section(
            *(run, cfg, index, embeddings.weights["step"]),
            folder=folder,
            checkpoint=checkpoint,
            store=store,
            left_out=left_out,
        ),
        *figures.confusion(evaluation),
        *figures.few_shot(evaluation),
        *([similarity_map()] if with_player else ()),
        *sections.retrieval(videos, index, pictures, kind),
        *video_sections.retrieved_videos(
            embeddings.encoders[TRAINED], index, cfg, evaluation, pictures, left_out
        ),
        *video_sections.attention(
            run, [v.record for v in videos], pictures, kind, left_out, checkpoint=checkpoint
        ),
        *([embedding_plot()] if with_player else ()),
        *figures.embedding_map(videos, index, pictures, kind),
        *figures.strips(
            videos, train, index, pictures, kind, classifier=figures.classifier(evaluation)
        ),
        *sections.training_loss(log, pictures, evaluation),
        *sections.curves(run, pictures),
        *sections.configuration(run, cfg, index, log, left_out),
    ]
    target = run / "report.html"
    with replacing(target) as partial:
        partial.write_text(html.page(f"{run.resolve().name}: fastseq", body), encoding="utf-8")
    return target


def _learned_from(cfg: Any) -> str:
    """Whether the run's losses used the phases or actions, in words."""
    labelled = {name in ("classification", "action") for name, *_ in loss_terms(cfg.loss)}
    if labelled == {False}:
        return "without labels"
    return "with and without labels" if False in labelled else "with labels"


def evaluation_section(
    run: Path, cfg: Any, index: Selection, step: int | None, **options: Any
) -> list[str]:
    """The section on RUN/evaluation.json, which is made first where it is missing.

    ``step``: that of the weights of the pictures. ``options``: those of `evaluate_frame_level`.
    """
    from training.evaluation.frame_level import evaluate_frame_level, has_labels
    from training.runs.folder import evaluation_file

    file = run / evaluation_file(checkpoint=options["checkpoint"])
    splits = (cfg.data.train_split, cfg.data.test_split)
    if not any(record.split == splits[1] for record in index.videos):
        splits = (splits[0], splits[0])
    labelled = [has_labels([r for r in index.videos if r.split == split]) for split in splits]
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    elif len({*splits}) == 2 and all(labelled):
        result = evaluate_frame_level(run, **options)
        write_json(file, result)
        result = json.loads(file.read_text(encoding="utf-8"))
    else:
        return [HEADING, html.paragraph(_not_evaluated(splits, labelled, index, run))]
    checkpoint = options["checkpoint"]
    command = f"python -m training.evaluate {run}"
    command += f" --checkpoint {checkpoint}" if checkpoint else ""
    found = _out_of_date(result, index, splits, step)
    texts = [f"{text}: run `{command}` again, then the report." for text in found]
    remarks = [f'<p class="warning"><strong>{escape(text)}</strong></p>' for text in texts]
    heading, *rest = result_section(result)
    return [heading, *remarks, *rest]


def _out_of_date(
    result: Mapping[str, Any], index: Selection, splits: Sequence[str], step: int | None
) -> list[str]:
    """Where the table differs from the run and its videos as they are now."""
    found = []
    if result.get("step") not in (None, step):
        found.append(f"The table is of step {result['step']}, the pictures are of step {step}")
    made_with = result.get("class_set") or ""
    if made_with != index.class_set:
        names = [repr(name) if name else "none" for name in (made_with, index.class_set)]
        found.append(f"The table's class set is {names[0]}, the run's is {names[1]}")
    elif result.get("videos_digest") not in (None, videos_digest(index, splits)):
        found.append("The table was made with other labels, splits or videos")
    return found


def _not_evaluated(
    splits: tuple[str, str], labelled: list[bool], index: Selection, run: Path
) -> str:
    """What is missing for the table, and what to do."""
    labels = labels_file(index)
    then = f"Then run {prepare(index)} and `python -m training.evaluate {run}`."
    if len({*splits}) == 1:  # figures on the videos of training would say nothing
        return (
            "Not evaluated: there are no test videos apart from those of training. Write "
            f'"split": "test" for some videos in {labels}, train without them, and evaluate again.'
        )
    missing = [f"{s} videos" for s, there in zip(splits, labelled, strict=True) if not there]
    return (
        f"Not evaluated: the table needs phase labels, and the {' and the '.join(missing)} have "
        f"none. Write boundaries for them in {labels}. {then}"
    )
