"""What the report says of an evaluation: the verdict, what is bold, comparisons."""

from __future__ import annotations

import re

import pytest

from training.evaluation.baselines import TIME_INDEX
from training.evaluation.encoders import BACKBONE, BACKBONE_CENTRED, TRAINED, UNTRAINED
from training.pages.result_section import compare, result_section, verdict


def with_events(**frames):
    """Rows with this event error in frames, at 25 frames a second."""
    names = {
        "trained": TRAINED,
        "clock": TIME_INDEX,
        "backbone": BACKBONE,
        "centred": BACKBONE_CENTRED,
        "untrained": UNTRAINED,
    }
    return {
        names[name]: {"metrics": {"event_error_dtw": value, "event_error_dtw_seconds": value / 25}}
        for name, value in frames.items()
    }


CARRIED = (
    "by DTW, events carried from one test video to another are 5.0 frames (0.20 s) off on average"
)


@pytest.mark.parametrize(
    ("frames", "begins", "ends"),
    [
        ({"clock": 20.0}, "Better than the clock", "20.0 frames (0.80 s) for the clock"),
        ({"clock": 5.0}, "Not better than the clock", "5.0 frames (0.20 s) for the clock"),
        (
            {"clock": 20.0, "backbone": 9.0, "centred": 8.0},
            "Better than the clock and than the pre-trained backbone",
            "20.0 frames (0.80 s) for the clock, 8.0 frames (0.32 s) for the pre-trained backbone",
        ),
        (
            {"clock": 20.0, "backbone": 9.0, "centred": 4.0},
            "Better than the clock, not better than the pre-trained backbone",
            "20.0 frames (0.80 s) for the clock, 4.0 frames (0.16 s) for the pre-trained backbone",
        ),
        (
            {"clock": 4.0, "backbone": 9.0},
            "Better than the pre-trained backbone, not better than the clock",
            "4.0 frames (0.16 s) for the clock, 9.0 frames (0.36 s) for the pre-trained backbone",
        ),
        (
            {"clock": 4.0, "backbone": 3.0},
            "Better than neither the clock nor the pre-trained backbone",
            "4.0 frames (0.16 s) for the clock, 3.0 frames (0.12 s) for the pre-trained backbone",
        ),
        (
            {"untrained": 6.0},
            "Better than the untrained network",
            "6.0 frames (0.24 s) for the untrained network",
        ),
    ],
)
def test_the_verdict_is_one_sentence_with_frames_and_seconds(frames, begins, ends):
    said = verdict(with_events(trained=5.0, **frames))
    assert said == f"{begins}: {CARRIED}, against {ends}."


def test_numbers_that_look_alike_are_no_victory():
    assert verdict(with_events(trained=5.01, clock=5.04)).startswith("Not better than the clock: ")


def test_the_verdict_without_seconds():
    rows = {TRAINED: {"metrics": {"event_error_dtw": 5.0, "event_error_dtw_seconds": None}}}
    assert verdict(rows) == (
        "By DTW, events carried from one test video to another are 5.0 frames off on average."
    )


def test_the_page_says_where_the_trained_network_is_not_ahead():
    rows = with_events(trained=5.0, clock=20.0)
    for name, value in ((TRAINED, 0.6), (TIME_INDEX, 0.7)):
        rows[name]["left_out"] = {}
        rows[name]["metrics"]["classification"] = value
    result = {
        **{"rows": rows, "folder": "clips", "protocol": "carl", "definitions": {}},
        **{"videos": {"train": 8, "test": 4}, "row_definitions": {}},
    }
    page = "\n".join(result_section(result))
    said = "Not better than the time index alone: phase classification 0.600 against 0.700."
    assert said in page[: page.index("<table>")]
    assert "trained on" not in page
    result |= {"trained_on": ["a.mp4", "<b>.mp4"], "unchecked": ["a.mp4"]}
    page = "\n".join(result_section(result))
    assert "2 of 4 test videos were trained on (a.mp4, &lt;b&gt;.mp4): figures on them" in page
    assert "1 of 4 test videos have labels that were carried over" in page

    def rows(**metrics):
        return {TRAINED: {"metrics": metrics}, TIME_INDEX: {"metrics": dict.fromkeys(metrics, 0.5)}}

    assert verdict(rows(event_error_dtw=None, alignment_error_dtw=0.25, classification=0.9)) == (
        "Better than the clock: by DTW, matched frames of two test videos are 0.25 phases apart on "
        "average, against 0.50 phases for the clock."
    )
    assert verdict(rows(classification=0.4)) == (
        "Not better than the clock: 40.0 % of the test frames are classified as the right phase, "
        "against 50.0 % for the clock."
    )
    assert verdict({TRAINED: {"metrics": {"linear_svm": 0.75}}}) == (
        "75.0 % of the test videos are classified as the right action."
    )
    assert verdict({TRAINED: {"metrics": {"kendalls_tau": 0.5}}}) == ""
    assert verdict({TIME_INDEX: {"metrics": {"classification": 0.5}}}) == ""


def test_the_trained_row_is_the_first_of_the_table():
    rows = with_events(clock=20.0, untrained=9.0, trained=5.0, backbone=8.0)
    for row in rows.values():
        row["left_out"] = {}
        row["metrics"] |= {"event_error_dtw_median": 1.0, "event_error_dtw_median_seconds": 0.04}
    result = {
        "rows": rows,
        "folder": "videos",
        "videos": {"train": 1, "test": 2},
        "protocol": "carl",
        "definitions": {},
        "row_definitions": {},
    }
    page = "\n".join(result_section(result))
    table = page[page.index("<table>") : page.index("</table>")]
    assert re.findall("<td>([a-z][^<]*)</td>", table) == [
        "trained",
        "time index only",
        "backbone alone",
        "untrained",
    ]
    assert "<th>events off, frames: mean (median)</th><th>same, seconds</th>" in table
    assert '<tr class="main"><td>trained</td><td class="best">5.00 (1.00)</td>' in table
    assert page.index("Better than the clock and than") < page.index("<table>")


def test_report_never_calls_a_tie_or_a_loss_better():
    def rows(trained, clock):
        keys = ("classification", "ap_at_5", "alignment_error")
        values = {"trained": trained, "time index only": clock}
        return {
            name: {"metrics": dict(zip(keys, row, strict=True))} for name, row in values.items()
        }

    (tie,) = compare(rows((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert tie.startswith("Not better than the time index alone: phase classification 0.500")
    better, worse = compare(rows((0.6, 0.4, 0.3), (0.5, 0.5, 0.5)))
    assert re.search("phase classification.*alignment error", better)
    assert "AP@5 0.400 against 0.500" in worse
    assert compare(rows((0.6, None, None), (0.5, 0.5, 0.5))) == [
        "Better than the time index alone: phase classification 0.600 against 0.500."
    ]


def test_the_trained_network_is_compared_with_the_better_backbone_row():
    def row(classification, alignment):
        return {"metrics": {"classification": classification, "alignment_error": alignment}}

    rows = {
        "time index only": row(0.5, 0.3),
        "backbone alone": row(0.8, 0.4),
        "backbone, less the video's mean": row(0.7, 0.2),
        "trained": row(0.75, 0.1),
    }
    _, better, worse = compare(rows)
    backbone = "the pre-trained backbone alone, with or without the video's mean: "
    assert better == f"Better than {backbone}alignment error 0.100 against 0.200."
    assert worse == f"Not better than {backbone}phase classification 0.750 against 0.800."


def test_only_rows_of_the_trained_network_are_bold():
    rows = {
        "time index only": {"metrics": {"kendalls_tau": 1.0, "classification": 0.5}},
        "trained": {"metrics": {"kendalls_tau": 0.9, "classification": 0.6, "progression": -2.0}},
        "trained, positions off": {
            "metrics": {"kendalls_tau": 0.5, "alignment_error": 0.2, "event_error": 2.0}
        },
        "untrained": {"metrics": {"alignment_error": 0.3, "event_error": 1.0}},
    }
    for row in rows.values():
        row |= {"left_out": {}}
        row["metrics"] |= {"event_error_median": 0.0}
    result = {
        "rows": rows,
        "folder": "videos",
        "videos": {"train": 1, "test": 2},
        "protocol": "carl",
        "definitions": {},
        "row_definitions": {},
    }
    page = "\n".join(result_section(result))
    assert re.findall('class="best">([^<]*)<', page) == ["0.600", "0.600", "0.200"]
    assert "&lt;0" in page
    assert "alignment error (phases)" in page
    assert "Events carried over" in page


def test_an_evaluation_of_tau_alone_shows_tau_and_why_there_is_no_verdict():
    rows = {
        name: {"metrics": {"kendalls_tau": value}, "left_out": {}}
        for name, value in ((TIME_INDEX, 1.0), (TRAINED, 0.75))
    }
    result = {
        **{"rows": rows, "run": "runs/a", "folder": "clips", "protocol": "carl"},
        **{"metrics": ["tau"], "definitions": {}, "row_definitions": {}},
        "videos": {"train": 8, "test": 4},
    }
    page = "\n".join(result_section(result))
    short = page[page.index("<table>") : page.index("</table>")]
    assert "<th>tau</th>" in short
    assert "<td>0.750</td>" in short
    assert "No verdict: the evaluation has no value of the metrics that decide it" in page
    assert (
        "It was limited to tau: run <code>python -m training.evaluate runs/a</code> for all" in page
    )
    rows[TRAINED]["metrics"] = {"classification": 0.9}
    assert "No verdict" not in "\n".join(result_section(result))
