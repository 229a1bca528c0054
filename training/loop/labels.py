"""Classes of frames and of videos, for losses that learn from labels."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastseq.video import ClipLoader, Item
from fastseq.video.columns import column, take
from fastseq.video.segments import clip_span
from training.data.folders import filters_of, labels_file, listed, prepare
from training.recipe.errors import ConfigError
from training.support.command import UserError, counted
from training.support.files import write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from training.data.index import VideoRecord
    from training.data.selection import Selection

logger = logging.getLogger(__name__)

CLASSES = "classes.json"
NO_ACTION = "all"  # the action of a video whose labels name none


class FrameClasses:
    """The class of each frame of the labelled training videos.

    The classes are the phases of the actions that labelled videos show, numbered from 0, one action
    after the other.

    Args:
        videos: the training videos.
        classes: action -> names of its phases.
        share: the labels of the first int(share * n) of the n labelled videos of each action are
            used, at least one.
        number: the labels of so many videos of each action are used instead; None: by the share.

    Attributes:
        names: (action, phase) of each class.
        videos: the videos whose labels are used, in their order.
    """

    def __init__(
        self,
        videos: Sequence[VideoRecord],
        classes: Mapping[str, Sequence[str]],
        share: float = 1.0,
        number: int | None = None,
    ) -> None:
        by_action: dict[str, list[int]] = defaultdict(list)
        for position in np.flatnonzero(column(videos, "labelled")).tolist():
            video = videos[position]
            if (video.phases >= 0).any():
                by_action[video.action].append(position)
        used: list[int] = []
        for positions in by_action.values():
            count = max(1, int(share * len(positions))) if number is None else number
            used += positions[:count]
        self.videos = take(videos, np.sort(np.array(used, dtype=np.int64)))
        self.names: list[tuple[str, str]] = []
        self._first: dict[str, int] = {}  # number of an action's first class
        for action, phases in classes.items():
            if action in by_action:
                self._first[action] = len(self.names)
                self.names += [(action, phase) for phase in phases]
        self._places = {path: k for k, path in enumerate(column(self.videos, "path").tolist())}

    def of(self, path: str, frames: np.ndarray) -> np.ndarray:
        """int64 of the shape of ``frames``: the classes of a video's frames; -1 = none.

        Args:
            path: path of the video; a video whose labels are not used has no classes.
            frames: int64, frame numbers in the video.
        """
        place = self._places.get(path)
        if place is None:
            return np.full(frames.shape, -1, dtype=np.int64)
        video = self.videos[place]
        phases = video.phases[frames].astype(np.int64)
        return np.where(phases < 0, -1, phases + self._first[video.action])

    def of_item(self, item: Item, context: int = 1) -> np.ndarray:
        """int64 (C, T): the classes of the frames of an item's clips.

        Args:
            context: number of frames that represent one frame, which is the last of them.
        """
        return np.stack(
            [
                self.of(reading.path, clip.frames.reshape(-1, context)[:, -1])
                for reading in item.readings
                for clip in reading.clips
            ]
        )


class ActionClasses:
    """The class of each training video: its action, numbered in alphabetical order.

    Args:
        videos: the training videos.

    Attributes:
        names: (action,) of each class.
        videos: the videos that have an action, in their order.
    """

    def __init__(self, videos: Sequence[VideoRecord]) -> None:
        actions = column(videos, "action")
        self.videos = take(videos, np.flatnonzero(actions != NO_ACTION))
        self.names = [(name,) for name in sorted(set(actions.tolist()) - {NO_ACTION})]
        self._numbers = {name: number for number, (name,) in enumerate(self.names)}

    def of(self, action: str) -> int:
        """The number of an action's class; -1 = no training video has this action."""
        return self._numbers.get(action, -1)

    def of_item(self, item: Item, context: int = 1) -> np.ndarray:
        """int64 (): the class of an item's video."""
        return np.array(self.of(item.action), dtype=np.int64)


class LabelledLoader(ClipLoader):
    """A `ClipLoader` whose batches also have ``labels``, int64, -1 = no class.

    With `FrameClasses` their shape is (N, 2, T); frames that repeat the last one of a short video
    have its class, and ``valid`` excludes them. With `ActionClasses` it is (N,).
    """

    def __init__(self, *args: Any, classes: FrameClasses | ActionClasses, **options: Any) -> None:
        super().__init__(*args, **options)
        self.classes = classes

    def _batch(self, items: list[Item], frames: torch.Tensor) -> dict[str, Any]:
        context = self.items.num_context
        labels = np.stack([self.classes.of_item(item, context) for item in items])
        return super()._batch(items, frames) | {"labels": torch.from_numpy(labels)}


def classes_of(
    cfg: DictConfig, index: Selection, records: Sequence[VideoRecord]
) -> FrameClasses | ActionClasses | None:
    """The classes that the recipe's losses learn, or None if none learns from labels.

    Sets the key ``classes`` of the loss to their number; ConfigError if it has another value, or if
    the training videos do not have the labels that it needs.
    """
    again = f"{labels_file(index)} and run {prepare(index)}"
    if cfg.loss.action.weight:
        section, options = "loss.action", cfg.loss.action
        classes = ActionClasses(records)
        if len(classes.names) < 2:
            one = f" ({classes.names[0][0]})" if classes.names else ""
            filters = ", ".join(
                f"{key}={listed(names)}" for key, names in filters_of(cfg.data).items()
            )
            change = f"change the filter {filters}, or " if filters else ""
            raise ConfigError(
                f"{section}: the {len(records)} videos of the split {cfg.data.train_split!r} have "
                f"{counted(len(classes.names), 'action')}{one}, expected at least 2: {change}"
                f'write "action" for each video in {again}'
            )
        _report_short(cfg.data, classes.videos)
        _report_unseen(cfg.data, index, classes)
    elif cfg.loss.classification.weight:
        section, options = "loss.classification", cfg.loss.classification
        classes = FrameClasses(records, index.classes, options.label_share, options.label_videos)
        if not classes.videos:
            raise ConfigError(
                f"{section}: none of the {len(records)} videos of the split "
                f"{cfg.data.train_split!r} has phase labels, which it learns from: write {again}"
            )
    else:
        return None
    number = len(classes.names)
    if options.classes not in (None, number):
        raise ConfigError(
            f"{section}.classes: got {options.classes}, the labels of the training videos have "
            f"{number} classes; leave the key out"
        )
    options.classes = number
    logger.info(
        "classes: %d, learned from the labels of %d of %d training videos",
        number,
        len(classes.videos),
        len(records),
    )
    return classes


def _report_short(data: DictConfig, videos: Sequence[VideoRecord]) -> None:
    """Warn of videos that are shorter than a clip; ConfigError if all are."""
    span = clip_span(data.tuple_frames, data.tuple_stride)
    short = int((column(videos, "sound") < span).sum())
    if not short:
        return
    what = (
        f"{len(videos)} training videos are shorter than a clip of {span} frames "
        f"(data.tuple_frames={data.tuple_frames} data.tuple_stride={data.tuple_stride})"
    )
    if short == len(videos):
        raise ConfigError(f"all {what}: set smaller values")
    logger.warning("%d of %s: their last frame is repeated", short, what)


def _report_unseen(data: DictConfig, index: Selection, classes: ActionClasses) -> None:
    """Warn of val and test videos whose action is no class."""
    for split in dict.fromkeys((data.val_split, data.test_split)):
        actions = column(index.videos.where(split=split), "action").tolist()
        unseen = [action for action in actions if classes.of(action) < 0]
        if unseen:
            names = sorted({"none" if name == NO_ACTION else name for name in unseen})
            logger.warning(
                "%d of %d %s videos are not scored, because no training video has their action: %s",
                len(unseen),
                len(actions),
                split,
                ", ".join(names[:8]) + f" and {len(names) - 8} more" * (len(names) > 8),
            )


def write_classes(run_dir: Path, names: Sequence[tuple[str, ...]]) -> None:
    """Write RUN/classes.json: ``{"classes": [[action, phase], ...]}``, in the order of logits.

    Classes of videos are ``[action]``.
    """
    write_text(run_dir / CLASSES, json.dumps({"classes": [*map(list, names)]}) + "\n")


def read_classes(run_dir: Path) -> list[tuple[str, ...]] | None:
    """The classes of RUN/classes.json, see `write_classes`; None if there is no such file."""
    path = run_dir / CLASSES
    if not path.is_file():
        return None
    return [tuple(one) for one in json.loads(path.read_text(encoding="utf-8"))["classes"]]


def check_classes(run_dir: Path, names: Sequence[tuple[str, ...]]) -> None:
    """UserError if RUN/classes.json has other classes: the labels changed before a resume."""
    before = read_classes(run_dir)
    if before is not None and before != list(names):
        raise UserError(
            f"--resume: {run_dir} was trained with the classes {_listed(before)}, and the labels "
            f"now have {_listed(names)}. Restore the labels, or start a new run with "
            f"model.weights={run_dir} model.weights_parts=all"
        )


def _listed(names: Sequence[tuple[str, ...]]) -> str:
    shown = ", ".join(": ".join(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
