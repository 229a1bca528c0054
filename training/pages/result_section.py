"""An evaluation.json as a section of the report: the verdict, tables, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from training.evaluation.baselines import TIME_INDEX
from training.evaluation.encoders import (
    BACKBONE,
    BACKBONE_CENTRED,
    TRAINED,
    TRAINED_WITHOUT_POSITIONS,
    UNTRAINED,
    UNTRAINED_WITHOUT_POSITIONS,
)
from training.evaluation.protocols import EVENT_COLUMNS, LOWER_IS_BETTER, columns
from training.evaluation.tables import (
    BELOW_ZERO,
    event_cells,
    format_value,
    left_out_lines,
    mean_median,
)
from training.pages import html
from training.support.command import counted

HEADING = "<h2>How good are the embeddings?</h2>"
NOT_BETTER = "Not better than"
COMPARED = {
    "classification": "phase classification",
    "weighted_f1": "phase classification (F1)",
    "ap_at_5": "AP@5",
    "map_at_10": "mAP@10",
    "alignment_error": "alignment error",
    "alignment_error_dtw": "alignment error by DTW",
    "event_error_dtw": "frames off by DTW at an event",
    "sync_error": "error by nearest frame",
    "sync_error_dtw": "error by DTW",
    "sync_error_open": "error by open DTW",
}
# The verdict is by the first of these metrics that the trained network has. {} is its value.
VERDICTS = {
    "event_error_dtw": (
        "by DTW, events carried from one test video to another are {} off on average"
    ),
    "sync_error_dtw": "by DTW, synchronised frames are matched {} off on average",
    "alignment_error_dtw": "by DTW, matched frames of two test videos are {} apart on average",
    "alignment_error": "the nearest frames of two test videos are {} apart on average",
    "classification": "{} of the test frames are classified as the right phase",
    "weighted_f1": "phases of test frames are classified with an F1 of {}",
    "linear_svm": "{} of the test videos are classified as the right action",
    "top_1": "{} of the test videos are classified as the right action",
}
ROWS = (
    *(TRAINED, TIME_INDEX, BACKBONE, BACKBONE_CENTRED, UNTRAINED),
    *(TRAINED_WITHOUT_POSITIONS, UNTRAINED_WITHOUT_POSITIONS),
)
# The short table: key, title, key of the median that stands beside it.
SHORT = (
    ("event_error_dtw", "events off, frames: mean (median)", "event_error_dtw_median"),
    ("event_error_dtw_seconds", "same, seconds", "event_error_dtw_median_seconds"),
    ("sync_error_dtw", "off by DTW, frames", None),
    ("sync_error_dtw_seconds", "same, seconds", None),
    ("sync_error_open", "off by open DTW, frames", None),
    ("sync_error_open_seconds", "same, seconds", None),
    ("alignment_error_dtw", "alignment error, phases", None),
    ("classification", "classification, share right", None),
    ("weighted_f1", "classification, F1", None),
    ("ap_at_5", "AP@5", None),
    ("map_at_10", "mAP@10", None),
    ("linear_svm", "linear SVM, share right", None),
    ("top_1", "top-1", None),
    ("mean_class_accuracy", "mean class accuracy", None),
    ("recall_at_1", "R@1", None),
)


def result_section(result: Mapping[str, Any]) -> list[str]:
    """What an evaluation.json holds, as HTML: the verdict, tables, definitions."""
    rows = _sorted(result["rows"])
    shown = columns(
        key for row in rows.values() for key, value in row["metrics"].items() if value is not None
    )
    sentence = verdict(rows)
    body = [HEADING]
    body += [f'<p class="verdict">{escape(sentence)}</p>' if sentence else _no_verdict(result)]
    body += _warnings(result)
    notes = []
    if TIME_INDEX in rows:
        notes.append(
            f"The clock is the row “{TIME_INDEX}”: it knows the frame's place in the video and "
            "sees no picture."
        )
    if BACKBONE in rows and BACKBONE_CENTRED in rows:
        notes.append("Of the two rows of the backbone the better one counts.")
    body += [html.paragraph(" ".join(notes), quiet=True)] if sentence and notes else []
    # The verdict is by one metric: whoever reads only it has to see where others say otherwise.
    body += [html.paragraph(text) for text in compare(rows) if text.startswith(NOT_BETTER)]
    scored = counted(result["videos"]["test"], "test video")
    stride = f", stride {result['stride']}" if "stride" in result else ""
    class_set = f", class set {result['class_set']}" if result.get("class_set") else ""
    titles = dict(shown)
    if event_cells(rows):
        titles |= {"event_error": "events by nearest frame", "event_error_dtw": "events by DTW"}
    return [
        *body,
        _short_table(rows),
        html.paragraph(
            f"Evaluated on {result['folder']}: {result['videos']['train']} training and "
            f"{scored}, protocol {result['protocol']}{stride}"
            f"{class_set}. Bold: the trained network is best in the column.",
            quiet=True,
        ),
        html.folded("all metrics", "\n".join(_all_metrics(rows, shown, result.get("remark")))),
        html.folded(
            "what the columns mean",
            html.definitions(
                [
                    (titles.get(key, key), text)
                    for key, text in result["definitions"].items()
                    if key in titles or not columns([key])
                ]
            ),
        ),
        html.folded("what the rows mean", html.definitions([*result["row_definitions"].items()])),
        *_left_out(rows, result.get("left_out", {})),
    ]


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """What makes the figures say less than they seem to."""
    total, found = result["videos"]["test"], []
    if seen := result.get("trained_on"):
        found.append(
            f"{len(seen)} of {total} test videos were trained on ({', '.join(seen[:8])}"
            f"{', ...' if len(seen) > 8 else ''}): figures on them say nothing about new videos."
        )
    if unchecked := result.get("unchecked"):
        found.append(
            f"{len(unchecked)} of {total} test videos have labels that were carried over from "
            "other videos and are still to be checked."
        )
    return [f'<p class="warning"><strong>{escape(text)}</strong></p>' for text in found]


def _no_verdict(result: Mapping[str, Any]) -> str:
    metrics = result.get("metrics")
    again = ""
    if metrics:
        again = (
            f" It was limited to {', '.join(metrics)}: run `python -m training.evaluate "
            f"{result['run']}` for all metrics, then the report."
        )
    return html.paragraph(
        "No verdict: the evaluation has no value of the metrics that decide it (event error, "
        f"alignment error, classification).{again}"
    )


def verdict(rows: Mapping[str, Any]) -> str:
    """Whether the trained network beats the clock and the backbone, by which metric, in a sentence.

    The first of VERDICTS that it has decides; of the backbone's rows the better one counts. Without
    either the untrained network is what it has to beat. A tie, of the numbers as
    they are printed, is not better. Empty where the
    evaluation has no row of the trained network, or none of these metrics.
    """
    values = rows[TRAINED]["metrics"] if TRAINED in rows else {}
    key = next((key for key in VERDICTS if values.get(key) is not None), None)
    if key is None:
        return ""
    rivals = {
        "the clock": [TIME_INDEX],
        "the pre-trained backbone": [BACKBONE, BACKBONE_CENTRED],
    }
    found = {}
    for rival, names in rivals.items():
        best = _best_row(key, names, rows)
        if best is not None:
            found[rival] = rows[best]["metrics"]
    if not found and (best := _best_row(key, [UNTRAINED], rows)) is not None:
        found["the untrained network"] = rows[best]["metrics"]
    sentence = VERDICTS[key].format(_amount(key, values))
    if not found:
        return f"{sentence[0].upper()}{sentence[1:]}."
    lower = key in LOWER_IS_BETTER
    beaten, others = [], []
    for rival, other in found.items():
        wins = values[key] < other[key] if lower else values[key] > other[key]
        wins = wins and _amount(key, values) != _amount(key, other)
        (beaten if wins else others).append(rival)
    if not others:
        judged = f"Better than {' and than '.join(beaten)}"
    elif len(others) == 2:
        judged = f"Better than neither {others[0]} nor {others[1]}"
    elif not beaten:
        judged = f"Not better than {others[0]}"
    else:
        judged = f"Better than {beaten[0]}, not better than {others[0]}"
    theirs = ", ".join(f"{_amount(key, other)} for {rival}" for rival, other in found.items())
    return f"{judged}: {sentence}, against {theirs}."


def _amount(key: str, values: Mapping[str, Any]) -> str:
    """A metric with its unit."""
    value = values[key]
    if key.startswith("event_error"):
        seconds = values.get(f"{key}_seconds")
        return f"{value:.1f} frames" + ("" if seconds is None else f" ({seconds:.2f} s)")
    if key.startswith("alignment_error"):
        return f"{value:.2f} phases"
    return f"{value:.3f}" if key == "weighted_f1" else f"{100 * value:.1f} %"


def _best_row(key: str, names: Iterable[str], rows: Mapping[str, Any]) -> str | None:
    known = [name for name in names if name in rows and rows[name]["metrics"].get(key) is not None]
    choose = min if key in LOWER_IS_BETTER else max
    return choose(known, key=lambda name: rows[name]["metrics"][key]) if known else None


def _sorted(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The trained network first, what it has to beat next."""
    names = [name for name in ROWS if name in rows]
    return {name: rows[name] for name in [*names, *(name for name in rows if name not in names)]}


def _short_table(rows: Mapping[str, Any]) -> str:
    def known(column: tuple[str, str, str | None]) -> bool:
        return any(row["metrics"].get(column[0]) is not None for row in rows.values())

    shown = [column for column in SHORT if known(column)]
    if not shown:
        every = columns(key for row in rows.values() for key in row["metrics"])
        shown = [column for key, title in every.items() if known(column := (key, title, None))]
    lines = [["", *(title for _, title, _ in shown)]]
    for name, row in rows.items():
        values = row["metrics"]
        cells = (
            format_value(values.get(key), key)
            if median is None
            else mean_median(values.get(key), values.get(median))
            for key, _, median in shown
        )
        lines.append([name, *cells])
    return _rows_table(lines, rows, [key for key, _, _ in shown])


def _all_metrics(
    rows: Mapping[str, Any], shown: Mapping[str, str], remark: str | None
) -> list[str]:
    """Every column of the evaluation, and the comparisons metric by metric."""
    lines = [["", *shown.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key), key) for key in shown)])
    body = [*map(html.paragraph, compare(rows)), _rows_table(lines, rows, [*shown])]
    if lines := event_cells(rows):
        body += [
            html.paragraph(
                "Events carried over to another test video: mean (median) error of the frame that "
                "an event is matched to."
            ),
            _rows_table(lines, rows, [mean for _, mean, _ in EVENT_COLUMNS]),
        ]
    return [*body, *map(html.paragraph, [remark] if remark else ())]


def _rows_table(
    lines: Sequence[Sequence[str]], rows: Mapping[str, Any], keys: Sequence[str]
) -> str:
    """Lines of cells, titles first; ``keys``: of the metric that is compared in each column."""
    out = ["<tr>" + "".join(f"<th>{escape(title)}</th>" for title in lines[0])]
    for name, *cells in lines[1:]:
        main = ' class="main"' if name == TRAINED else ""
        out.append(f"<tr{main}><td>{escape(name)}</td>")
        for key, text in zip(keys, cells, strict=True):
            mark = ' class="best"' if _is_best(key, name, rows) and text != BELOW_ZERO else ""
            out[-1] += f"<td{mark}>{escape(text)}</td>"
    return '<div class="scroll"><table>' + "</tr>\n".join(out) + "</tr></table></div>"


def _is_best(key: str, name: str, rows: Mapping[str, Any]) -> bool:
    """Whether a row of the trained network has the best value of all rows; others never are."""
    value = rows[name]["metrics"].get(key)
    if value is None or not name.startswith(TRAINED):
        return False
    best = _best_row(key, rows, rows)
    return best is not None and value == rows[best]["metrics"][key]


def _left_out(rows: Mapping[str, Any], unreadable: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {reason}" for name, reason in unreadable.items()]
    lines += left_out_lines(rows)
    if not lines:
        return []
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [html.folded("what was left out", f"<ul>{items}</ul>")]


def compare(rows: Mapping[str, Any]) -> list[str]:
    """Where the trained network is better than the clock, the backbone and itself untrained.

    One sentence for each, and one for where it is not. Of the backbone's rows the better one
    counts, in each metric.
    """
    if TRAINED not in rows:
        return []
    rivals = {
        "the time index alone": [TIME_INDEX],
        "the pre-trained backbone alone, with or without the video's mean": [
            BACKBONE,
            BACKBONE_CENTRED,
        ],
        "the untrained network": [UNTRAINED],
    }
    sentences = []
    for rival, names in rivals.items():
        better, not_better = [], []
        for key, title in COMPARED.items():
            trained = rows[TRAINED]["metrics"].get(key)
            best = _best_row(key, names, rows)
            if trained is None or best is None:
                continue
            other = rows[best]["metrics"][key]
            wins = trained < other if key in LOWER_IS_BETTER else trained > other
            text = f"{title} {format_value(trained, key)} against {format_value(other, key)}"
            (better if wins else not_better).append(text)
        parts = [("Better than", better), (NOT_BETTER, not_better)]
        sentences += [f"{word} {rival}: {', '.join(found)}." for word, found in parts if found]
    return sentences
