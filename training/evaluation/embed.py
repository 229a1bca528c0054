"""Per-frame embeddings of whole videos: computing, saving and reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.support.command import LeftOut, UserError
from training.support.files import read_npz, replacing

if TYPE_CHECKING:
    import torch

    from fastseq.video import VideoError
    from training.data.features import FeatureStore
    from training.data.index import VideoRecord
    from training.evaluation.encoders import Encoder


@dataclass(frozen=True)
class EmbeddedVideo:
    """A video and one unit-length embedding for each of its sound frames.

    ``embeddings`` is float32 of shape (n, E), in presentation order, L2-normalised per frame. Row i
    belongs to frame number ``frames[i]`` of the video; without gaps these are all its frames.
    """

    record: VideoRecord
    embeddings: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """int64 (n,): the frames' numbers in the video."""
        from fastseq.video.gaps import frames_of

        return frames_of(self.record)

    @property
    def phases(self) -> np.ndarray | None:
        """int64 (n,): the frames' phases, -1 = unlabelled; None if the video has no labels."""
        phases = self.record.phases
        if phases is None:
            return None
        if len(phases) != self.record.frames:
            raise UserError(
                f"{self.record.id} has {len(phases)} phase labels and {self.record.frames} frames; "
                "write the index again with `python -m training.prepare`"
            )
        return phases[self.frames]


def embed_records(
    encoders: Mapping[str, Encoder],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> dict[str, list[EmbeddedVideo]]:
    """Embed every frame of every video with every encoder, see `embed_each`.

    The result maps the keys of ``encoders`` to a list with one :class:`EmbeddedVideo` for each
    record that was not left out, in the order of ``records``.
    """
    out: dict[str, list[EmbeddedVideo]] = {name: [] for name in encoders}
    for videos in embed_each(encoders, records, cfg, left_out, progress=progress):
        for name, video in videos.items():
            out[name].append(video)
    return out


def embed_each(
    encoders: Mapping[str, Encoder],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> Iterator[dict[str, EmbeddedVideo]]:
    """Yield the embeddings of each video by each encoder, one whole video at a time.

    `features_each` reads the videos; errors are those of `features_each` and `embed_features`.
    """
    for record, taken in features_each(encoders, records, cfg, left_out, progress=progress):
        yield {
            name: EmbeddedVideo(record, embed_features(encoder, taken[name], name, record.id))
            for name, encoder in encoders.items()
        }


def features_each(
    encoders: Mapping[str, Encoder],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
    what: str = "embedding",
) -> Iterator[tuple[VideoRecord, dict[str, torch.Tensor]]]:
    """Yield the input of each encoder's ``embed`` for each video, one whole video at a time.

    The input is features (1, T, F) or, for an encoder without ``features``, the uint8 frames
    (1, T, 3, S, S), which all such encoders share. A video is decoded once, and each function
    ``features`` runs once on it. If an encoder's store covers a video, missing features are first
    computed into the store, and the video is not decoded again.

    ``what`` stands before the bar. A video that cannot be read is added to ``left_out``; without
    ``left_out`` its VideoError is raised.
    """
    from tqdm import tqdm

    from training.data.dataset import load_videos, open_evaluation_engine

    failed = _fill_stores(encoders.values(), records, progress)

    def stored(encoder: Encoder, record: VideoRecord) -> bool:
        return encoder.store is not None and encoder.store.covers(record)

    def decoded(record: VideoRecord) -> bool:
        return record.path not in failed and not all(stored(e, record) for e in encoders.values())

    to_read = [record for record in records if decoded(record)]
    engine = open_evaluation_engine(to_read, cfg)
    read = load_videos(to_read, cfg.augmentation.size, cfg.data.cache_side, engine=engine)
    total = sum(record.frames for record in records)
    with tqdm(total=total, unit="frame", desc=what, disable=not progress) as bar:
        for record in records:
            frames = next(read) if decoded(record) else failed.get(record.path)
            if isinstance(frames, Exception):
                if left_out is None:
                    raise frames
                left_out.add(record.id, frames.reason)
                bar.set_postfix(left_out=len(left_out.videos), refresh=False)
                bar.update(record.frames)
                continue
            made: dict[Any, torch.Tensor] = {None: frames if frames is None else frames[None]}
            taken = {}
            for name, encoder in encoders.items():
                if encoder.features not in made:
                    made[encoder.features] = (
                        _from_store(encoder.store, record)
                        if stored(encoder, record)
                        else encoder.features(made[None])
                    )
                taken[name] = made[encoder.features]
            yield record, taken
            bar.update(record.frames)
    engine.close()


def _fill_stores(
    encoders: Iterable[Encoder], records: Sequence[VideoRecord], progress: bool
) -> dict[str, VideoError]:
    """Fill the stores; returns path -> error of the videos that cannot be read."""
    failed = {}
    for store in {id(e.store): e.store for e in encoders if e.store is not None}.values():
        covered = [record for record in records if store.covers(record)]
        for error in store.fill(covered, progress=progress):
            failed[error.path] = error
    return failed


def _from_store(store: FeatureStore, record: VideoRecord) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(store.get(record)))[None]


def embed_features(
    encoder: Encoder, features: torch.Tensor, name: str, video_id: str
) -> np.ndarray:
    """Convert the result of `features_each` for a video to float32 (T, E) of unit length.

    Raises ValueError if the encoder returns a wrong number of frames, and UserError (a ValueError)
    if it returns NaN or infinity.
    """
    embeddings = _unit_length(encoder.embed(features)[0], name, video_id)
    if len(embeddings) != features.shape[1]:
        raise ValueError(
            f"encoder {name!r} returned {len(embeddings)} embeddings for the {features.shape[1]} "
            f"frames of {video_id}; expected one per frame"
        )
    return embeddings


def _unit_length(embeddings: torch.Tensor, encoder: str, video: str) -> np.ndarray:
    import torch

    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=-1)
    if not torch.isfinite(unit).all():
        raise UserError(
            f"encoder {encoder!r} returned NaN or infinite embeddings for {video}: the training "
            "has probably diverged; check the loss in log.jsonl and use an earlier checkpoint"
        )
    return unit.cpu().numpy()


def save_embeddings(path: Path, video: EmbeddedVideo, weights: str) -> None:
    """Write one video's npz, atomically.

    Arrays: ``embeddings`` float32 (n, E); ``frames`` int64 (n,), the frame numbers in the video,
    all of them unless it is damaged; ``phases`` int64 (n,), -1 = unlabelled, absent if the video
    has no labels; ``crop`` int64 (4,), or (0,) without one; ``id``, ``action``, ``split`` and
    ``weights`` (identifier of the weights) strings; ``fps`` float.
    """
    record = video.record
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = {} if record.phases is None else {"phases": video.phases}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            embeddings=video.embeddings,
            frames=video.frames,
            id=record.id,
            action=record.action,
            split=record.split,
            fps=record.fps,
            crop=np.array(record.crop or (), dtype=np.int64),
            weights=weights,
            **labels,
        )


def has_embeddings(path: Path, record: VideoRecord, weights: str) -> bool:
    """Whether a file has the content that `save_embeddings` would write for video and weights."""
    try:
        found = load_embeddings(path)
    except (OSError, ValueError):
        return False
    wanted = EmbeddedVideo(record, found["embeddings"])
    phases = found.get("phases")
    labelled = phases is not None if record.phases is None else phases is None
    rows = np.arange(len(found["embeddings"]))  # for files of an earlier version, without "frames"
    return (
        found.get("weights") == weights
        and tuple(found.get("crop", ())) == (record.crop or ())
        and len(rows) == len(wanted.frames)
        and np.array_equal(found.get("frames", rows), wanted.frames)
        and not labelled
        and (phases is None or np.array_equal(phases, wanted.phases))
        and [found["action"], found["split"]] == [record.action, record.split]
    )


def load_embeddings(path: str | Path) -> dict[str, Any]:
    """Read one file written by :func:`save_embeddings`; strings and fps are returned as scalars."""
    found = read_npz(Path(path))
    return {key: value.item() if value.ndim == 0 else value for key, value in found.items()}
