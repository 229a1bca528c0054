"""The page of two runs: metrics, boundaries, retrieval, curves and configuration side by side."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from training.data.folders import place
from training.evaluation import two_runs
from training.evaluation.baselines import TIME_INDEX
from training.evaluation.protocols import EVENT_COLUMNS, columns, find_protocol
from training.evaluation.tables import format_value
from training.evaluation.two_runs import LETTERS, TwoRuns
from training.pages import html
from training.pages.sections import curve_titles
from training.support.command import LeftOut
from training.support.files import replacing


def write_compare_page(
    runs: TwoRuns,
    file: Path,
    *,
    left_out: LeftOut,
    protocol: str = "carl",
    stride: int | None = None,
    queries: int = 4,
    scope: str = "others",
) -> None:
    """Write the page; one file, nothing from a network.

    Args:
        runs: result of `two_runs.load_two_runs`.
        left_out: the videos that could not be read, which the page names.
        protocol, stride: see `evaluate_embeddings`.
        queries, scope: see `two_runs.retrieval_of_both`.
    """
    names = [run.folder.resolve().name for run in (runs.a, runs.b)]
    remarks = [*runs.remarks, *(f"{name}: {why}." for name, why in left_out.videos.items())]
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder)
        body = [
            f"<h1>{escape(names[0])} and {escape(names[1])}</h1>",
            html.facts([(run.letter, str(run.folder)) for run in (runs.a, runs.b)]),
            html.paragraph(
                f"Both networks on the same {len(runs.a.test)} {runs.split} videos of "
                f"{place(runs.index)}. Classifiers are fitted to the same {len(runs.a.train)} "
                "training videos.",
                quiet=True,
            ),
            *map(html.paragraph, remarks),
            *_metrics(runs, protocol, stride),
            *_strips(runs, pictures, protocol),
            *_retrieval(runs, pictures, queries, scope),
            *_curves(runs, pictures),
            *_configuration(runs),
        ]
        page = html.page(f"{names[0]} and {names[1]}: fastseq", body)
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")


def _metrics(runs: TwoRuns, protocol: str, stride: int | None) -> list[str]:
    heading = "<h2>Metrics</h2>"
    rows = two_runs.metrics_of_both(runs, protocol=protocol, stride=stride)
    if not rows:
        text = f"No metrics: none of the {runs.split} videos has phase labels."
        return [heading, html.paragraph(text)]
    shown = columns(rows["A"])
    shown |= {mean: f"events {title}" for title, mean, _ in EVENT_COLUMNS if "frames" in title}
    shown = {key: title for key, title in shown.items() if _known(rows, key)}
    wins = [two_runs.better(key, rows["A"][key], rows["B"][key]) for key in shown]
    counts = f"A is better in {wins.count('A')} and B in {wins.count('B')} (bold)"
    used = find_protocol(protocol).stride if stride is None else stride
    named = f"Protocol {protocol}, stride {used}" if used else f"Protocol {protocol}"
    return [
        heading,
        html.paragraph(
            f"{named}. Of {len(shown)} metrics, {counts}. "
            "Errors are better when lower, the other metrics when higher. "
            f"“{TIME_INDEX}” knows the frame's place in the video and sees no picture. "
            "A single training of each recipe cannot tell a small difference from chance."
        ),
        "".join(_table(rows, shown)),
    ]


def _known(rows: Mapping[str, Mapping[str, float]], key: str) -> bool:
    return any(not math.isnan(rows[letter].get(key, math.nan)) for letter in LETTERS)


def _table(rows: Mapping[str, Mapping[str, float]], shown: Mapping[str, str]) -> Iterator[str]:
    heads = ["", *LETTERS, "B − A", TIME_INDEX]
    yield '<div class="scroll"><table><tr>'
    yield "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>\n"
    for key, title in shown.items():
        values = [rows[letter][key] for letter in LETTERS]
        best = two_runs.better(key, *values)
        yield f"<tr><td>{escape(title)}</td>"
        for letter, value in zip(LETTERS, values, strict=True):
            mark = ' class="best"' if letter == best else ""
            yield f"<td{mark}>{escape(format_value(value, key))}</td>"
        difference = values[1] - values[0]
        text = "-" if math.isnan(difference) else f"{difference:+.3f}".replace("-", "−")
        yield f"<td>{text}</td><td>{escape(format_value(rows[TIME_INDEX].get(key), key))}</td>"
        yield "</tr>\n"
    yield "</table></div>"


def _strips(runs: TwoRuns, pictures: Path, protocol: str) -> list[str]:
    svm = getattr(find_protocol(protocol), "classifier", "") == "svm"
    file = pictures / "strips.png"
    shown = two_runs.strips_of_both(runs, file, classifier="svm" if svm else "logistic")
    text = (
        f"The first {len(shown)} {runs.split} videos of the action {shown[0].record.action!r}. "
        "Embeddings as colours: three principal components, chosen for each run, so colours of A "
        "and B mean different things. What counts is where they change."
    )
    if runs.a.train and any(video.record.phases is not None for video in shown):
        text += (
            " Predicted: the phase of each frame by the protocol's classifier. A number is the "
            "frame where a phase begins."
        )
    return [
        "<h2>Phases over time</h2>",
        html.paragraph(text),
        html.picture(file, "labelled phases, predicted phases and embeddings of both runs"),
    ]


def _retrieval(runs: TwoRuns, pictures: Path, queries: int, scope: str) -> list[str]:
    from training.evaluation.retrieval import SCOPES

    file = pictures / "retrieval.png"
    if not two_runs.retrieval_of_both(runs, file, queries=queries, scope=scope):
        return []
    return [
        "<h2>Most similar frames</h2>",
        html.paragraph(
            f"The same query frames, with the frames nearest by A and by B: {SCOPES[scope]}. "
            "Green and ✓: same phase as the query. Red and ✗: another phase. Grey: no labels."
        ),
        html.picture(file, "query frames and their most similar frames by both runs"),
    ]


def _curves(runs: TwoRuns, pictures: Path) -> list[str]:
    from training.recipe.load import differences
    from training.runs.log import EVALUATIONS, read_lines, read_log

    body, losses, curves = [], {}, {}
    titles = curve_titles(runs.a.folder) | curve_titles(runs.b.folder)
    for run in (runs.a, runs.b):
        points = [(e["step"], e["loss"]) for e in read_log(run.folder) if e.get("loss") is not None]
        if points:
            losses[run.name] = points
        for line in read_lines(run.folder / EVALUATIONS):
            for key, title in titles.items():
                if (value := line["metrics"].get(key)) is not None:
                    curves.setdefault(title, {}).setdefault(run.name, []).append(
                        (line["step"], value)
                    )
    if losses:
        same = not any(key.startswith("loss.") for key in differences(runs.a.cfg, runs.b.cfg))
        two_runs.losses_of_both(losses, pictures / "losses.png", same_scale=same)
        scale = (
            "Both panels have the same axes."
            if same
            else "The panels have the same steps. The losses differ, and so do their scales."
        )
        body += [
            "<h2>Training</h2>",
            html.picture(pictures / "losses.png", "training loss of each run over steps"),
            html.paragraph(scale, quiet=True),
        ]
    if curves:
        two_runs.curves_of_both(curves, pictures / "curves.png")
        picture = html.picture(pictures / "curves.png", "metrics of both runs over training steps")
        body += [picture]
        evaluated = {name for by_run in curves.values() for name in by_run}
        if len(evaluated) == 1:
            text = f"Only {evaluated.pop()} was evaluated during training."
            body += [html.paragraph(text, quiet=True)]
    return body


def _configuration(runs: TwoRuns) -> list[str]:
    rows = configuration_differences(runs.a.cfg, runs.b.cfg)
    if not rows:
        return ["<h2>Configuration</h2>", html.paragraph("Both have the same configuration.")]
    cells = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(a)}</td><td>{escape(b)}</td></tr>\n"
        for key, a, b in rows
    )
    return [
        "<h2>Configuration</h2>",
        html.paragraph("The keys whose values differ; all others are the same."),
        '<div class="scroll"><table class="facts"><tr><th>key</th><th>A</th><th>B</th></tr>\n'
        f"{cells}</table></div>",
    ]


def configuration_differences(a: Any, b: Any) -> list[tuple[str, str, str]]:
    """(key, value in a, value in b) for the keys of two recipes that differ, but train.run_dir."""
    from omegaconf import OmegaConf

    from training.recipe.load import differences

    def text(config: Any, key: str) -> str:
        value = OmegaConf.select(config, key)
        return "null" if value is None else str(value)

    return [(k, text(a, k), text(b, k)) for k in differences(a, b) if k != "train.run_dir"]
