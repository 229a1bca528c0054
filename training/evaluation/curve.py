"""The metrics of a model while it trains: ``train.evaluate_every``.

The points come from the test split. Whoever picks the number of steps by them picks it on the test
videos, and the figures of that step are then no longer those of unseen videos.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from training.evaluation.baselines import time_index
from training.evaluation.embed import EmbeddedVideo, embed_records
from training.evaluation.encoders import TRAINED, Encoder, feature_store, make_encoder
from training.evaluation.frame_level import evaluate_embeddings, require_labels
from training.evaluation.videos import open_index, split_videos
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord

logger = logging.getLogger(__name__)

# What is kept of CARL's metrics.
KEYS = ("classification", "ap_at_5", "alignment_error_dtw", "event_error", "event_error_dtw")


def step_evaluation(cfg: Any, model: Any) -> Callable[[], dict[str, Any] | None] | None:
    """What `train` calls every ``train.evaluate_every`` steps: see `StepEvaluation`.

    None where that is not given, and, with a warning, where there are no labels to evaluate with.
    """
    if cfg.train.evaluate_every is None:
        return None
    try:
        index = open_index(cfg, None)
        records = []
        for name in (cfg.data.train_split, cfg.data.test_split):
            split = split_videos(index, name)
            require_labels(index, split, name)
            records += [record for record in split if record.phases is not None]
    except UserError as error:
        logger.warning("train.evaluate_every: nothing is evaluated: %s", error)
        return None
    return StepEvaluation(cfg, model, index, records)


class StepEvaluation:
    """The metrics of a model as it is, and those of the time index on the same videos.

    The model is in eval mode meanwhile. Afterwards its modules are in the modes they were in, and
    all random generators in their states: training goes on as if nothing had been.
    """

    def __init__(self, cfg: Any, model: Any, index: Index, records: Sequence[VideoRecord]) -> None:
        self.cfg, self.model, self.index = cfg, model, index
        self.records = list(records)
        self.left_out = LeftOut()  # named once, then not read again
        self._encoder: Encoder | None = None

    def __call__(self) -> dict[str, Any] | None:
        """``{"metrics": {key: value}, "time_index": {key: value}}`` with KEYS, NaN = undefined.

        Classifiers are fitted to the training videos, all else is of the test videos. None, with a
        warning, where the embeddings are not finite or no labelled video can be read.
        """
        try:
            embedded = self._embed()
            self.records = self.left_out.kept(self.records)
            for split in (self.cfg.data.train_split, self.cfg.data.test_split):
                require_labels(self.index, [r for r in self.records if r.split == split], split)
        except UserError as error:
            logger.warning("not evaluated: %s", error)
            return None
        return {"metrics": self._row(embedded), "time_index": self._row(time_index(self.records))}

    def _embed(self) -> list[EmbeddedVideo]:
        from training.runs.checkpoint import random_state, set_random_state

        modes = [(module, module.training) for module in self.model.modules()]
        state = random_state()
        self.model.eval()
        try:
            first = self._encoder is None
            if first:  # only now the model is on its device
                store = feature_store(self.model, self.cfg)
                self._encoder = make_encoder(self.model, store=store)
            encoders = {TRAINED: self._encoder}
            # The first one may take long, and shows how long; later ones would hide the training.
            made = embed_records(encoders, self.records, self.cfg, self.left_out, progress=first)
            return made[TRAINED]
        finally:
            set_random_state(state)
            for module, mode in modes:
                module.training = mode

    def _row(self, videos: Sequence[EmbeddedVideo]) -> dict[str, float]:
        split = {
            name: [video for video in videos if video.record.split == name]
            for name in (self.cfg.data.train_split, self.cfg.data.test_split)
        }
        row = evaluate_embeddings(*split.values(), self.index.classes)
        return {key: row["metrics"][key] for key in KEYS}
