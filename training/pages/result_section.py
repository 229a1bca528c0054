"""An evaluation.json as a section of the report: tables, and sentences that compare the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.evaluation.baselines import TIME_INDEX
from training.evaluation.encoders import BACKBONE, BACKBONE_CENTRED, TRAINED
from training.evaluation.protocols import EVENT_COLUMNS, LOWER_IS_BETTER, columns
from training.evaluation.tables import BELOW_ZERO, event_cells, format_value, left_out_lines
from training.pages import html

HEADING = "<h2>How good are the embeddings?</h2>"
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


def result_section(result: Mapping[str, Any]) -> list[str]:
    """What an evaluation.json holds, as HTML: sentences, tables, definitions."""
    rows = result["rows"]
    shown = columns(
        key for row in rows.values() for key, value in row["metrics"].items() if value is not None
    )
    lines = [["", *shown.values()]]
    for name, row in rows.items():
        lines.append([name, *(format_value(row["metrics"].get(key), key) for key in shown)])
    body = [HEADING, *map(html.paragraph, compare(rows)), _rows_table(lines, rows, [*shown])]
    titles = dict(shown)
    if lines := event_cells(rows):
        body += [
            html.paragraph(
                "Events carried over to another test video: mean (median) error of the frame that "
                "an event is matched to."
            ),
            _rows_table(lines, rows, [mean for _, mean, _ in EVENT_COLUMNS]),
        ]
        titles |= {"event_error": "events by nearest frame", "event_error_dtw": "events by DTW"}
    stride = f", stride {result['stride']}" if "stride" in result else ""
    return [
        *body,
        *map(html.paragraph, [result["remark"]] if "remark" in result else ()),
        html.paragraph(
            f"Evaluated on {result['folder']}: {result['videos']['train']} training and "
            f"{result['videos']['test']} test videos, protocol {result['protocol']}{stride}. Bold: "
            "the trained network is best in the column.",
            quiet=True,
        ),
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
    return value == _best(key, [row["metrics"].get(key) for row in rows.values()])


def _best(key: str, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return (min if key in LOWER_IS_BETTER else max)(known) if known else None


def _left_out(rows: Mapping[str, Any], unreadable: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {reason}" for name, reason in unreadable.items()]
    lines += left_out_lines(rows)
    if not lines:
        return []
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [html.folded("what was left out", f"<ul>{items}</ul>")]


def compare(rows: Mapping[str, Any]) -> list[str]:
    """Where the trained network is better than the clock and than the backbone, and where not.

    A sentence each. Of the backbone's rows the better one counts, in each metric.
    """
    if TRAINED not in rows:
        return []
    rivals = {
        "the time index alone": [TIME_INDEX],
        "the pre-trained backbone alone, with or without the video's mean": [
            BACKBONE,
            BACKBONE_CENTRED,
        ],
    }
    sentences = []
    for rival, names in rivals.items():
        better, not_better = [], []
        for key, title in COMPARED.items():
            trained = rows[TRAINED]["metrics"].get(key)
            other = _best(key, [rows[name]["metrics"].get(key) for name in names if name in rows])
            if trained is None or other is None:
                continue
            wins = trained < other if key in LOWER_IS_BETTER else trained > other
            text = f"{title} {format_value(trained, key)} against {format_value(other, key)}"
            (better if wins else not_better).append(text)
        parts = [("Better than", better), ("Not better than", not_better)]
        sentences += [f"{word} {rival}: {', '.join(found)}." for word, found in parts if found]
    return sentences
