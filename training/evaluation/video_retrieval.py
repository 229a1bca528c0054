"""The sheet of whole videos: test videos, and the training videos nearest to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluation.retrieval import read_pictures, spread
from training.evaluation.video_ranking import ranked, recalls
from training.support.command import LeftOut, UserError, counted

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.data.selection import Selection
    from training.evaluation.encoders import Encoder
    from training.evaluation.pictures import Tile

NEIGHBOURS = 3  # VCLR Fig. 4a
PLACES = (1 / 6, 1 / 2, 5 / 6)  # places of the frames that stand for a video
TILE = 242  # width of three frames beside each other, in pixels


@dataclass(frozen=True)
class VideoRetrieval:
    """The training videos in the order of their similarity to each test video.

    Attributes:
        queries: the Q test videos.
        candidates: the C training videos.
        order: int64 (Q, C), rows of ``candidates``, nearest first, see `video_ranking.ranked`.
        similarity: float64 (Q, C), cosine similarities in that order.
    """

    queries: Sequence[VideoRecord]
    candidates: Sequence[VideoRecord]
    order: np.ndarray
    similarity: np.ndarray

    @cached_property
    def hits(self) -> np.ndarray:
        """bool (Q, C): whether the k-th nearest training video has the query's action."""
        actions = np.array([record.action for record in self.candidates])
        return actions[self.order] == np.array([[record.action] for record in self.queries])

    @property
    def several_actions(self) -> bool:
        return len({record.action for record in (*self.queries, *self.candidates)}) > 1

    @property
    def recalls(self) -> dict[str, float]:
        """``recall_at_K``, see `video_ranking.recalls`."""
        return recalls(self.hits)

    @property
    def by_action(self) -> dict[str, tuple[float, int]]:
        """Action -> R@1 of its test videos, and their number."""
        places: dict[str, list[int]] = {}
        for row, record in enumerate(self.queries):
            places.setdefault(record.action, []).append(row)
        return {
            action: (float(self.hits[rows, 0].mean()), len(rows))
            for action, rows in sorted(places.items())
        }

    def sentence(self) -> str:
        """R@K in words, or that all videos have one action."""
        train = counted(len(self.candidates), "training video")
        test = counted(len(self.queries), f"{self.queries[0].split} video")
        if not self.several_actions:
            return f"{test} and {train}, all of one action: no R@K"
        values = [
            f"R@{key.removeprefix('recall_at_')} {'-' if np.isnan(value) else f'{value:.3f}'}"
            for key, value in self.recalls.items()
        ]
        return f"{', '.join(values)} ({test}, {train})"


def retrieve_videos(
    encoder: Encoder,
    index: Selection,
    cfg: Any,
    split: str,
    left_out: LeftOut,
    *,
    progress: bool = True,
) -> VideoRetrieval:
    """Rank the training videos for each video of ``split``, by the features of ``--protocol vclr``.

    Raises UserError if ``split`` is the training split, if a split has no readable video, or for
    model.encoder=conv3d. Videos that cannot be read are added to ``left_out``.
    """
    from training.data.folders import place
    from training.evaluation.encoders import TRAINED
    from training.evaluation.video_level import video_features
    from training.evaluation.videos import require_some, split_videos

    if split == cfg.data.train_split:
        raise UserError(
            f"the nearest training videos are searched, so the split {split!r}, which is that of "
            "training, has no queries; choose another --split, or --scope all"
        )
    if cfg.model.encoder == "conv3d":
        raise UserError(
            "got model.encoder=conv3d, which needs neighbouring frames; a video's feature is the "
            "mean of separate frames. Use --scope others or all"
        )
    names = (split, cfg.data.train_split)
    parts = [left_out.kept(split_videos(index, name)) for name in names]
    features = video_features(
        {TRAINED: encoder}, [*parts[0], *parts[1]], cfg, left_out, progress=progress
    )[TRAINED]
    queries, candidates = (left_out.kept(part) for part in parts)
    for name, kept in zip(names, (queries, candidates), strict=True):
        require_some(kept, name, place(index))
    return VideoRetrieval(
        queries, candidates, *ranked(features[: len(queries)], features[len(queries) :])
    )


def choose_video_queries(found: VideoRetrieval, count: int) -> list[int]:
    """Rows of ``count`` queries; always the same: successes first, then failures.

    A success is a query whose nearest training video has its action. Half of the queries, rounded
    up, are successes; where one kind has fewer, the other one has more. Each kind is spread evenly
    over the test videos in the order of their actions.
    """
    actions = [record.action for record in found.queries]
    rows = sorted(range(len(actions)), key=lambda row: (actions[row], row))
    success = [row for row in rows if found.hits[row, 0]]
    failure = [row for row in rows if not found.hits[row, 0]]
    failures = min(count // 2, len(failure))
    successes = min(count - failures, len(success))
    failures = min(count - successes, len(failure))
    kinds = ((success, successes), (failure, failures))
    return [kind[place] for kind, n in kinds for place in spread(len(kind), n)]


def video_sheet(
    found: VideoRetrieval, file: str | Path, *, queries: int = 6, neighbours: int | None = None
) -> int:
    """Write the sheet (VCLR Fig. 4a and 6); returns the number of queries shown.

    neighbours: nearest training videos of each query, default 3.
    """
    from training.evaluation.pictures import contact_sheet

    chosen = choose_video_queries(found, queries)
    count = NEIGHBOURS if neighbours is None else neighbours
    footer = [
        found.sentence(),
        "A video's feature is the mean over its evenly spaced frames (3-D networks: clips), each "
        "cropped to its central square, as in evaluate --protocol vclr; videos are compared by "
        "cosine similarity.",
    ]
    titles: list[str] = []
    if found.several_actions:
        kinds = (
            "failure: the nearest training video shows another action",
            "success: the nearest training video shows the query's action",
        )
        titles = [kinds[int(found.hits[row, 0])] for row in chosen]
        successes = int(found.hits[chosen, 0].sum())
        footer[1] += (
            " R@K: share of the queries with a video of their action among the K nearest training "
            "videos."
        )
        footer.append(
            f"The rows are {successes} success{'es' * (successes != 1)} and "
            f"{counted(len(chosen) - successes, 'failure')}: equally many where the split has "
            "enough of both, whatever their shares in it. Each kind is spread evenly over the "
            "actions."
        )
    contact_sheet(
        [video_tiles(found, row, count) for row in chosen],
        file,
        width=TILE,
        headings=("query video", "nearest training videos"),
        titles=titles,
        footer=footer,
    )
    return len(chosen)


def video_tiles(found: VideoRetrieval, row: int, count: int) -> list[Tile]:
    """The tiles of a query and its nearest training videos, three frames of each.

    The border is green for the query's action and red for another one; grey if all have one action.
    """
    from training.evaluation.pictures import NEUTRAL, OTHER, SAME, Tile

    query = found.queries[row]
    named = found.several_actions

    def tile(record: VideoRecord, similarity: float | None = None) -> Tile:
        name, border = record.action, NEUTRAL
        if named and similarity is not None:
            same = record.action == query.action
            border, name = (SAME, f"✓ {name}") if same else (OTHER, f"✗ {name}")
        score = [] if similarity is None else [f"cosine {similarity:.3f}"]
        return Tile(three_frames(record), [record.id, *([name] if named else ()), *score], border)

    nearest = found.order[row, :count]
    return [
        tile(query),
        *(
            tile(found.candidates[place], float(similarity))
            for place, similarity in zip(nearest, found.similarity[row], strict=False)
        ),
    ]


def three_frames(record: VideoRecord, gap: int = 6) -> np.ndarray:
    """uint8 (H, W, 3): frames at 1/6, 1/2 and 5/6 of the video, with white between them."""
    from fastseq.video.gaps import frames_of

    sound = frames_of(record)
    pictures = read_pictures(record, [int(sound[int(place * len(sound))]) for place in PLACES])
    white = np.full((pictures[0].shape[0], gap, 3), 255, dtype=np.uint8)
    return np.hstack([part for picture in pictures for part in (white, picture)][1:])
