"""The metrics of a model during training: ``train.evaluate_every``.

The metrics are computed on the val split (``data.val_split``), or on the test split where there
are no val videos. If those of the test split are used to choose the number of steps, that choice is
made on the test videos, and their figures no longer describe unseen videos. The report says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.baselines import time_index
from training.evaluation.embed import EmbeddedVideo, embed_records
from training.evaluation.encoders import TRAINED, Encoder, feature_store, make_encoder
from training.evaluation.frame_level import require_labels
from training.evaluation.protocols import LOWER_IS_BETTER
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.videos import open_index, require_some, split_videos
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection
    from training.runs.best import BestCheckpoint

logger = logging.getLogger(__name__)

# The metrics of CARL's protocol that are recorded; they need phase labels.
KEYS = (
    "classification",
    "progression",
    "kendalls_tau",
    "ap_at_5",
    "alignment_error",
    "alignment_error_dtw",
    "event_error",
    "event_error_dtw",
)
# Those of VCLR's protocol, of runs with these encoders; they need videos of several actions.
VIDEO_KEYS = ("linear_svm", "recall_at_1")
VIDEO_ENCODERS = ("vclr", "dpc")
# Those of the classifier of actions of runs with model.encoder=tsn.
ACTION_KEYS = ("top_1", "mean_class_accuracy")


def recorded_keys(cfg: Any) -> tuple[str, ...]:
    """The metrics that evaluations of a run can have, depending on the labels."""
    if cfg.model.encoder == "tsn":
        return ACTION_KEYS
    return KEYS + (VIDEO_KEYS if cfg.model.encoder in VIDEO_ENCODERS else ())


def check_evaluation(cfg: Any) -> None:
    """ConfigError unless train.keep_best and train.patience fit the other keys."""
    from training.recipe.load import ConfigError

    metric, keys = cfg.train.keep_best, recorded_keys(cfg)
    if metric is None:
        if cfg.train.patience is not None:
            raise ConfigError(
                f"train.patience={cfg.train.patience} counts evaluations without a better "
                "train.keep_best, which is null: set it to a metric, such as "
                f"train.keep_best={keys[0]}"
            )
        return
    if metric not in keys:
        raise ConfigError(f"train.keep_best: expected one of {', '.join(keys)}, got {metric!r}")
    if cfg.train.evaluate_every is None:
        raise ConfigError(
            f"train.keep_best={metric} needs evaluations during training: set "
            "train.evaluate_every to a number of steps, such as train.evaluate_every=500"
        )


def best_checkpoint(cfg: Any, run_dir: Path) -> BestCheckpoint | None:
    """What keeps the best checkpoint by ``train.keep_best``; None if the key is null."""
    from training.runs.best import BestCheckpoint

    metric = cfg.train.keep_best
    if metric is None:
        return None
    lower = metric in LOWER_IS_BETTER
    return BestCheckpoint(run_dir, metric, cfg.train.patience, lower_is_better=lower)


def step_evaluation(cfg: Any, model: Any) -> Callable[[], dict[str, Any] | None] | None:
    """The function that `train` calls every ``train.evaluate_every`` steps, see `StepEvaluation`
    and `ActionEvaluation`.

    None if the key is null, and, with a warning, if there are no labels. Warns if
    ``train.keep_best`` chooses on the test videos.

    Raises:
        UserError: the videos lack the labels that the metric ``train.keep_best`` needs.
    """
    if cfg.train.evaluate_every is None:
        return None
    metric = cfg.train.keep_best
    if cfg.model.encoder == "tsn":
        return _action_evaluation(cfg, model)
    missing = {}
    index = open_index(cfg, check=False)  # the loader has just checked
    scored = scored_split(cfg, index)
    names = (cfg.data.train_split, scored)
    videos = {name: [*index.videos.where(split=name)] for name in names}
    try:
        for name in names:
            require_labels(index, split_videos(index, name), name)
    except UserError as error:
        missing.update(dict.fromkeys(KEYS, str(error)))
    if cfg.model.encoder in VIDEO_ENCODERS:
        reason = _without_actions(videos)
        missing.update(dict.fromkeys(VIDEO_KEYS, reason) if reason else {})
    keys = [key for key in recorded_keys(cfg) if key not in missing]
    if metric in missing:
        raise UserError(
            f"train.keep_best={metric} cannot be computed: {missing[metric]}"
            + (f"; what can be computed: {', '.join(keys)}" if keys else "")
        )
    if not keys:
        reasons = "; ".join(dict.fromkeys(missing.values()))
        logger.warning("train.evaluate_every: nothing is evaluated: %s", reasons)
        return None
    _warn_of_choice(cfg, scored)
    records = [record for found in videos.values() for record in found]
    return StepEvaluation(cfg, model, index, records, scored, keys)


def _warn_of_choice(cfg: Any, scored: str) -> None:
    """Warn if ``train.keep_best`` chooses on the test videos."""
    if cfg.train.keep_best is None or scored != cfg.data.test_split:
        return
    if cfg.data.val_split == scored:
        reason, remedy = "which data.test_split names too", "Set data.val_split to another split"
    else:
        reason = f"because no video has the split {cfg.data.val_split!r}"
        remedy = "Set that split for some videos in labels.json"
    logger.warning(
        "train.keep_best chooses on the %s videos, %s: the kept checkpoint's figures on them are "
        "too good. %s to choose on those",
        scored,
        reason,
        remedy,
    )


def _action_evaluation(cfg: Any, model: Any) -> ActionEvaluation | None:
    """The evaluation of a classifier of actions; None, with a warning, without scored videos."""
    from training.data.selection import videos_of_split
    from training.loop.labels import ActionClasses

    index = open_index(cfg, check=False)
    scored = scored_split(cfg, index)
    names = [name for (name,) in ActionClasses(videos_of_split(index, cfg.data.train_split)).names]
    records = [one for one in index.videos.where(split=scored) if one.action in names]
    if not records:
        reason = f"no video of the split {scored!r} has an action of the training videos"
        if cfg.train.keep_best is not None:
            raise UserError(f"train.keep_best={cfg.train.keep_best} cannot be computed: {reason}")
        logger.warning("train.evaluate_every: nothing is evaluated: %s", reason)
        return None
    _warn_of_choice(cfg, scored)
    return ActionEvaluation(cfg, model, records, names, scored)


class ActionEvaluation:
    """The metrics ACTION_KEYS of a classifier in training, on one view of each segment.

    A video's scores are averaged over the central crop of the clip in the middle of each segment.
    The state of the training is not affected, as by `StepEvaluation`.
    """

    def __init__(
        self,
        cfg: Any,
        model: Any,
        records: Sequence[VideoRecord],
        classes: Sequence[str],
        scored: str,
    ) -> None:
        self.cfg, self.model, self.classes, self.scored = cfg, model, classes, scored
        self.records = [*records]
        self.left_out = LeftOut()  # named once, then skipped
        self._first = True

    def __call__(self) -> dict[str, Any] | None:
        """``{"split": name, "metrics": {key: value}, "time_index": {}}`` with ACTION_KEYS.

        None, with a warning, if the scores are not finite or no video can be read.
        """
        from training.data.views import views_of
        from training.evaluation.action import classify_videos
        from training.evaluation.action_scores import action_metrics

        try:
            with _undisturbed(self.model):
                found = classify_videos(
                    self.model,
                    self.records,
                    self.cfg,
                    self.classes,
                    views_of(self.cfg),
                    left_out=self.left_out,
                    progress=self._first,
                )
            self._first = False
            self.records = self.left_out.kept(self.records)
            require_some(self.records, self.scored, self.cfg.data.folder)
        except UserError as error:
            logger.warning("not evaluated: %s", error)
            return None
        metrics = action_metrics(found.scores, found.labels)
        return {
            "split": self.scored,
            "metrics": {key: metrics[key] for key in ACTION_KEYS},
            "time_index": {},
        }


def scored_split(cfg: Any, index: Selection) -> str:
    """The split that is evaluated during training: ``data.val_split`` if there are such videos."""
    val = cfg.data.val_split
    return val if index.videos.where(split=val) else cfg.data.test_split


def _without_actions(videos: Mapping[str, Sequence[VideoRecord]]) -> str:
    """Why VCLR's metrics cannot be computed, or ""; the training videos come first."""
    train, *scored = videos.items()
    if not scored:
        return f"the scored videos are the training videos (split {train[0]!r})"
    if len({record.action for record in train[1]}) < 2:
        return f"{', '.join(VIDEO_KEYS)} need training videos of at least two actions"
    if not scored[0][1]:
        return f"there are no videos of the split {scored[0][0]!r}"
    return ""


class StepEvaluation:
    """The metrics ``keys`` of a model in training, and of the time index on the same videos.

    The model is in eval mode during the evaluation. Afterwards the modes of its modules and the
    states of all random generators are restored, so training is not affected.
    """

    def __init__(
        self,
        cfg: Any,
        model: Any,
        index: Selection,
        records: Sequence[VideoRecord],
        scored: str,
        keys: Sequence[str] = KEYS,
    ) -> None:
        self.cfg, self.model, self.index = cfg, model, index
        self.splits = (cfg.data.train_split, scored)
        self.keys = tuple(keys)
        self.left_out = LeftOut()  # named once, then skipped
        self._of_frames = any(key in KEYS for key in keys)
        self._of_videos = any(key in VIDEO_KEYS for key in keys)
        labelled = [record for record in records if record.phases is not None]
        self.records = [*records] if self._of_videos else labelled
        self._encoder: Encoder | None = None
        self._time_index: dict[str, float] | None = None
        self._warned = False

    def __call__(self) -> dict[str, Any] | None:
        """``{"split": name, "metrics": {key: value}, "time_index": {key: value}}`` with ``keys``.

        Classifiers are fitted to the training videos; all metrics are of the videos of ``split``,
        see `scored_split`. The time index has no VIDEO_KEYS. NaN = undefined. None, with a warning,
        if the embeddings are not finite or no video that the metrics need can be read.
        """
        metrics: dict[str, float] = {}
        try:
            first = self._encoder is None
            with _undisturbed(self.model):
                if first:  # the model is on its device only now
                    store = feature_store(self.model, self.cfg)
                    self._encoder = make_encoder(self.model, store=store)
                # The first evaluation shows a bar, as it may be slow; later ones would hide
                # training's.
                if self._of_frames:
                    metrics |= self._frame_metrics(progress=first)
                if self._of_videos:
                    metrics |= self._video_metrics(progress=first)
        except UserError as error:
            logger.warning("not evaluated: %s", error)
            return None
        self._warn_if_undefined(metrics)
        return {
            "split": self.splits[1],
            "metrics": {key: metrics[key] for key in self.keys},
            "time_index": self._time_index or {},
        }

    def _frame_metrics(self, *, progress: bool) -> dict[str, float]:
        labelled = [record for record in self.records if record.phases is not None]
        made = embed_records(
            {TRAINED: self._encoder}, labelled, self.cfg, self.left_out, progress=progress
        )
        kept = self._kept()
        labelled = [record for record in kept if record.phases is not None]
        for split in self.splits:
            require_labels(self.index, [r for r in labelled if r.split == split], split)
        if self._time_index is None:
            self._time_index = self._row(time_index(labelled))
        return self._row(made[TRAINED])

    def _video_metrics(self, *, progress: bool) -> dict[str, float]:
        import numpy as np

        from training.evaluation.video_level import video_features, video_scores

        made = video_features(
            {TRAINED: self._encoder}, self.records, self.cfg, self.left_out, progress=progress
        )[TRAINED]
        kept = self._kept()
        rows = []
        for split in self.splits:
            places = [place for place, record in enumerate(kept) if record.split == split]
            require_some([kept[place] for place in places], split, self.cfg.data.folder)
            rows += [made[places], np.array([kept[place].action for place in places])]
        if len(set(rows[1])) < 2:
            raise UserError("the training videos that can be read are all of one action")
        scores = video_scores(*rows)
        return {key: scores[key] for key in VIDEO_KEYS}

    def _kept(self) -> list[VideoRecord]:
        """The records without those that could not be read, which are not tried again."""
        kept = self.left_out.kept(self.records)
        if len(kept) < len(self.records):
            self.records, self._time_index = kept, None
        return kept

    def _row(self, videos: Sequence[EmbeddedVideo]) -> dict[str, float]:
        fitted, scored = (
            [video for video in videos if video.record.split == name] for name in self.splits
        )
        row = evaluate_embeddings(fitted, scored, self.index.classes, ks=(5,))
        return {key: row["metrics"].get(key, math.nan) for key in KEYS}

    def _warn_if_undefined(self, metrics: dict[str, float]) -> None:
        chosen = self.cfg.train.keep_best
        if chosen is not None and not self._warned and math.isnan(metrics[chosen]):
            self._warned = True
            logger.warning(
                "train.keep_best: %s is undefined on the %s videos, so this evaluation keeps no "
                "checkpoint",
                chosen,
                self.splits[1],
            )


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Eval mode; afterwards the modes of all modules and the random states are as before."""
    from training.runs.checkpoint import random_state, set_random_state

    modes = [(module, module.training) for module in model.modules()]
    state = random_state()
    model.eval()
    try:
        yield
    finally:
        set_random_state(state)
        for module, mode in modes:
            module.training = mode
