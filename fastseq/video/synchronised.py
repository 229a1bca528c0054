"""Clips of two synchronised videos, which show the same instants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from fastseq.video.columns import chosen, special, values_of
from fastseq.video.gaps import frames_of
from fastseq.video.items import ClipItems, Item, Video

_LEAST = 2  # common instants: with a single one there is no time to compare


class SynchronisedViews(ClipItems):
    """A video and another one of its group, which shows the same event: see `ClipItems`.

    Videos have a `sync`, see `Video`. The other video is drawn again each epoch; there are as many
    items as videos. Both clips are drawn from the two videos' common time, as if it were one video:
    the instants of the first video's frames for which the other video has a frame too, the nearest
    one if their rates differ. Clip 0 shows the first video, clip 1 the other. Context frames
    (`num_context`) come from the same video.

    `steps` are true times: instants in frames of the first video since the beginning of the group,
    in both clips. Frames of equal steps show the same instant. `fps` is the first video's rate and
    `num_frames` the length of the common time, for both.

    Attributes:
        left_out: (id, reason) of videos without another one of their group, or without two instants
            in common with any.

    Raises:
        ValueError: an option out of its range, or no two videos have common time.

    Example:
        >>> from fastseq.video import Augmentation, SynchronisedViews, VideoInfo
        >>> size = {"width": 640, "height": 360, "rotation": 0, "codec": "h264"}
        >>> left = VideoInfo("left.mp4", 300, fps=60.0, sync=("trial 1", 0), **size)
        >>> right = VideoInfo("right.mp4", 150, fps=30.0, sync=("trial 1", 6), **size)
        >>> items = SynchronisedViews([left, right], 32, Augmentation(size=48))
        >>> item = items.item(seed=0, epoch=0, index=0)
        >>> item.id, item.steps.shape, item.num_frames.tolist()
        ('left.mp4 with right.mp4', (2, 32), [289, 289])
    """

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        groups: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for position, video in special(videos):
            if getattr(video, "sync", None) is not None:
                groups[video.sync[0]].append((position, video))
        partners: dict[int, list[int]] = defaultdict(list)
        for members in groups.values():
            for (one, first), (other, second) in permutations(members, 2):
                if first.path != second.path and len(_common(first, second)[0]) >= _LEAST:
                    partners[one].append(other)
        kept = np.zeros(len(videos), dtype=bool)
        kept[[*partners]] = True
        group_of = {place: name for name, group in groups.items() for place, _ in group}
        sizes = {name: len(group) for name, group in groups.items()}
        self.left_out = [
            (name, _reason(group_of.get(place), sizes))
            for place, (name,) in zip(
                np.flatnonzero(~kept).tolist(), values_of(videos, ~kept, "id"), strict=True
            )
        ]
        if not partners:
            reasons = "; ".join(f"{name} {reason}" for name, reason in self.left_out[:3])
            raise ValueError(
                f"no synchronised videos to train on among {len(videos)} ({reasons}): set the "
                'same group in labels.json for those of one event, as "sync": {"group": "trial 1", '
                '"offset": 0}'
            )
        new = np.cumsum(kept) - 1  # position among the kept videos
        self._partners = [new[partners[position]] for position in sorted(partners)]
        return chosen(videos, kept)

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item | None:
        partners = np.setdiff1d(self._partners[position], out, assume_unique=True)
        if not len(partners):
            return None
        first = self.videos[position]
        other = self.videos[int(partners[generator.integers(len(partners))])]
        instants, *frames = _common(first, other)
        places, valid = self._draw(len(instants), generator)
        readings = []
        for video, shown, clip in zip((first, other), frames, places, strict=True):
            sound = frames_of(video)
            clips = np.searchsorted(sound, shown[clip])[None]
            readings.append(self._reading(video, sound, clips, generator))
        length = int(instants[-1] - instants[0]) + 1
        return Item(
            f"{first.id} with {other.id}",
            first.action,
            tuple(readings),
            instants[places],
            valid,
            np.array([length] * 2),
            np.array([first.fps] * 2, dtype=np.float64),
        )


def _common(first: Any, other: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 (n,), ascending: instants in frames of `first` since the group's beginning, and the
    frames of `first` and of `other` that show them, all sound."""
    frames, sound = frames_of(first), frames_of(other)
    instants = frames + first.sync[1]
    # The nearest frame; of two equally near ones always the later one.
    shown = np.floor(instants * (other.fps / first.fps) - other.sync[1] + 0.5).astype(np.int64)
    both = np.isin(shown, sound)
    return instants[both], frames[both], shown[both]


def _reason(group: str | None, sizes: dict[str, int]) -> str:
    """Why a video of this group has no partner."""
    if group is None:
        return "has no sync, synchronised clips need one"
    if sizes[group] == 1:
        return f"is the only video of the group {group!r}, synchronised clips need two"
    return (
        f"has fewer than {_LEAST} instants in common with each other video of the group {group!r}; "
        "check the offsets"
    )
