"""Write a page about a run: `python -m training.report RUN` makes RUN/report.html.

One file that can be sent around: what was run, the loss curve, the evaluation tables (from
RUN/evaluation.json, which `python -m training.evaluate RUN` writes; where there are labels and no
such file, CARL's protocol is computed and written first), the curves of train.evaluate_every, two
test videos aligned, the most similar frames, and the embeddings over time. The pictures are also
left in RUN/pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.videos import open_index, require_some, split_videos
from training.pages import html
from training.pages.result_section import HEADING, result_section
from training.support.command import EXIT_STATUS, LeftOut, UserError, run_command
from training.support.files import replacing, write_json

if TYPE_CHECKING:
    from training.data.index import Index
    from training.evaluation.embed import EmbeddedVideo

CURVES = {
    "classification": "classification",
    "ap_at_5": "AP@5",
    "alignment_error_dtw": "alignment error by DTW",
    "event_error_dtw": "frames off at an event, DTW",
}
STRIPS = 8


def write_report(
    run: str | Path, *, folder: str | Path | None = None, left_out: LeftOut | None = None
) -> Path:
    """Make the pictures with the trained encoder and write RUN/report.html; returns its path.

    Test videos that cannot be read go to ``left_out``, and the page names them.
    """
    from training.evaluation.embed import embed_records
    from training.evaluation.encoders import TRAINED, load_encoder
    from training.runs.log import read_log

    run, left_out = Path(run), LeftOut() if left_out is None else left_out
    encoder, cfg = load_encoder(run, folder)
    index = open_index(cfg, folder)
    records = split_videos(index, cfg.data.test_split)
    left_out.in_index = len(index.bad)
    videos = embed_records({TRAINED: encoder}, records, cfg, left_out)[TRAINED]
    require_some(left_out.kept(records), cfg.data.test_split, index.folder)
    pictures = run / "pictures"
    pictures.mkdir(exist_ok=True)
    log = read_log(run)
    body = [
        f"<h1>{escape(run.resolve().name)}</h1>",
        html.paragraph("Frame embeddings learned from video without labels.", quiet=True),
        "<h2>What was run</h2>",
        _what_was_run(run, cfg, index, log, left_out),
        *_training(log, pictures),
        *_evaluation(run, folder, cfg, index, left_out),
        *_curves(run, pictures),
        *_alignment(videos, pictures, run),
        *_retrieval(videos, index, pictures),
        *_strips(videos, index, pictures),
    ]
    target = run / "report.html"
    with replacing(target) as partial:
        partial.write_text(html.page(f"fastseq: {run.resolve().name}", body), encoding="utf-8")
    return target


def _what_was_run(
    run: Path, cfg: Any, index: Index, log: Sequence[Mapping[str, Any]], left_out: LeftOut
) -> str:
    train = sum(record.split == cfg.data.train_split for record in index.videos)
    test = sum(record.split == cfg.data.test_split for record in index.videos)
    actions = sorted({record.action for record in index.videos})
    rows = [
        ("videos", f"{index.folder}: {train} for training, {test} for testing"),
        ("actions", ", ".join(actions)),
        (
            "network",
            f"{cfg.model.backbone}, {cfg.model.layers} Transformer layers, frames of "
            f"{cfg.augmentation.size} pixels, {cfg.data.num_frames} frames a view",
        ),
        ("this page's machine", _machine()),
    ]
    if left_out.videos:
        rows.insert(1, ("not in the pictures", "; ".join(map(": ".join, left_out.videos.items()))))
    if index.bad:
        rows.insert(1, ("left out", f"{len(index.bad)} files that could not be read"))
    last = next((entry for entry in reversed(log) if "step" in entry), None)
    if last is not None:
        rows.insert(-1, ("training", _training_summary(run, last)))
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return html.facts(rows) + html.folded(
        "the run's whole configuration", f"<pre>{escape(text)}</pre>"
    )


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


def _training(log: Sequence[Mapping[str, Any]], pictures: Path) -> list[str]:
    from training.evaluation.plots import loss_curve

    points = [(e["step"], e["loss"]) for e in log if "step" in e and "loss" in e]
    points = [(step, loss) for step, loss in points if loss is not None and math.isfinite(loss)]
    if not points:
        return []
    loss_curve(*zip(*points, strict=True), pictures / "loss.png")
    return [
        "<h2>Training loss</h2>",
        html.picture(pictures / "loss.png", "training loss over steps"),
        html.paragraph(
            "A falling loss alone shows little: the frame's position in the clip can lower it too. "
            "The table below compares with the time index, which needs no network."
        ),
    ]


def _evaluation(
    run: Path, folder: str | Path | None, cfg: Any, index: Index, left_out: LeftOut
) -> list[str]:
    """The section on RUN/evaluation.json, which is made first where it is missing."""
    from training.evaluation.frame_level import evaluate_frame_level, has_labels

    file = run / "evaluation.json"
    splits = (cfg.data.train_split, cfg.data.test_split)
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    elif len({*splits}) == 2 and all(  # on the clips of training it would say nothing
        has_labels([r for r in index.videos if r.split == split]) for split in splits
    ):
        result = evaluate_frame_level(run, folder=folder, left_out=left_out)
        write_json(file, result)
        result = json.loads(file.read_text(encoding="utf-8"))
    else:
        return [
            HEADING,
            html.paragraph(
                "Not evaluated: the table needs phase labels of training and of test videos. Once "
                "labels.json has them and `python -m training.prepare` has read them, `python -m "
                "training.evaluate RUN` computes it."
            ),
        ]
    return result_section(result)


def _curves(run: Path, pictures: Path) -> list[str]:
    from training.evaluation.plots import metric_curves
    from training.runs.log import EVALUATIONS, read_lines

    lines = read_lines(run / EVALUATIONS)
    if len(lines) < 2:
        return []
    last = lines[-1]["metrics"]
    curves = {
        title: (
            [math.nan if (v := line["metrics"].get(key)) is None else v for line in lines],
            lines[-1]["time_index"][key],
        )
        for key, title in CURVES.items()
        if last.get(key) is not None and lines[-1]["time_index"].get(key) is not None
    }
    if not curves:
        return []
    metric_curves([line["step"] for line in lines], curves, pictures / "curves.png")
    return [
        "<h2>How many steps were needed</h2>",
        html.picture(pictures / "curves.png", "metrics on the test videos over training steps"),
        html.paragraph(
            "The trained network on the test videos while it was trained; dashed: the time index "
            "alone. Where the curves stay flat, more steps bring nothing. Whoever picks a step by "
            "these curves picks it on the test videos: its figures are then too good."
        ),
    ]


def _alignment(videos: Sequence[EmbeddedVideo], pictures: Path, run: Path) -> list[str]:
    from training.evaluation.alignment import align, write_aligned_video
    from training.evaluation.plots import similarity_map

    pair = first_pair(videos)
    if pair is None:
        return []
    a, b = pair
    alignment = align(a, b)
    write_aligned_video(a, b, alignment, pictures / "aligned.mp4")
    similarity_map(a, b, (alignment.i, alignment.j), pictures / "similarity.png")
    return [
        "<h2>Two videos in step</h2>",
        html.paragraph(
            f"The first two test videos of the action {a.record.action!r}, not chosen by result. "
            f"Left: {a.record.id} at its own pace. Middle: {b.record.id}, each moment aligned to "
            "the left one by dynamic time warping on the embeddings. Right: the same video "
            "stretched evenly, which is what the clock alone would do. The bars show the place in "
            "each video."
        ),
        html.video(pictures / "aligned.mp4", run),
        html.paragraph(
            "Similarity of every frame of one with every frame of the other. The red line is the "
            f"alignment: mean cosine similarity {alignment.similarity:.3f} along it, "
            f"{alignment.straight:.3f} along the straight line."
            + (
                " Dotted lines are the labelled phase boundaries; a good alignment passes where "
                "they cross."
                if a.record.phases is not None and b.record.phases is not None
                else ""
            )
        ),
        html.picture(pictures / "similarity.png", "similarity of all frame pairs, and the path"),
    ]


def first_pair(videos: Sequence[EmbeddedVideo]) -> tuple[EmbeddedVideo, EmbeddedVideo] | None:
    """The first two videos that share an action."""
    seen: dict[str, EmbeddedVideo] = {}
    for video in videos:
        if video.record.action in seen:
            return seen[video.record.action], video
        seen[video.record.action] = video
    return None


def _retrieval(videos: Sequence[EmbeddedVideo], index: Index, pictures: Path) -> list[str]:
    from training.evaluation.retrieval import retrieval_sheet

    if not retrieval_sheet(videos, index.classes, pictures / "retrieval.png"):
        return []
    return [
        "<h2>Most similar frames</h2>",
        html.paragraph(
            "Left: frames of test videos, from the middle of a phase where there are labels. Right "
            "of each: the most similar frame of the five closest other test videos of the action, "
            "with its cosine similarity. Green and ✓: same phase as the query. Red and ✗: another "
            "phase. Grey: no labels."
        ),
        html.picture(pictures / "retrieval.png", "query frames and their most similar frames"),
    ]


def _strips(videos: Sequence[EmbeddedVideo], index: Index, pictures: Path) -> list[str]:
    from training.evaluation.plots import embedding_strips

    action = videos[0].record.action
    shown = [video for video in videos if video.record.action == action][:STRIPS]
    embedding_strips(shown, index.classes, pictures / "embeddings.png")
    return [
        "<h2>Embeddings over time</h2>",
        html.paragraph(
            f"The first {len(shown)} test videos of the action {action!r}, each stretched to the "
            "same width. Upper bar: the embedding of each frame as a colour (its first three "
            "principal components). Lower bar: the labelled phase. If the network has found the "
            "phases, the upper bar changes where the lower one does, and like phases have like "
            "colours in all videos. If it only knows the time, all upper bars look the same. If "
            "each video has a colour of its own, it mostly sees how the video looks."
        ),
        html.picture(pictures / "embeddings.png", "embeddings over time as colours"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.report", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: the run's own)"
    )
    args = parser.parse_args(argv)

    def command() -> LeftOut:
        left_out = LeftOut()
        if not args.run.is_dir():
            raise UserError(f"{args.run} is no directory; give a run of `python -m training.train`")
        print(f"written: {write_report(args.run, folder=args.folder, left_out=left_out)}")
        return left_out

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
