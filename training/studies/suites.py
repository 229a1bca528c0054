"""The suites of training.compare: methods and their common recipe, videos, metrics and table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.studies.comparison_table import (
    FRAMES_TITLES,
    VCLR_TITLES,
    frames_table,
    vclr_table,
)
from training.support.files import write_json

FRAMES_RECIPE = "recipes/compare.yaml"
UNTRAINED = "optim.lr=0"  # marks the methods that are not trained

# CARL's variance is 10 frames^2 for views whose neighbouring frames are 1.25 frames apart (crops of
# 1 to 1.5 T frames). Here they are 6.5 apart on average (0.65 of 200 frames, T = 20), so the same
# Gaussian in units of that gap has 10 (6.5 / 1.25)^2 = 270 frames^2. Not tuned.
VARIANCE = 270.0
REACH = math.sqrt(206 * VARIANCE)  # reach of SCL's Gaussian; the baseline uses the same frames

_VIEWS = ["data.clips=views", "data.sampling=random"]
_SCL = ["loss.scl.weight=1", f"loss.scl.variance={VARIANCE}", *_VIEWS]
_PAIRS = ["data.clips=videos", "data.sampling=segment"]
_D2TW = ["loss.soft_dtw.weight=1", "loss.soft_dtw.cost=softmax", "loss.soft_dtw.softmin=prob"]
# SCL's Gaussian in frames of a clip, which are 10 frames of the video apart on average.
_MATCHED = ["loss.lrprop.weight=1", f"loss.lrprop.variance={VARIANCE / 100:g}"]
_REGULARISED = ["loss.soft_dtw.weight=1", "loss.contrastive_idm.weight=0.5"]  # LAV's alpha
FRAMES_METHODS = {
    "untrained": [UNTRAINED, *_VIEWS],
    "soft_dtw": ["loss.soft_dtw.weight=1", *_PAIRS],
    "soft_dtw_idm": [*_REGULARISED, "loss.contrastive_idm.form=idm", *_PAIRS],
    "soft_dtw_sfa": [*_REGULARISED, "loss.contrastive_idm.form=sfa", *_PAIRS],
    "lav": ["loss.lav.weight=1", *_PAIRS],
    "lav_tcc": ["loss.lav.weight=1", "loss.tcc.weight=1", "loss.tcc.normalize=true", *_PAIRS],
    "d2tw": [*_D2TW, *_PAIRS],
    "gta": ["loss.gta.weight=1", *_PAIRS],
    "ae2": ["loss.ae2.weight=1", *_PAIRS],
    "drop_dtw": ["loss.drop_dtw.weight=1", *_PAIRS],
    "drop_dtw_idm": ["loss.drop_dtw.weight=1", "loss.contrastive_idm.weight=0.5", *_PAIRS],
    # The released window of 15 frames leaves 20 of 400 pairs of frames to keep apart.
    "vava": ["loss.vava.weight=1", "loss.vava.window=1", *_PAIRS],
    "lrprop": [*_MATCHED, "loss.lav.weight=0.1", *_PAIRS],
    "lrprop_alone": [*_MATCHED, *_PAIRS],
    "tcc": ["loss.tcc.weight=1", "data.clips=videos", "data.sampling=offset_uniform"],
    "tcn": ["loss.tcn.weight=1", "data.clips=views", "data.sampling=anchors"],
    "sal": ["loss.sal.weight=1", "data.clips=views", "data.sampling=offset_uniform"],
    # The only method that needs embeddings which depend on the other frames of a clip.
    "speednet": [
        "loss.speed.weight=1",
        "data.clips=views",
        "data.sampling=speeds",
        "model.layers=1",
    ],
    "nearest": ["loss.nearest.weight=1", f"loss.nearest.reach={REACH:.4f}", *_VIEWS],
    "carl_laplace": [*_SCL, "loss.scl.target=laplace"],
    "carl_sigmoid": [*_SCL, "loss.scl.target=sigmoid"],
    "carl_box": [*_SCL, "loss.scl.target=box"],
    "carl": _SCL,
}

VCLR_RECIPE = "recipes/vclr_demo.yaml"
_VCLR_LOSSES = ("inter", "intra", "video", "order")
CLIPS = "clips_"  # methods with a network of clips, as in VCLR's Table 8
# 4 of 37 frames. Trained with labels for 300 steps on the four classes of `REVERSED`, this network
# classifies 76 % of the test videos with stride 12, and 60 % with stride 4; 50 % need no direction.
# Half the sides: a step then costs about as much as one of single frames.
_CLIPS = ["model.backbone=small_cnn3d", "data.tuple_frames=4", "data.tuple_stride=12"]
_CLIPS += ["augmentation.size=32", "data.cache_side=36"]
# CoCLR's optimizer, which A.3 follows. With the recipe's SGD the linear SVM was 0.59 for all four
# losses on seed 0, with Adam 0.63.
_CLIPS += ["optim.name=adam", "optim.lr=1e-3", "optim.weight_decay=1e-5"]


def _vclr_options(name: str) -> list[str]:
    losses = name.removeprefix(CLIPS)
    used = _VCLR_LOSSES if losses == "all" else losses.split("_")
    weights = [f"loss.vclr.{one}={int(one in used)}" for one in _VCLR_LOSSES]
    network = _CLIPS if name.startswith(CLIPS) else []
    return [*network, *([UNTRAINED] if losses == "untrained" else weights)]


VCLR_METHODS = {name: _vclr_options(name) for name in VCLR_TITLES}


@dataclass(frozen=True)
class Suite:
    """Methods to compare, and what they share.

    render: function that writes the videos of a seed to a folder, with the numbers of training and
        test videos per action.
    evaluate: function of a run that returns the result to keep.
    table: function of all results that returns Markdown.
    time_index: whether the table has a row for the time index.
    videos: default numbers of training and test videos per action.
    """

    recipe: str
    methods: dict[str, list[str]]
    titles: dict[str, str]
    render: Callable[[Path, int, int, int], Any]
    evaluate: Callable[[Path], dict[str, Any]]
    table: Callable[[dict[str, list[dict[str, Any]]]], str]
    time_index: bool
    videos: tuple[int, int]


def _evaluate_frames(run: Path) -> dict[str, Any]:
    from training.data.selection import open_index
    from training.evaluation.embed import embed_records
    from training.evaluation.encoders import TRAINED, load_encoder
    from training.runs.log import read_log

    encode, cfg = load_encoder(run)
    index = open_index(cfg)
    embedded = embed_records({TRAINED: encode}, index.videos, cfg, progress=False)[TRAINED]
    last = read_log(run)[-1]
    return _scores(embedded, index) | {"seconds": last["seconds"], "log": last}


def time_index_result(videos: Path, folder: Path) -> dict[str, Any]:
    from training.data.index import load_index
    from training.evaluation.baselines import time_index

    index = load_index(videos)
    result = _scores(time_index(index.videos), index)
    write_json(folder / "time_index.json", result)
    return result


def _scores(embedded: Sequence[Any], index: Any) -> dict[str, Any]:
    """CARL's metrics and the spread of the test videos' embeddings."""
    import numpy as np
    import torch

    from training.evaluation.scores import evaluate_embeddings
    from training.runs.log import collapse_measures

    split = {
        name: [video for video in embedded if video.record.split == name]
        for name in ("train", "test")
    }
    row = evaluate_embeddings(split["train"], split["test"], index.classes)
    rows = np.concatenate([video.embeddings for video in split["test"]])
    spread = collapse_measures(torch.from_numpy(rows), most=1024)
    return {"metrics": row["metrics"] | spread, "left_out": dict(row["left_out"])}


def _render_actions(folder: Path, seed: int, train: int, test: int) -> None:
    from training.demo.render import render_dataset

    render_dataset(folder, seed=seed, train_per_action=train, test_per_action=test)


def _render_classes(folder: Path, seed: int, train: int, test: int) -> None:
    from training.demo.classes import render_classes

    render_classes(folder, seed=seed, train_per_class=train, test_per_class=test)


def _evaluate_videos(run: Path) -> dict[str, Any]:
    """VCLR's metrics, those of direction, and the spread of the test videos' features.

    ``direction``: accuracy of a linear SVM between a class and the one that shows it backwards, the
    mean over `REVERSED`. Chance is 1/2, also for any mean over single frames.
    """
    import numpy as np
    import torch

    from training.data.selection import open_index
    from training.demo.classes import REVERSED
    from training.evaluation.encoders import TRAINED, load_encoder
    from training.evaluation.video_level import video_features, video_scores
    from training.runs.log import collapse_measures, read_log

    encode, cfg = load_encoder(run)
    records = open_index(cfg).videos
    rows = video_features({TRAINED: encode}, records, cfg, progress=False)[TRAINED]
    actions = np.array([record.action for record in records])
    test = np.array([record.split == "test" for record in records])

    def scores_of(chosen: np.ndarray) -> dict[str, float]:
        train, scored = chosen & ~test, chosen & test
        return video_scores(rows[train], actions[train], rows[scored], actions[scored])

    scores = scores_of(np.ones_like(test))
    pairs = [scores_of(np.isin(actions, pair))["linear_svm"] for pair in REVERSED.items()]
    scores["direction"] = float(np.mean(pairs))
    spread = collapse_measures(torch.from_numpy(rows[test]), most=1024)
    last = read_log(run)[-1]
    return {"metrics": scores | spread, "seconds": last["seconds"], "log": last}


SUITES = {
    "frames": Suite(
        FRAMES_RECIPE,
        FRAMES_METHODS,
        FRAMES_TITLES,
        _render_actions,
        _evaluate_frames,
        frames_table,
        time_index=True,
        videos=(40, 12),
    ),
    "vclr": Suite(
        VCLR_RECIPE,
        VCLR_METHODS,
        VCLR_TITLES,
        _render_classes,
        _evaluate_videos,
        vclr_table,
        time_index=False,
        videos=(40, 20),
    ),
}
