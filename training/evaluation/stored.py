"""The embeddings of a run's videos in RUN/embeddings: computed once, read by every command."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluation.embed import EmbeddedVideo, embed_features
from training.evaluation.encoders import BACKBONE, BACKBONE_CENTRED, TRAINED
from training.evaluation.stored_files import StoredFiles, balanced, stamp_now
from training.support.command import LeftOut, UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord

FOLDER_NAME = "embeddings"
_RESERVE = 2**30  # bytes to leave free on the disk
_MENTIONED = 64 * 2**20  # bytes from which the size is printed


def add_checkpoint(parser: ArgumentParser) -> None:
    """Add --checkpoint to a command that reads a run."""
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="the weights: latest (default), best (which train.keep_best keeps) or step_N",
    )


def add_no_store(parser: ArgumentParser) -> None:
    """Add --no-store to a command that embeds videos."""
    parser.add_argument(
        "--no-store",
        action="store_true",
        help="neither read nor write RUN/embeddings, where embeddings are kept for the next "
        "command",
    )


def run_embeddings(
    run: str | Path,
    records: Sequence[VideoRecord],
    *,
    rows: Sequence[str] | None = (TRAINED,),
    checkpoint: str | None = None,
    folder: str | Path | None = None,
    left_out: LeftOut | None = None,
    progress: bool = True,
    store: bool = True,
) -> tuple[dict[str, list[EmbeddedVideo]], Any]:
    """The embeddings of videos by a run's encoders, and the run's configuration.

    Only embeddings that RUN/embeddings lacks are computed.

    Args:
        run: run directory of ``python -m training.train``.
        records: the videos.
        rows: names of the encoders, see `training.evaluation.encoders`; None = all that a run has.
        checkpoint: see `training.runs.model.restore`.
        folder: folder of the videos, which may have stored features (default: the run's).
        left_out: receives the videos that cannot be read; without it their VideoError is raised.
        store: whether RUN/embeddings is used.

    Returns:
        Row -> one `EmbeddedVideo` for each video that was not left out, in the order of
        ``records``.
    """
    opened = RunEmbeddings(run, rows=rows, checkpoint=checkpoint, folder=folder, store=store)
    return opened.embed(records, left_out, progress=progress), opened.cfg


class RunEmbeddings:
    """The encoders of a run and the files of their embeddings.

    A file ROW-KEY/VIDEO.npz has ``embeddings``, float32 (n, E) of unit length, one row for each
    sound frame; ``frames``, int64 (n,), their numbers; ``id``; and ``stamp``, a digest of the
    video's file (size, time of modification), frames, gaps, trim and crop. KEY is a digest of the
    weights, the ``model`` section of the recipe, the frame size and the decoder. A file whose
    stamp differs is computed again. Labels are not in the files: they are those of the records.

    Both rows of the backbone alone are computed from one file with its ``features``, float32
    (n, F), not normalised. With ``data.cache=features`` the feature store has them already.

    Arguments and errors are those of `run_embeddings`.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        rows: Sequence[str] | None = (TRAINED,),
        checkpoint: str | None = None,
        folder: str | Path | None = None,
        store: bool = True,
    ) -> None:
        from training.evaluation.encoders import load_compared_encoders, load_encoder

        self.run = Path(run)
        if rows is not None and tuple(rows) == (TRAINED,):
            encoder, self.cfg = load_encoder(run, folder, checkpoint=checkpoint)
            self.encoders = {TRAINED: encoder}
        else:
            found, self.cfg = load_compared_encoders(run, folder, checkpoint=checkpoint)
            unknown = [name for name in rows or () if name not in found]
            if unknown:
                raise UserError(f"{run} has no row {unknown[0]!r}; it has {', '.join(found)}")
            self.encoders = {name: found[name] for name in rows or found}
        self._store = self._writes = store

    @property
    def weights(self) -> dict[str, Any]:
        """Name of the checkpoint and number of its steps, for result files."""
        found = self.encoders[TRAINED].weights
        return {"checkpoint": found.checkpoint, "step": found.step}

    def embed(
        self,
        records: Sequence[VideoRecord],
        left_out: LeftOut | None = None,
        *,
        progress: bool = True,
    ) -> dict[str, list[EmbeddedVideo]]:
        """All embeddings by row, see `run_embeddings`."""
        out: dict[str, list[EmbeddedVideo]] = {name: [] for name in self.encoders}
        for videos in self.each(records, left_out, progress=progress):
            for name, video in videos.items():
                out[name].append(video)
        return out

    def each(
        self,
        records: Sequence[VideoRecord],
        left_out: LeftOut | None = None,
        *,
        progress: bool = True,
    ) -> Iterator[dict[str, EmbeddedVideo]]:
        """Yield the embeddings of each video by all rows, one whole video at a time."""
        rows, absent = self._missing(records)
        todo = [record for record in records if record.id in absent]
        computed = self._compute(rows, todo, left_out, progress=progress)
        waiting = next(computed, None)
        for record in records:
            made = {}
            if record.id in absent:
                if waiting is None or waiting[0].id != record.id:
                    continue  # left out
                made, waiting = waiting[1], next(computed, None)
            yield {
                name: made[name] if name in made else self._read(name, record)
                for name in self.encoders
            }

    def share(self, records: Sequence[VideoRecord], left_out: LeftOut) -> bool:
        """Under torchrun, embed this rank's part of the videos into RUN/embeddings.

        Every rank calls it, with the same videos. Afterwards rank 0 finds all embeddings stored.
        A single process does nothing here.

        Returns:
            Whether this is rank 0, the only one that has more to do.

        Raises:
            UserError: RUN/embeddings cannot be used. An error of one rank ends all, see
                `training.support.distributed.run_on_all`.
        """
        from training.support.distributed import (
            gather_objects,
            is_main,
            rank,
            run_on_all,
            run_on_main,
            world_size,
        )

        if world_size() == 1:
            return True
        rows, absent = run_on_main(lambda: self._missing(records))
        todo = [record for record in records if record.id in absent]
        mine = balanced(todo, world_size())[rank()]
        failed = LeftOut()

        def embed() -> None:
            if mine and not self._writable():
                raise UserError(f"several processes share embeddings in {self.folder}: {_ALONE}")
            what = f"embedding, rank 0 of {world_size()}"
            for _ in self._compute(rows, mine, failed, progress=is_main(), what=what):
                if not self._writes:
                    raise UserError(f"not all embeddings can be written: {_ALONE}")

        run_on_all(embed)
        for videos in gather_objects(failed.videos):
            left_out.videos.update(videos)
        return is_main()

    @property
    def folder(self) -> Path:
        return self.run / FOLDER_NAME

    @cached_property
    def _files(self) -> Mapping[str, StoredFiles]:
        """Row -> its files, of rows that are stored."""
        found: dict[str, StoredFiles] = {}
        if not self._store:
            return found
        for name, encoder in self.encoders.items():
            alone = name in (BACKBONE, BACKBONE_CENTRED)
            if encoder.weights is not None and not (alone and encoder.store is not None):
                found[name] = StoredFiles(self.folder, BACKBONE if alone else name, encoder)
        return found

    def _writable(self) -> bool:
        """Whether embeddings are stored; says so once if they cannot be."""
        place = self.folder if self.folder.is_dir() else self.run
        if self._writes and not os.access(place, os.W_OK):
            _say(f"{place} is not writable: the embeddings are not stored there")
            self._writes = False
        return self._writes

    def _missing(self, records: Sequence[VideoRecord]) -> tuple[list[str], set[str]]:
        """The rows that lack any of these videos, and the ids of the videos that any row lacks."""
        rows = [name for name in self.encoders if name not in self._files]
        absent = {record.id for record in records} if rows else set()
        for name, files in self._files.items():
            lacking = {record.id for record in records if not files.has(record)}
            rows += [name] if lacking else []
            absent |= lacking
        return [name for name in self.encoders if name in rows], absent

    def _read(self, name: str, record: VideoRecord) -> EmbeddedVideo:
        import torch

        files = self._files[name]
        content = files.read(record)
        if content is None:  # another process has replaced or removed it since it was looked up
            ((_, made),) = self._compute([name], [record], None, progress=False)
            return made[name]
        if files.key == "features":
            features = torch.from_numpy(content)[None]
            content = embed_features(self.encoders[name], features, name, record.id)
        return EmbeddedVideo(record, content)

    def _compute(
        self,
        rows: Sequence[str],
        records: Sequence[VideoRecord],
        left_out: LeftOut | None,
        *,
        progress: bool,
        what: str = "embedding",
    ) -> Iterator[tuple[VideoRecord, dict[str, EmbeddedVideo]]]:
        """Embed and store videos; yields those that can be read, with their rows."""
        from training.evaluation.embed import features_each

        if not records:
            return
        encoders = {name: self.encoders[name] for name in rows}
        stamps = {(record.id, record.path): stamp_now(record) for record in records}
        kept: list[StoredFiles] | None = None
        for record, taken in features_each(
            encoders, records, self.cfg, left_out, progress=progress, what=what
        ):
            made, contents = {}, {}
            for name, encoder in encoders.items():
                files, features = self._files.get(name), taken[name]
                if files is not None and files.key == "features":
                    features = features.float().cpu()  # as they are read again
                embeddings = embed_features(encoder, features, name, record.id)
                made[name] = EmbeddedVideo(record, embeddings)
                if files is not None:
                    whole = files.key == "features"
                    contents[files] = features[0].numpy() if whole else embeddings
            if kept is None:
                store = bool(contents) and self._writable()
                new = {files: [one for one in records if not files.has(one)] for files in contents}
                kept = self._affordable(contents, new, progress) if store else []
            for files in kept if self._writes else ():
                self._write(files, record, contents[files], stamps[record.id, record.path])
            yield record, made

    def _affordable(
        self,
        contents: Mapping[StoredFiles, np.ndarray],
        new: Mapping[StoredFiles, Sequence[VideoRecord]],
        progress: bool,
    ) -> list[StoredFiles]:
        """The files that leave a reserve free on the disk, small ones first.

        contents: those of one video. new: the videos whose files are not there yet.
        """
        from training.data.features import size_text

        free = shutil.disk_usage(self.run).free - _RESERVE
        needed, kept = 0.0, []
        for files, content in sorted(contents.items(), key=lambda item: item[1].nbytes):
            frames = sum(one.frames for one in new[files])
            size = content.nbytes / max(len(content), 1) * frames
            if needed + size > free:
                _say(
                    f"the embeddings {files.row!r} are not stored: they need {size_text(size)}, "
                    f"and {size_text(_RESERVE)} stay free on the disk of {self.folder}"
                )
                self._writes = self._writes and bool(kept)
                continue
            needed += size
            kept.append(files)
        if progress and needed > _MENTIONED:
            written = {one.id: one.frames for files in kept for one in new[files]}
            frames = sum(written.values())
            _say(f"embeddings of {frames} frames are stored: {size_text(needed)} in {self.folder}")
        for files in kept:
            files.remove_others()
        return kept

    def _write(
        self, files: StoredFiles, record: VideoRecord, content: np.ndarray, stamp: str | None
    ) -> None:
        try:
            files.write(record, content, stamp)
        except OSError as error:
            self._writes = False
            reason = error.strerror or "the disk is full"
            _say(f"no more embeddings are stored in {self.folder} ({reason})")


_ALONE = "free some space or grant write permission, leave out --no-store, or use one process"


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
