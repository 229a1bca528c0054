"""Per-frame embeddings of whole videos: computing, saving and reading them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.support.command import LeftOut, UserError
from training.support.files import replacing

if TYPE_CHECKING:
    import torch

    from training.data.index import VideoRecord


@dataclass(frozen=True)
class EmbeddedVideo:
    """A video and one unit-length embedding for each of its sound frames.

    ``embeddings`` is float32 of shape (n, E), in presentation order, L2-normalised per frame. Row i
    is of the frame with the number ``frames[i]``; without gaps these are all frames, n = frames.
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
    encoders: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> dict[str, list[EmbeddedVideo]]:
    """Embed every frame of every video with every encoder: see `embed_each`.

    The result has the keys of ``encoders``, each with one :class:`EmbeddedVideo` per record that
    was not left out, in the order of ``records``.
    """
    out: dict[str, list[EmbeddedVideo]] = {name: [] for name in encoders}
    for videos in embed_each(encoders, records, cfg, left_out, progress=progress):
        for name, video in videos.items():
            out[name].append(video)
    return out


def embed_each(
    encoders: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    records: Sequence[VideoRecord],
    cfg: Any,
    left_out: LeftOut | None = None,
    *,
    progress: bool = True,
) -> Iterator[dict[str, EmbeddedVideo]]:
    """For each video its embeddings by each encoder, one whole video at a time.

    A video is decoded once and shown to all encoders. One that cannot be read goes to ``left_out``;
    without that its VideoError is raised. An encoder maps uint8 (1, T, 3, S, S) to
    (1, T, E), see :func:`training.evaluation.encoders.make_encoder`.

    Raises ValueError when an encoder gives a wrong number of frames, and UserError (a ValueError)
    when it gives a NaN or an infinity.
    """
    from tqdm import tqdm

    from training.data.dataset import load_videos, open_evaluation_engine

    engine = open_evaluation_engine(records, cfg)
    read = load_videos(records, cfg.augmentation.size, cfg.data.cache_side, engine=engine)
    total = sum(record.frames for record in records)
    with tqdm(total=total, unit="frame", desc="embedding", disable=not progress) as bar:
        for record, frames in zip(records, read, strict=True):
            if isinstance(frames, Exception):
                if left_out is None:
                    raise frames
                left_out.add(record.id, frames.reason)
                bar.set_postfix(left_out=len(left_out.videos), refresh=False)
                bar.update(record.frames)
                continue
            made = {}
            for name, encode in encoders.items():
                embeddings = _unit_length(encode(frames[None])[0], name, record.id)
                if len(embeddings) != len(frames):
                    raise ValueError(
                        f"encoder {name!r} gave {len(embeddings)} embeddings for the {len(frames)} "
                        f"frames of {record.id}; one per frame was expected"
                    )
                made[name] = EmbeddedVideo(record, embeddings)
            bar.update(record.frames)
            yield made
    engine.close()


def _unit_length(embeddings: torch.Tensor, encoder: str, video: str) -> np.ndarray:
    import torch

    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=-1)
    if not torch.isfinite(unit).all():
        raise UserError(
            f"encoder {encoder!r} gave NaN or infinite embeddings for {video}: the training has "
            "probably diverged; look at the loss in log.jsonl and use an earlier checkpoint"
        )
    return unit.cpu().numpy()


def save_embeddings(path: Path, video: EmbeddedVideo, weights: str) -> None:
    """Write one video's npz, atomically.

    Arrays: ``embeddings`` float32 (n, E); ``frames`` int64 (n,), the frames' numbers in the video,
    all of them unless it is damaged; ``phases`` int64 (n,), -1 = unlabelled, absent when the video
    has no labels; ``id``, ``action``, ``split``, ``weights`` (what made them)
    strings; ``fps`` float.
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
            weights=weights,
            **labels,
        )


def has_embeddings(path: Path, record: VideoRecord, weights: str) -> bool:
    """Whether a file holds what `save_embeddings` would write for this video and these weights."""
    try:
        found = load_embeddings(path)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    wanted = EmbeddedVideo(record, found["embeddings"])
    phases = found.get("phases")
    labelled = phases is not None if record.phases is None else phases is None
    rows = np.arange(len(found["embeddings"]))  # of files without "frames", of an earlier version
    return (
        found.get("weights") == weights
        and len(rows) == len(wanted.frames)
        and np.array_equal(found.get("frames", rows), wanted.frames)
        and not labelled
        and (phases is None or np.array_equal(phases, wanted.phases))
        and [found["action"], found["split"]] == [record.action, record.split]
    )


def load_embeddings(path: str | Path) -> dict[str, Any]:
    """Read one file written by :func:`save_embeddings`; strings and fps come back as scalars."""
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key].item() if data[key].ndim == 0 else data[key] for key in data.files}
