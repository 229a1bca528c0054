"""Which clips make a training item: drawn from (seed, epoch, index) alone; no file is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from fastseq.video.arguments import as_int, as_videos
from fastseq.video.augment import Augmentation, check_augmentation, draw_clip
from fastseq.video.columns import chosen, column, having, numbered, values_of
from fastseq.video.gaps import frames_of
from fastseq.video.readings import Clip, Reading, area_of, reading_of
from fastseq.video.sampling import VIEW_SAMPLING, context_frames, sample_clip, sample_views


class Video(Protocol):
    """The properties of a video that items need; `fastseq.video.VideoInfo` has them.

    Optional attributes, None or missing otherwise:

    - `gaps`: ranges (first, stop) of frames that are damaged or not to be used: no item requests
      them.
    - `crop`: (left, top, width, height) in pixels of the upright frame, a box; nothing outside it
      is read. Crops are drawn as in a video that shows the box alone.
    - `sync`: (group, offset) for `SynchronisedViews`: frame k shows the instant (k + offset) / fps
      seconds of the group.
    - `times`: float64 (frames,), seconds since the first frame at which each frame is shown.
      Without it frame k is shown at k / fps.
    """

    id: str
    path: str
    frames: int
    fps: float
    width: int
    height: int
    action: str


@dataclass(frozen=True, eq=False)
class Item:
    """C clips of T frames each: two of one video or of two, those of `SegmentClips` or
    `ConsecutiveBlocks`, or the tuples of `SegmentTuples`.

    Attributes:
        id: name of the video, or of both.
        action: the action that they show.
        readings: one with all C clips, or two with one clip each.
        steps: int64 (C, T), the frames' numbers in their video; instants for `SynchronisedViews`.
        valid: bool (C, T), False where a video is too short and its last frame is repeated.
        num_frames: int64 (C,), the videos' lengths in frames, or that of their common time.
        fps: float64 (C,), the videos' average frame rates.
        times: float64 (C, T), seconds since the video's first frame at which a player shows the
            frames. None becomes `steps` / `fps`, the instants of a constant frame rate.
    """

    id: str
    action: str
    readings: tuple[Reading, ...]
    steps: np.ndarray
    valid: np.ndarray
    num_frames: np.ndarray
    fps: np.ndarray
    times: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.times is None:
            object.__setattr__(self, "times", self.steps / self.fps[:, None])


def part_of(item: Item, part: int, parts: int) -> Item:
    """Part ``part`` of an item's clips, which are divided into so many equal parts along T."""
    length = item.steps.shape[1]
    mine = slice(part * length // parts, (part + 1) * length // parts)

    def cut(clip: Clip) -> Clip:  # with its context frames
        return replace(clip, frames=clip.frames.reshape(length, -1)[mine].reshape(-1))

    readings = (
        replace(reading, clips=tuple(cut(clip) for clip in reading.clips))
        for reading in item.readings
    )
    return replace(
        item,
        readings=tuple(readings),
        steps=item.steps[:, mine],
        valid=item.valid[:, mine],
        times=None if item.times is None else item.times[:, mine],
    )


def decode_side(size: int, side: int | None = None) -> int:
    """Short side of the scaled frame in whose pixels crops are drawn, see `Reading`.

    Default 8/7 of the network's input, the usual 256 for 224.
    """
    return round(size * 8 / 7) if side is None else side


class Items:
    """Base of the item types: `TwoViews`, `VideoPairs`, `SynchronisedViews`, `SegmentTuples`,
    `SegmentClips`, `ConsecutiveBlocks`.

    Item i of epoch e depends on (seed, e, i) alone, whichever engine reads it. A video that is
    skipped is replaced by the next one in order. Frames are drawn among the sound ones of a video,
    by their places: two frames on either side of a gap are neighbours, but their `steps` are not.

    Args:
        videos: the videos to draw from, see `Video`; a list, or a lazy sequence as
            in `fastseq.video.columns`, which makes only the videos of an item.
        augmentation: augmentation of each clip.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.

    Attributes:
        left_out: (id, reason) of videos that no item is made of.
        num_context: number of frames that represent one frame, itself included.
    """

    num_context = 1

    def __init__(self, videos: Sequence[Video], augmentation: Augmentation, side: int | None):
        videos = as_videos(videos)
        check_augmentation(augmentation, "augmentation")
        if not len(videos):
            raise ValueError("no videos to train on: the split is empty")
        self.augmentation = augmentation
        self.side = as_int("side", decode_side(augmentation.size, side), 1)
        self.left_out: list[tuple[str, str]] = []
        self._bad: tuple[frozenset[str], np.ndarray] = (frozenset(), np.zeros(0, dtype=np.int64))
        sound = column(videos, "sound")
        if not sound.any():
            raise ValueError(f"none of the {len(videos)} videos has a sound frame")
        self.videos = self._usable(chosen(videos, sound > 0))
        self.left_out += [
            (name, f"none of its {frames} frames is sound")
            for name, frames in values_of(videos, sound == 0, "id", "frames")
        ]

    def __len__(self) -> int:
        return len(self.videos)

    def item(
        self,
        seed: int,
        epoch: int,
        index: int,
        bad: Collection[str] = frozenset(),
        repeat: int = 0,
    ) -> Item | None:
        """Item `index` of an epoch; None if nothing is left.

        Args:
            bad: paths of the videos to leave out.
            repeat: how often the epoch had this item before; each time it is drawn anew.
        """
        out = self._positions(bad)
        for step in range(len(self.videos)):
            position = (index + step) % len(self.videos)
            if len(out) and out[np.searchsorted(out, position) % len(out)] == position:
                continue
            generator = np.random.default_rng([seed, epoch, index, *[repeat] * (repeat > 0)])
            item = self._item(position, generator, out)
            if item is not None:
                return item
        return None

    def _positions(self, bad: Collection[str]) -> np.ndarray:
        """int64, ascending: the positions of these paths; searched once, until others are bad."""
        if not bad:
            return np.zeros(0, dtype=np.int64)
        paths = frozenset(bad)
        known, positions = self._bad
        if known != paths:
            positions = np.flatnonzero(having(self.videos, "path", paths))
            self._bad = paths, positions
        return positions

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        """The videos that items are made of; sets `left_out`."""
        return videos

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item | None:
        """The item of the video at a position; `out`: ascending positions to leave out."""
        raise NotImplementedError


def times_of(video: Video, frames: np.ndarray) -> np.ndarray:
    """float64: the seconds at which a video shows these frames."""
    times = getattr(video, "times", None)
    return frames / video.fps if times is None else times[frames]


class ClipItems(Items):
    """Items of two clips, sampled in time and augmented independently.

    `TwoViews`, `VideoPairs` and `SynchronisedViews` are such items.

    Args:
        videos: the videos to draw from, see `Video`.
        num_frames: T, frames per clip.
        augmentation: augmentation of each clip, its context frames included.
        sampling: "random" or "even" within a crop of the video, or "speeds" (`sample_views`);
            "segment", "offset_uniform" or "anchors" over the whole video (`sample_clip`).
        crop_base, alpha, beta, span: options of the crop, see `sample_views`.
        positive_window: number of frames, for "anchors".
        num_context, context_stride: C frames represent each frame: itself and C - 1 earlier ones,
            `context_stride` frames apart.
        side: short side of the frame in whose pixels crops are drawn, see `decode_side`.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        num_frames: int,
        augmentation: Augmentation,
        *,
        sampling: str = "random",
        crop_base: str = "clip",
        alpha: float = 1.5,
        beta: float = 0.2,
        span: tuple[float, float] = (0.3, 1.0),
        positive_window: int = 5,
        num_context: int = 1,
        context_stride: int = 15,
        side: int | None = None,
    ):
        super().__init__(videos, augmentation, side)
        if not augmentation.per_clip:
            raise ValueError(
                "per_clip must be true for clips of several frames: their frames share one draw"
            )
        self.num_frames = as_int("num_frames", num_frames, 1)
        self.sampling = sampling
        self.crop_options: dict[str, Any] = {
            "crop_base": crop_base,
            "alpha": alpha,
            "beta": beta,
            "span": span,
        }
        self.positive_window = as_int("positive_window", positive_window, 1)
        self.num_context = as_int("num_context", num_context, 1)
        self.context_stride = as_int("context_stride", context_stride, 0)
        self._draw(1, np.random.default_rng(0))  # wrong options raise here, not in a worker

    def _draw(
        self, num_frames: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places and validity (2, T) of two clips of one video with so many sound frames."""
        if self.sampling in VIEW_SAMPLING:
            return sample_views(
                num_frames,
                self.num_frames,
                generator,
                strategy=self.sampling,
                **self.crop_options,
            )
        clips = [
            sample_clip(
                num_frames,
                self.num_frames,
                generator,
                strategy=self.sampling,
                positive_window=self.positive_window,
            )
            for _ in range(2)
        ]
        steps, valid = zip(*clips, strict=True)
        return np.stack(steps), np.stack(valid)

    def _reading(
        self,
        video: Video,
        sound: np.ndarray,
        clips: np.ndarray,
        generator: np.random.Generator,
    ) -> Reading:
        """The reading of clips, which are (clips, T) places among the `sound` frames."""
        area = area_of(video, self.side)
        made = []
        for places in clips:
            with_context = context_frames(places, self.num_context, self.context_stride)
            draw = draw_clip(area.height, area.width, self.augmentation, generator)
            made.append(Clip(sound[with_context.reshape(-1)], draw))
        return reading_of(video, self.side, made)


class TwoViews(ClipItems):
    """Two views of one video (CARL): see `ClipItems`."""

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item:
        video = self.videos[position]
        sound = frames_of(video)
        places, valid = self._draw(len(sound), generator)
        reading = self._reading(video, sound, places, generator)
        steps = sound[places]
        return Item(
            video.id,
            video.action,
            (reading,),
            steps,
            valid,
            np.array([video.frames] * 2),
            np.array([video.fps] * 2, dtype=np.float64),
            times_of(video, steps),
        )


class VideoPairs(ClipItems):
    """A video and another one of the same action, drawn again each epoch (LAV): see `ClipItems`.

    Videos have an `action`. There are as many items as videos. A video that is the only one of its
    action is left out.
    """

    def _usable(self, videos: Sequence[Video]) -> Sequence[Video]:
        numbers = numbered(column(videos, "action"))
        kept = (np.bincount(numbers) > 1)[numbers]
        self.left_out = [
            (name, f"the only video of action {action!r}, pairs need two")
            for name, action in values_of(videos, ~kept, "id", "action")
        ]
        if not kept.any():
            raise ValueError(
                f"no pairs to train on: each of the {len(videos)} videos is the only one of its "
                'action; set the same "action" in labels.json, or none'
            )
        self._actions = numbers[kept]
        self._by_action = np.argsort(self._actions, kind="stable")
        self._edges = np.concatenate([[0], np.cumsum(np.bincount(self._actions))])
        return chosen(videos, kept)

    def _item(self, position: int, generator: np.random.Generator, out: np.ndarray) -> Item | None:
        action = self._actions[position]
        members = self._by_action[self._edges[action] : self._edges[action + 1]]  # ascending
        gone = _places(members, np.union1d(out, [position]))
        if len(gone) == len(members):
            return None
        # The number drawn counts the other members: each place that is gone moves it by one.
        drawn = generator.integers(len(members) - len(gone))
        drawn += np.searchsorted(gone - np.arange(len(gone)), drawn, side="right")
        first, other = self.videos[position], self.videos[int(members[drawn])]
        readings, steps, valid, times = [], [], [], []
        for video in (first, other):
            sound = frames_of(video)
            places, real = self._draw(len(sound), generator)
            readings.append(self._reading(video, sound, places[:1], generator))
            steps.append(sound[places[0]])
            valid.append(real[0])
            times.append(times_of(video, steps[-1]))
        return Item(
            f"{first.id} with {other.id}",
            first.action,
            tuple(readings),
            np.stack(steps),
            np.stack(valid),
            np.array([first.frames, other.frames]),
            np.array([first.fps, other.fps], dtype=np.float64),
            np.stack(times),
        )


def _places(members: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of those `wanted` that are among the `members`; all ascending."""
    places = np.searchsorted(members, wanted)
    places = np.minimum(places, len(members) - 1)
    return places[members[places] == wanted]
