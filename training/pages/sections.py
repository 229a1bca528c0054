"""The sections of the report apart from the evaluation: lists of HTML blocks, in page order."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.folders import place
from training.pages import html
from training.support.command import counted

if TYPE_CHECKING:
    from training.data.selection import Selection
    from training.evaluation.embed import EmbeddedVideo
    from training.support.command import LeftOut

CURVES = {
    "classification": "classification",
    "ap_at_5": "AP@5",
    "alignment_error_dtw": "alignment error by DTW, phases",
    "event_error_dtw": "events off by DTW, frames",
    "linear_svm": "linear SVM",
    "recall_at_1": "R@1",
}
# Shown only where train.keep_best chooses by them.
OTHER_CURVES = {
    "progression": "progression",
    "kendalls_tau": "Kendall's tau",
    "alignment_error": "alignment error, phases",
    "event_error": "events off, frames",
}
SHOWN = 8  # videos in the player, and strips


def curve_titles(run: Path) -> dict[str, str]:
    """Metric -> title of its curve; with the metric that the run's best checkpoint is chosen by."""
    from training.runs.best import read_best

    best = read_best(run)
    kept = {best["metric"]} & OTHER_CURVES.keys() if best is not None else set()
    return CURVES | {metric: OTHER_CURVES[metric] for metric in kept}


def chosen(videos: Sequence[EmbeddedVideo]) -> list[EmbeddedVideo]:
    """At most SHOWN videos for the player, in the order of ``videos``; not by result.

    Only actions with at least two videos have pairs, and at most SHOWN / 2 of them are shown. The
    first video of each comes first, then the second of each, and so on.
    """
    by_action: dict[str, list[int]] = {}
    for position, video in enumerate(videos):
        by_action.setdefault(video.record.action, []).append(position)
    groups = [places for places in by_action.values() if len(places) > 1][: SHOWN // 2]
    ranked = sorted(
        (rank, group, place)
        for group, places in enumerate(groups)
        for rank, place in enumerate(places)
    )
    return [videos[place] for place in sorted(place for _, _, place in ranked[:SHOWN])]


def empty_test_split(index: Selection, test_split: str) -> list[str]:
    """That the test split is empty, where it is: the page then shows the training videos."""
    if index.videos.where(split=test_split):
        return []
    return [
        html.paragraph(
            f"There is no video in the test split {test_split!r}: this page shows training videos, "
            "which the network has seen."
        )
    ]


def player_section(
    videos: Sequence[EmbeddedVideo], shown: Sequence[EmbeddedVideo], index: Selection, kind: str
) -> list[str]:
    """The player of the videos ``shown``, and what it shows; or why there is none.

    ``kind``: "test" or "training", the split of ``videos``.
    """
    if len(shown) < 2:
        return [
            '<section id="player">\n<h2>Two videos in step</h2>\n'
            f"{_no_pair(videos, kind)}\n</section>"
        ]
    from training.pages.payload import payload
    from training.pages.player import player

    start = next(
        (a, b)
        for b in range(len(shown))
        for a in range(b)
        if shown[a].record.action == shown[b].record.action
    )
    data = payload(shown, index.classes, start=start)
    return [player(data), *map(_quiet, [which(videos, shown, kind), sizes(shown, data)])]


def title(videos: Sequence[EmbeddedVideo], index: Selection) -> str:
    """The actions shown, or the folder where they have no name."""
    actions = [*dict.fromkeys(video.record.action for video in videos)]
    named = [action for action in actions if action != "all"]
    if 0 < len(named) <= 4:
        return ", ".join(named)
    return " and ".join(folder.name for folder in index.folders)


def _quiet(text: str) -> str:
    return html.paragraph(text, quiet=True)


def _no_pair(videos: Sequence[EmbeddedVideo], kind: str) -> str:
    if len(videos) == 1:
        missing = f"There is only one {kind} video, {videos[0].record.id}"
    else:
        missing = f"No two of the {len(videos)} {kind} videos have the same action"
    return html.paragraph(
        f"{missing}: nothing can be aligned. The player, the similarity map and the table need at "
        'least two of one action: write "split" and "action" in labels.json, and run `python -m '
        "training.prepare` again. `python -m training.align A B --run RUN` aligns any two files."
    )


def which(videos: Sequence[EmbeddedVideo], shown: Sequence[EmbeddedVideo], kind: str) -> str:
    """Which videos the player has, in a sentence."""
    actions: dict[str, int] = {}
    for video in shown:
        actions[video.record.action] = actions.get(video.record.action, 0) + 1
    names = " and ".join(f"the first {n} of {action!r}" for action, n in actions.items())
    if len(shown) == len(videos):
        return f"Shown: all {len(videos)} {kind} videos."
    return (
        f"Shown: {len(shown)} of the {len(videos)} {kind} videos, {names} in the order of the "
        "folder. They were not chosen by result."
    )


def sizes(shown: Sequence[EmbeddedVideo], data: Mapping[str, Any]) -> str:
    """How much of the videos is in the page, and how large that is."""
    inside = sum(len(video["frames"]) for video in data["videos"])
    whole = sum(len(video.frames) for video in shown)
    size = len(json.dumps(data, separators=(",", ":"))) / 1e6
    largest = max((v["pictures"] for v in data["videos"]), key=lambda p: p["width"] * p["height"])
    frames = f"all {whole:,} frames" if inside == whole else f"{inside:,} of {whole:,} frames"
    return (
        f"The page holds {frames} as pictures of up to {largest['width']} x {largest['height']} "
        f"pixels, with embeddings and alignments {size:.1f} MB. "
        "Alignments and errors are computed with all frames."
    )


def retrieval(
    videos: Sequence[EmbeddedVideo], index: Selection, pictures: Path, kind: str
) -> list[str]:
    from training.evaluation.retrieval import FRAME_NEIGHBOURS, retrieval_sheet

    if not retrieval_sheet(videos, index.classes, pictures / "retrieval.png"):
        return []
    return [
        "<h2>Most similar frames</h2>",
        html.paragraph(
            f"Left: frames of {kind} videos, from the middle of a phase where there are labels. "
            f"Right of each: the most similar frames of other {kind} videos of the action, one of "
            f"each video and at most {FRAME_NEIGHBOURS}, with their cosine similarity. Green and "
            "✓: same phase as the query. Red and ✗: another phase. Grey: no labels. `python -m "
            "training.retrieve --run RUN --scope all` searches the frames of all other videos. "
            "With `--scope videos` it finds the training videos nearest to whole test videos."
        ),
        html.picture(pictures / "retrieval.png", "query frames and their most similar frames"),
    ]


def training_loss(log: Sequence[Mapping[str, Any]], pictures: Path, evaluation: Path) -> list[str]:
    """The loss over steps; mentions the time index if the evaluation's file has a row of it."""
    from training.evaluation.baselines import TIME_INDEX
    from training.evaluation.plots import loss_curve

    points = [(e["step"], e["loss"]) for e in log if "step" in e and "loss" in e]
    points = [(step, loss) for step, loss in points if loss is not None and math.isfinite(loss)]
    if not points:
        return []
    loss_curve(*zip(*points, strict=True), pictures / "loss.png")
    section = [
        "<h2>Training loss</h2>",
        html.picture(pictures / "loss.png", "training loss over steps"),
    ]
    known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {}
    if TIME_INDEX in known.get("rows", {}):
        section.append(
            html.paragraph(
                "A falling loss alone shows little: the frame's position in the clip can lower it "
                "too. The table above compares with the time index, which needs no network."
            )
        )
    return section


def curves(run: Path, pictures: Path) -> list[str]:
    """The evaluations during training (train.evaluate_every), if there are two or more."""
    from training.evaluation.curve_plot import metric_curves
    from training.runs.best import read_best
    from training.runs.log import EVALUATIONS, read_lines

    lines = read_lines(run / EVALUATIONS)
    split = lines[-1].get("split", "test") if lines else ""
    lines = [line for line in lines if line.get("split", "test") == split]
    if len(lines) < 2:
        return []
    best = read_best(run)
    last = lines[-1]
    values = {
        title: (
            [math.nan if (v := line["metrics"].get(key)) is None else v for line in lines],
            last["time_index"].get(key),
        )
        for key, title in curve_titles(run).items()
        if last["metrics"].get(key) is not None
    }
    if not values:
        return []
    steps = [line["step"] for line in lines]
    kept = None if best is None else best["step"]
    metric_curves(steps, values, pictures / "curves.png", label=f"{split} videos", best=kept)
    if split == "test":
        picked = (
            "A step picked by these curves is picked on the test videos: its figures are then too "
            'good. Videos with "split": "val" in labels.json are evaluated instead.'
        )
    else:
        picked = f"A step picked by these curves is picked on the {split} videos."
    clock = "; dashed: the time index alone" if last["time_index"] else ""
    return [
        "<h2>How many steps were needed</h2>",
        html.picture(pictures / "curves.png", f"metrics on the {split} videos over training steps"),
        html.paragraph(
            f"The network on the {split} videos while it was trained{clock}. "
            f"Where the curves stay flat, more steps bring nothing. {picked}"
        ),
        *_kept(best, last),
    ]


def _kept(best: Mapping[str, Any] | None, last: Mapping[str, Any]) -> list[str]:
    """The best checkpoint and the early end of the training, where there are such."""
    sentences = []
    if best is not None:
        name = (CURVES | OTHER_CURVES).get(best["metric"], best["metric"])
        sentences.append(
            f"checkpoints/best.pt (dotted line) is the network of step {best['step']}, the best by "
            f"{name} on the {best['split']} videos ({best['value']:.3f})."
        )
    if last.get("stopped_early"):
        sentences.append(
            f"The training stopped early, at step {last['step']}, because later evaluations were "
            "not better (train.patience)."
        )
    return [html.paragraph(" ".join(sentences))] if sentences else []


def network(cfg: Any) -> str:
    """The backbone, the encoder, and what it sees of a video in training, in words."""
    encoder = f"model.encoder={cfg.model.encoder}"
    if cfg.model.encoder == "fve":
        encoder = counted(cfg.model.layers, "Transformer layer")
    seen = f"{cfg.data.num_frames} frames a view"
    if cfg.data.clips in ("tuples", "segments", "blocks"):
        part = "block" if cfg.data.clips == "blocks" else "segment"
        frames = counted(cfg.data.tuple_frames, "frame")
        seen = f"{counted(cfg.data.segments, part)} of a video, clips of {frames}"
    size = cfg.augmentation.size
    return f"{cfg.model.backbone}, {encoder}, frames of {size} pixels, {seen}"


def configuration(
    run: Path, cfg: Any, index: Selection, log: Sequence[Mapping[str, Any]], left_out: LeftOut
) -> list[str]:
    train = sum(record.split == cfg.data.train_split for record in index.videos)
    test = sum(record.split == cfg.data.test_split for record in index.videos)
    actions = sorted({record.action for record in index.videos})
    rows = [("videos", f"{place(index)}: {train} for training, {test} for testing")]
    if index.class_set:
        others = ", ".join(name for name in index.class_sets if name != index.class_set)
        more = f"; labels.json also has {others}" if others else ""
        rows.append(("class set", f"{index.class_set}{more}"))
    if index.bad:
        rows.append(("left out", f"{len(index.bad)} files that could not be read"))
    if left_out.videos:
        rows.append(("not in the pictures", "; ".join(map(": ".join, left_out.videos.items()))))
    rows += [("actions", ", ".join(actions)), ("network", network(cfg))]
    last = next((entry for entry in reversed(log) if "step" in entry), None)
    if last is not None:
        rows.append(("training", _training_summary(run, last)))
    rows.append(("this page's machine", _machine()))
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return [
        "<h2>What was run</h2>",
        html.facts(rows),
        html.folded("the run's whole configuration", f"<pre>{escape(text)}</pre>"),
    ]


def _training_summary(run: Path, last: Mapping[str, Any]) -> str:
    text = f"{last['step']} steps in {last['seconds'] / 60:.1f} minutes"
    environment = run / "environment.json"
    if environment.is_file():
        known = json.loads(environment.read_text(encoding="utf-8"))
        text += f" on {known['device']}, {known['precision']}, {known['threads']} threads"
    return text


def _machine() -> str:
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor}, {os.cpu_count()} cores, {gpu}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
