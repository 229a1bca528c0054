"""Features of a frozen backbone, computed once for each video and kept on disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastseq.video import (
    Augmentation,
    Clip,
    Reading,
    VideoError,
    decode_side,
    eval_draw,
)
from fastseq.video.augment import ClipDraw, draw_clip
from fastseq.video.engines.choose import dali_version
from fastseq.video.gaps import frames_of
from fastseq.video.readings import Source
from fastseq.video.source import file_of
from training.data.dataset import load_videos, open_evaluation_engine
from training.data.files import stamp_of
from training.data.index import VideoRecord
from training.support.command import UserError
from training.support.files import replacing, write_json

FOLDER_NAME = ".fastseq_features"  # hidden, so that the index ignores it
_FORMAT = 1  # raise it when the same video and weights yield other features
_STAMP = re.compile(r"[0-9a-f]{16}\.npy")
_ELSEWHERE = (
    "If features cannot be stored there, train with data.cache=none; evaluate a writable copy of "
    "the folder, with --folder"
)
_SPARE = 2**26  # bytes to leave free on the disk


class FeatureStore:
    """Features of the videos of folders, in FOLDER/.fastseq_features: float32 (n, F) per video.

    A file KEY/ID.STAMP.npy has one row for each of the n sound frames of a video. KEY is a digest
    of everything but the video that the features depend on: the backbone and its weights, the frame
    size, the decoder and the version of the format. STAMP is a digest of the file's size and time
    of modification, and of the frames and the crop that are used: if a video has changed, its
    features are computed again. Files are written whole, so an interrupted `fill` can continue and
    several processes may fill one store.

    Draw 0 is the evaluation transform. Draws 1, 2, ... are augmented: one `ClipDraw` for the whole
    video, a function of (``train.seed``, draw, video's id) and the augmentation.

    Each video's features lie in its own folder, under its id there, so a run on several folders
    and runs on one of them share them.

    Args:
        folder: prepared folder of the videos, or the folders of a run in their order.
        encoder: the encoder whose ``features`` are stored; they are computed in fp32 on its device.
        cfg: the run's configuration.
    """

    def __init__(self, folder: Path | Sequence[Path], encoder: Any, cfg: Any) -> None:
        folders = [folder] if isinstance(folder, str | Path) else folder
        self.folders = [Path(one).resolve() for one in folders]
        self.encoder, self.cfg = encoder, cfg
        values = {f.name: getattr(cfg.augmentation, f.name) for f in fields(Augmentation)}
        self.augmentation = Augmentation(
            **{k: v if isinstance(v, bool | int | float) else tuple(v) for k, v in values.items()}
        )
        self._made_by = _description(encoder.backbone, cfg)
        self._keys: dict[int, str] = {}

    @property
    def device(self) -> torch.device:
        """The encoder's device."""
        return self.encoder.pixel_scale.device  # a backbone may have no parameters

    @property
    def size(self) -> int:
        """F, the number of features of a frame."""
        return self.encoder.backbone.out_features

    def covers(self, record: VideoRecord) -> bool:
        """Whether a video lies in its folder under its id there."""
        folder, name = self._home(record)
        file, own = file_of(record.path), folder / name
        # A video in a tar file or of some pictures of a folder: the one lies in the other.
        return file == own or file in own.parents or own in file.parents

    def get(self, record: VideoRecord, draw: int = 0) -> np.ndarray:
        """Float32 (n sound frames, F), memory-mapped; KeyError if it is not stored."""
        try:
            return self.load(self.path(record, draw), len(frames_of(record)))
        except (OSError, ValueError) as error:
            raise KeyError(f"{record.id}, draw {draw}: {error}") from error

    def fill(
        self, records: Sequence[VideoRecord], draws: Iterable[int] = (0,), *, progress: bool = True
    ) -> list[VideoError]:
        """Compute the missing features of these videos; returns the errors of unreadable videos.

        Prints the disk space beforehand. Raises UserError if space or permission is missing.
        """
        missing = {
            draw: [record for record in records if not self._has(record, draw)] for draw in draws
        }
        total = sum(record.frames for todo in missing.values() for record in todo)
        if not total:
            return []
        frames: Counter[Path] = Counter()
        for record in (record for todo in missing.values() for record in todo):
            frames[self._home(record)[0]] += record.frames
        for folder, count in frames.items():
            self._check_room(folder, count, progress)
        failed: dict[str, VideoError] = {}
        bar = tqdm(total=total, unit="frame", desc="features", disable=not progress)
        with bar:
            for draw, todo in missing.items():
                readable = [record for record in todo if record.path not in failed]
                bar.update(sum(record.frames for record in todo if record.path in failed))
                # Before decoding: features of a video that is replaced meanwhile are no longer its.
                paths = {}
                for record in readable:
                    with suppress(OSError):
                        paths[record.path] = self.path(record, draw)
                for record, made in self._compute(readable, draw):
                    if isinstance(made, VideoError):
                        failed[record.path] = made
                    else:
                        self._write(record, draw, made, paths.get(record.path))
                    bar.update(record.frames)
        return [*failed.values()]

    def path(self, record: VideoRecord, draw: int = 0) -> Path:
        """The path of a video's features, which need not exist yet.

        Raises OSError if the video no longer exists.
        """
        folder, name = self._home(record)
        return self._folder(folder, draw) / f"{name}.{video_stamp(record)}.npy"

    def load(self, path: Path, frames: int) -> np.ndarray:
        """The features in a file; OSError if it is missing, ValueError for other content."""
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape != (frames, self.size) or found.dtype != np.float32:
            raise ValueError(f"{path} holds {found.dtype} {found.shape}")
        return found

    def _home(self, record: VideoRecord) -> tuple[Path, str]:
        """A video's folder, and its id there."""
        if len(self.folders) == 1:
            return self.folders[0], record.id
        folder = self.folders[record.source]
        return folder, record.id.removeprefix(f"{folder.name}/")

    def _folder(self, folder: Path, draw: int) -> Path:
        """Where the features of a folder's videos are."""
        if draw not in self._keys:
            self._keys[draw] = digest(self._about(draw))
        return folder / FOLDER_NAME / self._keys[draw]

    def _about(self, draw: int) -> dict[str, Any]:
        """Everything but the videos that the features depend on."""
        if not draw:
            return self._made_by | {"draw": 0}
        augmentation = {f.name: getattr(self.augmentation, f.name) for f in fields(Augmentation)}
        seed = self.cfg.train.seed
        return self._made_by | {"draw": draw, "seed": seed, "augmentation": augmentation}

    def _has(self, record: VideoRecord, draw: int) -> bool:
        try:
            self.get(record, draw)
        except KeyError:
            return False
        return True

    def _compute(
        self, records: Sequence[VideoRecord], draw: int
    ) -> Iterator[tuple[VideoRecord, np.ndarray | VideoError]]:
        engine = open_evaluation_engine(records, self.cfg)
        size, side = self.augmentation.size, self.cfg.data.cache_side
        read = load_videos(records, size, side, engine=engine, draw=self._draws(draw))
        training, device = self.encoder.training, self.device
        self.encoder.eval()  # in training mode the batch norms would wait for other ranks
        try:
            for record, frames in zip(records, read, strict=True):
                if isinstance(frames, VideoError):
                    yield record, frames
                    continue
                with torch.inference_mode():
                    features = self.encoder.features(frames[None].to(device))[0]
                yield record, features.float().cpu().numpy()
        finally:
            self.encoder.train(training)
            engine.close()

    def _draws(self, draw: int) -> Any:
        """The argument ``draw`` of `load_videos`."""
        if not draw:
            return lambda record, height, width: eval_draw(height, width)

        def augmented(record: VideoRecord, height: int, width: int) -> ClipDraw:
            name = self._home(record)[1]
            number = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
            generator = np.random.default_rng([self.cfg.train.seed, draw, number])
            return draw_clip(height, width, self.augmentation, generator)

        return augmented

    def _write(
        self, record: VideoRecord, draw: int, features: np.ndarray, path: Path | None
    ) -> None:
        target = self._folder(self._home(record)[0], draw)
        try:
            path = path or self.path(record, draw)
            path.parent.mkdir(parents=True, exist_ok=True)
            about = target / "about.json"
            if not about.exists():
                write_json(about, {"what": _WHAT} | self._about(draw))
            with replacing(path) as partial, open(partial, "wb") as file:
                np.save(file, features)
            for old in path.parent.glob(f"{escape(Path(record.id).name)}.*.npy"):
                stamp = old.name.removeprefix(Path(record.id).name + ".")
                if old != path and _STAMP.fullmatch(stamp):
                    old.unlink(missing_ok=True)  # features of an earlier version of the video
        except OSError as error:
            reason = error.strerror or "the disk is full"
            raise UserError(
                f"the features of {record.id} cannot be written to {target} "
                f"({reason}); free some space or grant write permission and repeat the command, "
                f"which continues from here. {_ELSEWHERE}"
            ) from error

    def _check_room(self, home: Path, frames: int, progress: bool) -> None:
        needed = frames * self.size * 4
        folder = home / FOLDER_NAME
        if progress:
            text = f"features of {frames} frames are computed once: {size_text(needed)} in {folder}"
            tqdm.write(text, file=sys.stderr)
        free = shutil.disk_usage(home).free
        if needed + _SPARE > free:
            raise UserError(
                f"data.cache=features needs {size_text(needed)} in {folder}, but only "
                f"{size_text(free)} are free there: free some space, or reduce data.feature_draws. "
                f"{_ELSEWHERE}"
            )


class FeatureEngine:
    """An engine that reads stored features instead of frames: float32 (readings, clips, T, F).

    Args:
        store: store with the videos' draws; a video whose draws are missing cannot be read.
        records: the videos.
        size: height and width in pixels of the frames that the items describe; the features are of
            frames of this size.
        draws: number of augmented draws; 0: the evaluation transform only. A checksum of a clip's
            crop, flip, colours and blur chooses among several draws. These are functions of (seed,
            epoch, index) whatever engine reads an item, and so is the choice.
    """

    name = "stored features"

    def __init__(
        self, store: FeatureStore, records: Sequence[VideoRecord], size: int, draws: int = 0
    ) -> None:
        self.store, self.size, self.draws = store, size, draws
        self.records = {record.path: record for record in records}
        self._paths: dict[tuple[str, int], Path] = {}  # each video's file is looked up once

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        for batch in range(start, stop):
            yield torch.from_numpy(np.stack([self._read(reading) for reading in source(batch)]))

    def close(self) -> None:
        """Nothing needs closing."""

    def _read(self, reading: Reading) -> np.ndarray:
        record = self.records[reading.path]
        sound = frames_of(record)
        return np.stack(
            [
                self._stored(record, self.draw_of(clip), len(sound))[
                    np.searchsorted(sound, clip.frames)
                ]
                for clip in reading.clips
            ]
        )

    def _stored(self, record: VideoRecord, draw: int, frames: int) -> np.ndarray:
        place = (record.path, draw)
        try:
            if place not in self._paths:
                self._paths[place] = self.store.path(record, draw)
            return self.store.load(self._paths[place], frames)
        except (OSError, ValueError) as error:
            raise VideoError(record.path, f"its features are not stored: {error}") from error

    def draw_of(self, clip: Clip) -> int:
        """Number of the stored draw that a clip is read from."""
        if not self.draws:
            return 0
        draw = clip.draw
        numbers = [*draw.box, draw.flip, draw.blur_sigma, *(amount for _, amount in draw.colour)]
        return 1 + zlib.crc32(np.array(numbers, dtype="<f8").tobytes()) % self.draws


_WHAT = (
    "Features of videos, one file each: float32 (sound frames, features), read by numpy.load. "
    "Missing features are computed again, so this folder may be removed."
)


def _description(backbone: Any, cfg: Any) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "backbone": cfg.model.backbone,
        "backbone_to": cfg.model.backbone_to,
        "pool": cfg.model.pool,
        "code": backbone.code_version(),
        "pixel_mean": [*backbone.pixel_mean],
        "pixel_std": [*backbone.pixel_std],
        "weights_sha256": weights_digest(backbone),
        "image_size": cfg.augmentation.size,
        "side": decode_side(cfg.augmentation.size, cfg.data.cache_side),
        "engine": decoder(cfg),
        "precision": "fp32",
    }


def decoder(cfg: Any) -> str:
    """What decodes whole videos on this machine, as in `open_evaluation_engine`."""
    if cfg.data.cache == "ram":
        return "pyav, scaled first"
    if cfg.data.engine == "auto":  # as in fastseq.video.engines.choose
        on_gpu = torch.cuda.is_available() and dali_version() is not None
        return "auto on a GPU" if on_gpu else "pyav"
    return cfg.data.engine


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # a counter without effect on features
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def video_stamp(record: VideoRecord) -> str:
    """Digest of a video's file (size, time of modification), frames, gaps, trim and crop.

    Raises OSError if the file no longer exists.
    """
    used = [record.frames, record.gaps, record.trim, record.crop]
    return digest([*stamp_of(record.path), *used])


def digest(content: Any) -> str:
    """16 hexadecimal digits that identify plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def size_text(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
