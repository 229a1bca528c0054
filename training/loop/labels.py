"""Classes of frames, for losses that learn from labels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastseq.video import ClipLoader, Item
from fastseq.video.columns import column, take
from training.support.command import UserError
from training.support.files import write_text

if TYPE_CHECKING:
    from training.data.index import VideoRecord

CLASSES = "classes.json"


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


class LabelledLoader(ClipLoader):
    """A `ClipLoader` whose batches also have ``labels``: int64 (N, 2, T), -1 = no class.

    Frames that repeat the last one of a short video have its class; ``valid`` excludes them.
    """

    def __init__(self, *args: Any, classes: FrameClasses, **options: Any) -> None:
        super().__init__(*args, **options)
        self.classes = classes

    def _batch(self, items: list[Item], frames: torch.Tensor) -> dict[str, Any]:
        context = self.items.num_context
        labels = np.stack([self.classes.of_item(item, context) for item in items])
        return super()._batch(items, frames) | {"labels": torch.from_numpy(labels)}


def write_classes(run_dir: Path, names: Sequence[tuple[str, str]]) -> None:
    """Write RUN/classes.json: ``{"classes": [[action, phase], ...]}``, in the order of logits."""
    write_text(run_dir / CLASSES, json.dumps({"classes": [*map(list, names)]}) + "\n")


def check_classes(run_dir: Path, names: Sequence[tuple[str, str]]) -> None:
    """UserError if RUN/classes.json has other classes: the labels changed before a resume."""
    path = run_dir / CLASSES
    if not path.is_file():
        return
    before = [tuple(one) for one in json.loads(path.read_text(encoding="utf-8"))["classes"]]
    if before != list(names):
        raise UserError(
            f"--resume: {run_dir} was trained with the classes {_listed(before)}, and the labels "
            f"now have {_listed(names)}. Restore the labels, or start a new run with "
            f"model.weights={run_dir} model.weights_parts=all"
        )


def _listed(names: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"{action}: {phase}" for action, phase in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
