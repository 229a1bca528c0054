"""The table of a comparison of losses, and a check of the orderings that the papers report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.tables import BELOW_ZERO, is_below_zero

TIME_INDEX_METHOD = "time_index"
FRAMES_TITLES = {
    TIME_INDEX_METHOD: "time index only",
    "untrained": "untrained",
    "soft_dtw": "Soft-DTW alone",
    "soft_dtw_idm": "Soft-DTW + IDM",
    "soft_dtw_sfa": "Soft-DTW + SFA",
    "lav": "LAV",
    "lav_tcc": "LAV + TCC",
    "d2tw": "Soft-DTW, softmax cost (D2TW)",
    "gta": "GTA",
    "ae2": "AE2",
    "drop_dtw": "Drop-DTW",
    "drop_dtw_idm": "Drop-DTW + Contrastive-IDM",
    "vava": "VAVA",
    "lrprop": "LRProp (with LAV)",
    "lrprop_alone": "LRProp, no Soft-DTW",
    "tcc": "TCC",
    "tcn": "TCN",
    "sal": "SaL",
    "speednet": "SpeedNet (1 attention layer)",
    "nearest": "contrastive baseline",
    "carl_laplace": "SCL, Laplace target",
    "carl_sigmoid": "SCL, sigmoid target",
    "carl_box": "SCL, box target",
    "carl": "CARL (SCL)",
}
FRAMES_COLUMNS = {
    "classification": "classification",
    "progression": "progression",
    "kendalls_tau": "tau",
    "ap_at_5": "AP@5",
    "pairwise_distance": "spread",
    "effective_rank": "effective rank",
}
# (better, worse): LAV's Tables 1 and 2, CARL's Table 13.
FRAMES_ORDERINGS = [("lav", "soft_dtw_idm"), ("lav", "soft_dtw_sfa"), ("lav_tcc", "lav")]
FRAMES_ORDERINGS += [("carl", "nearest")]

# VCLR's Table 6: each of its losses alone, and together; its Table 8, with clips.
VCLR_TITLES = {
    "untrained": "untrained",
    "intra": "intra-frame alone",
    "inter": "inter-frame alone",
    "video": "video-level alone",
    "order": "temporal order alone",
    "inter_intra": "inter + intra",
    "inter_intra_order": "inter + intra + order",
    "inter_intra_video": "inter + intra + video",
    "all": "all four (VCLR)",
    "clips_untrained": "clips, untrained",
    "clips_inter": "clips, inter",
    "clips_inter_video": "clips, inter + video",
    "clips_inter_video_order": "clips, inter + video + order",
    "clips_all": "clips, all four",
}
VCLR_COLUMNS = {
    "linear_svm": "linear SVM",
    "direction": "direction",
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "pairwise_distance": "spread",
    "effective_rank": "effective rank",
}
VCLR_ORDERINGS = [
    ("video", "inter"),
    ("inter", "order"),
    ("inter_intra", "inter"),
    ("inter_intra_order", "inter_intra"),
    ("inter_intra_video", "inter_intra"),
    ("all", "inter_intra_video"),
    ("all", "video"),
]
CLIPS_ORDERINGS = [("clips_inter_video", "clips_inter")]
CLIPS_ORDERINGS += [("clips_inter_video_order", "clips_inter_video")]
CLIPS_AND_FRAMES = [("clips_inter", "inter"), ("clips_all", "all")]


def frames_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table of methods for frames, with a check of the orderings that the papers report."""
    return _table(results, FRAMES_TITLES, FRAMES_COLUMNS, frames_claims(results))


def vclr_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table of VCLR's losses, with a check of the orderings of its Tables 6 and 8.

    Table 8 has linear classification and R@1. Clips are also compared with single frames.
    """
    checks = [
        (VCLR_ORDERINGS, ["linear_svm"]),
        (CLIPS_ORDERINGS, ["linear_svm", "recall_at_1"]),
        (CLIPS_AND_FRAMES, ["linear_svm", "direction"]),
    ]
    found = [
        line
        for orderings, keys in checks
        for line in _orderings(results, orderings, keys, VCLR_TITLES, VCLR_COLUMNS)
    ]
    return _table(results, VCLR_TITLES, VCLR_COLUMNS, found)


def _table(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
    columns: Mapping[str, str],
    found: Sequence[str],
) -> str:
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in (name for name in titles if name in results):
        cells = [_cell(key, [_value(one, key) for one in results[method]]) for key in columns]
        lines.append(f"| {titles[method]} | " + " | ".join(cells) + " |")
    seeds = len(next(iter(results.values())))
    lines += ["", f"Mean and standard deviation over {seeds} seed{'s' if seeds > 1 else ''}.", ""]
    return "\n".join(lines + [f"- {claim}" for claim in found]) + "\n"


def frames_claims(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Each expected ordering, with the number of seeds in which it is found."""
    out = []
    for low, high in (("soft_dtw", "untrained"), ("soft_dtw", "lav")):
        if low in results and high in results:
            pairs = _pairs(results, low, high, "pairwise_distance")
            held = sum(a < 0.5 * b for a, b in pairs)
            ratios = ", ".join(f"{a / b:.2f}" for a, b in pairs)
            out.append(
                f"Spread of {FRAMES_TITLES[low]} below half of {FRAMES_TITLES[high]}: in {held} of "
                f"{len(pairs)} seeds (ratios {ratios})."
            )
    if "lav" in results and "untrained" in results:
        pairs = _pairs(results, "lav", "untrained", "pairwise_distance")
        held = sum(a > 0.5 * b for a, b in pairs)
        ratios = ", ".join(f"{a / b:.2f}" for a, b in pairs)
        out.append(
            f"Spread of LAV above half of untrained: in {held} of {len(pairs)} seeds "
            f"(ratios {ratios})."
        )
    keys = ["classification", "progression", "kendalls_tau", "ap_at_5"]
    return out + _orderings(results, FRAMES_ORDERINGS, keys, FRAMES_TITLES, FRAMES_COLUMNS)


def _orderings(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    orderings: Sequence[tuple[str, str]],
    keys: Sequence[str],
    titles: Mapping[str, str],
    columns: Mapping[str, str],
) -> list[str]:
    out = []
    for high, low in orderings:
        for key in keys:
            if high not in results or low not in results:
                continue
            pairs = _pairs(results, high, low, key)
            held = sum(a > b for a, b in pairs)
            gaps = ", ".join(f"{a - b:+.3f}" for a, b in pairs)
            out.append(
                f"{titles[high]} above {titles[low]} in {columns[key]}: in {held} of {len(pairs)} "
                f"seeds ({gaps})."
            )
    return out


def _pairs(results: Mapping, a: str, b: str, key: str) -> list[tuple[float, float]]:
    return [
        (_value(one, key), _value(other, key))
        for one, other in zip(results[a], results[b], strict=True)
    ]


def _value(result: Mapping[str, Any], key: str) -> float:
    value = result["metrics"].get(key)
    return math.nan if value is None else value


def _cell(key: str, values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = statistics.mean(known)
    digits = 3 if abs(mean) < 10 else 1
    text = BELOW_ZERO if is_below_zero(key, mean) else f"{mean:.{digits}f}"
    if len(known) > 1 and text != BELOW_ZERO:
        text += f" ± {statistics.stdev(known):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"
