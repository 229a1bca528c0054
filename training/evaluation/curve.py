"""The metrics of a model during training: ``train.evaluate_every``.

The metrics are computed on the val split (``data.val_split``), or on the test split where there
are no val videos. If those of the test split are used to choose the number of steps, that choice is
made on the test videos, and their figures no longer describe unseen videos. The report says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from training.evaluation.baselines import time_index
from training.evaluation.embed import EmbeddedVideo, embed_records
from training.evaluation.encoders import TRAINED, Encoder, feature_store, make_encoder
from training.evaluation.frame_level import require_labels
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.videos import open_index, split_videos
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord

logger = logging.getLogger(__name__)

# The metrics of CARL's protocol that are recorded.
KEYS = ("classification", "ap_at_5", "alignment_error_dtw", "event_error", "event_error_dtw")


def step_evaluation(cfg: Any, model: Any) -> Callable[[], dict[str, Any] | None] | None:
    """The function that `train` calls every ``train.evaluate_every`` steps, see `StepEvaluation`.

    None if the key is null, and, with a warning, if there are no labels.
    """
    if cfg.train.evaluate_every is None:
        return None
    try:
        index = open_index(cfg, check=False)  # the loader has just checked
        records = []
        scored = scored_split(cfg, index)
        for name in (cfg.data.train_split, scored):
            split = split_videos(index, name)
            require_labels(index, split, name)
            records += [record for record in split if record.phases is not None]
    except UserError as error:
        logger.warning("train.evaluate_every: nothing is evaluated: %s", error)
        return None
    return StepEvaluation(cfg, model, index, records, scored)


def scored_split(cfg: Any, index: Index) -> str:
    """The split that is evaluated during training: ``data.val_split`` if there are such videos."""
    val = cfg.data.val_split
    return val if index.videos.where(split=val) else cfg.data.test_split


class StepEvaluation:
    """The metrics of a model in training, and those of the time index on the same videos.

    The model is in eval mode during the evaluation. Afterwards the modes of its modules and the
    states of all random generators are restored, so training is not affected.
    """

    def __init__(
        self, cfg: Any, model: Any, index: Index, records: Sequence[VideoRecord], scored: str
    ) -> None:
        self.cfg, self.model, self.index = cfg, model, index
        self.records = list(records)
        self.splits = (cfg.data.train_split, scored)
        self.left_out = LeftOut()  # named once, then skipped
        self._encoder: Encoder | None = None

    def __call__(self) -> dict[str, Any] | None:
        """``{"split": name, "metrics": {key: value}, "time_index": {key: value}}`` with KEYS.

        Classifiers are fitted to the training videos; all metrics are of the videos of ``split``,
        see `scored_split`. NaN = undefined. None, with a warning, if the embeddings are not finite
        or no labelled video can be read.
        """
        try:
            embedded = self._embed()
            self.records = self.left_out.kept(self.records)
            for split in self.splits:
                require_labels(self.index, [r for r in self.records if r.split == split], split)
        except UserError as error:
            logger.warning("not evaluated: %s", error)
            return None
        return {
            "split": self.splits[1],
            "metrics": self._row(embedded),
            "time_index": self._row(time_index(self.records)),
        }

    def _embed(self) -> list[EmbeddedVideo]:
        from training.runs.checkpoint import random_state, set_random_state

        modes = [(module, module.training) for module in self.model.modules()]
        state = random_state()
        self.model.eval()
        try:
            first = self._encoder is None
            if first:  # the model is on its device only now
                store = feature_store(self.model, self.cfg)
                self._encoder = make_encoder(self.model, store=store)
            encoders = {TRAINED: self._encoder}
            # The first evaluation shows a bar, as it may be slow; later bars would hide training's.
            made = embed_records(encoders, self.records, self.cfg, self.left_out, progress=first)
            return made[TRAINED]
        finally:
            set_random_state(state)
            for module, mode in modes:
                module.training = mode

    def _row(self, videos: Sequence[EmbeddedVideo]) -> dict[str, float]:
        fitted, scored = (
            [video for video in videos if video.record.split == name] for name in self.splits
        )
        row = evaluate_embeddings(fitted, scored, self.index.classes)
        return {key: row["metrics"][key] for key in KEYS}
