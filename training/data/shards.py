"""Writes the videos and labels of an index as WebDataset shards."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fastseq.video.source import file_of, read_bytes
from training.data.files import CARRIED_NAME, INDEX_NAME, LABELS_NAME, by_name, ending_of
from training.data.index import Index, VideoRecord, load_index
from training.data.labels import TO_BE_CHECKED
from training.data.samples import UNKNOWN_ENDING, samples_of
from training.support.command import UserError, counted, make_folder
from training.support.files import replacing, write_json

__all__ = ["samples_of", "write_shards"]

_FORMAT = 2  # raise it when the same videos make other shards: those written before are made again
_STATE = ".fastseq_shards.json"  # in the folder of the shards
_SHOWN = 5


def write_shards(
    index: Index,
    out: str | os.PathLike,
    size_mb: float = 500,
    progress: bool = True,
    *,
    seed: int = 0,
) -> str:
    """Write the videos of an index as WebDataset shards, OUT/shard-000000.tar, ..., with labels.

    The order of the videos is drawn once. A sample is KEY.mp4, the unchanged bytes of the file, or
    KEY.000001.jpg, ..., the unchanged pictures of a folder, and KEY.json, its entry for
    labels.json. OUT/labels.json has the classes and all entries, so that OUT can be prepared like
    any folder.

    Equal videos, labels and arguments make equal bytes. A shard appears when it is complete. A
    later call keeps the shards whose videos (size, time of modification) and labels are the same.

    Args:
        size_mb: greatest size of a tar file in 10^6 bytes; a video that makes a larger one is alone
            in it.
        progress: show a bar.
        seed: seed of the order.
    Returns:
        A summary for the user.
    Raises:
        ImportError: webdataset is not installed.
        UserError: `out` and the folder lie inside each other, `out` has other files or an edited
            labels file, the index has no video, or `size_mb` is not positive.
        VideoError, OSError: a file cannot be read or written; finished shards are kept.
    """
    from tqdm import tqdm

    writer = _tar_writer()
    if not size_mb > 0:
        raise UserError(f"the size of shards must be above 0 MB, got {size_mb:g}")
    if not len(index.videos):
        raise UserError(f"{index.folder} has no video that can be read")
    state = _State.of(Path(out).resolve(), index.folder)
    state.begin()
    videos = _planned(index)
    order = np.random.default_rng(seed).permutation(len(videos)).tolist()
    videos = [videos[place] for place in order]
    about = [_FORMAT, len(videos), size_mb, seed]
    labels, kept = {}, 0
    done = number = 0
    with tqdm(total=len(videos), desc="writing shards", unit="video", disable=not progress) as bar:
        while done < len(videos):
            shard = state.path(number)
            written = videos[done : done + state.count(number)]
            if written and state.shards[number]["digest"] == _digest(about, written):
                kept += 1
            else:
                count = _write_shard(writer, shard, videos[done:], size_mb * 1e6, bar)
                written = videos[done : done + count]
                state.add(number, count, _digest(about, written))
            labels |= {f"{shard.name}/{video.name}": video.entry for video in written}
            done, number = done + len(written), number + 1
            bar.update(done - bar.n)
    single = [*index.class_sets] in ([], [""])
    classes = {"classes": index.classes} if single else {"class_sets": index.class_sets}
    state.finish(number, {**classes, "videos": dict(sorted(labels.items()))})
    lines = [
        f"{counted(number, 'shard')} ({kept} kept from before) with "
        f"{counted(len(videos), 'video')}, "
        f"{sum(shard['size'] for shard in state.shards) / 1e6:.1f} MB, in {state.out}"
    ]
    if index.bad:
        lines.append(f"not in the shards: {counted(len(index.bad), 'file')} that cannot be read")
    return "\n".join(lines)


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ImportError(
            'writing shards needs webdataset: pip install "fastseq[shards]"'
        ) from error
    return TarWriter


@dataclass(frozen=True)
class _Video:
    """A video to be written: its key, its entry for labels.json and the stamp of its file."""

    key: str
    id: str
    path: str
    pictures: bool
    entry: dict[str, Any]
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        return self.key if self.pictures else self.key + self.ending

    @property
    def ending(self) -> str:
        return ending_of(self.id) if by_name(self.id) is True else UNKNOWN_ENDING

    def media(self) -> dict[str, bytes]:
        """Extension -> bytes of its members."""
        if not self.pictures:
            return {self.ending[1:]: read_bytes(self.path)}
        from fastseq.video.pictures import pictures_of

        return {
            f"{number:06d}{ending_of(picture.name)}": picture.read()
            for number, picture in enumerate(pictures_of(self.path).files, 1)
        }


def _write_shard(writer: Any, path: Path, videos: Sequence[_Video], limit: float, bar: Any) -> int:
    """Write videos until the tar would be larger than the limit in bytes; their number."""
    count = 0
    owner = {"user": "fastseq", "group": "fastseq", "mode": 0o644, "mtime": 0}
    with (
        replacing(path) as partial,
        open(partial, "wb") as file,
        writer(file, encoder=False, format="GNU_FORMAT", **owner) as tar,
    ):
        for video in videos:
            text = json.dumps(video.entry, ensure_ascii=False).encode()
            members = {"json": text, **video.media()}
            if count and _size_with(tar.tarstream, video.key, members) > limit:
                break
            tar.write({"__key__": video.key, **members})
            count += 1
            bar.update()
    return count


def _size_with(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> int:
    """Bytes of a tar file that ends after these members: headers, padding and its end included."""
    size = tar.offset
    for extension, data in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        size += len(member.tobuf(tar.format, tar.encoding, tar.errors))
        size += _whole(len(data), tarfile.BLOCKSIZE)
    return _whole(size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _State:
    """What earlier calls wrote into a folder, in OUT/.fastseq_shards.json."""

    def __init__(self, out: Path, shards: list[dict[str, Any]], labels: str):
        self.out, self.shards, self.labels = out, shards, labels

    @classmethod
    def of(cls, out: Path, folder: Path) -> _State:
        """Raises UserError if the shards of `folder` cannot be written to `out`."""
        if out.is_relative_to(folder) or folder.is_relative_to(out):
            raise UserError(f"{out} and {folder} must be two folders, neither inside the other")
        make_folder(out)
        try:
            content = json.loads((out / _STATE).read_text())
            state = cls(out, content["shards"], content["labels"])
        except FileNotFoundError:
            state = cls(out, [], "")
            if any(out.iterdir()):
                raise UserError(
                    f"{out} has files, but no shards written here; choose an empty folder"
                ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{out / _STATE} is damaged ({error}); choose an empty folder"
            ) from error
        if foreign := state.foreign():
            more = f" and {len(foreign) - _SHOWN} more" * (len(foreign) > _SHOWN)
            raise UserError(
                f"{out} has files that --shards did not write: {', '.join(foreign[:_SHOWN])}{more};"
                " move them away, or choose an empty folder"
            )
        labels = out / LABELS_NAME
        if labels.is_file() and _hash(labels.read_bytes()) != state.labels:
            raise UserError(
                f"{labels} was edited after the shards were written, and would be overwritten; "
                f"edit the labels of {folder} instead, or move the file away"
            )
        return state

    def path(self, number: int) -> Path:
        return self.out / f"shard-{number:06d}.tar"

    def foreign(self) -> list[str]:
        """Files of the folder that neither this module nor a command on the shards wrote."""
        known = {LABELS_NAME, INDEX_NAME, CARRIED_NAME}  # and copies of the first: labels.json.bak
        # One more than is noted: a process may end between a shard and its note.
        known |= {self.path(number).name for number in range(len(self.shards) + 1)}
        names = {name for name in os.listdir(self.out) if not name.startswith(".")}
        return sorted(n for n in names - known if not n.startswith(f"{LABELS_NAME}.bak"))

    def begin(self) -> None:
        for path in self.out.glob(".shard-*.tar.*.part"):  # of a process that was killed
            path.unlink(missing_ok=True)
        self._save()

    def count(self, number: int) -> int:
        """Number of videos of a shard that an earlier call finished, otherwise 0."""
        path = self.path(number)
        if number >= len(self.shards) or not path.is_file():
            return 0
        known = self.shards[number]
        return known["count"] if path.stat().st_size == known["size"] else 0

    def add(self, number: int, count: int, digest: str) -> None:
        size = self.path(number).stat().st_size
        self.shards[number : number + 1] = [{"count": count, "size": size, "digest": digest}]
        self._save()

    def finish(self, shards: int, labels: dict[str, Any]) -> None:
        """Write labels.json and remove the shards after the first `shards`."""
        for old in range(shards, len(self.shards)):
            self.path(old).unlink(missing_ok=True)
        del self.shards[shards:]
        data = json.dumps(labels, indent=1, ensure_ascii=False).encode() + b"\n"
        path = self.out / LABELS_NAME
        path.unlink(missing_ok=True)  # an earlier one would not fit the new hash after a kill
        self.labels = _hash(data)
        self._save()
        with replacing(path) as partial:
            partial.write_bytes(data)

    def _save(self) -> None:
        write_json(self.out / _STATE, {"shards": self.shards, "labels": self.labels})


def _planned(index: Index) -> list[_Video]:
    from fastseq.video.pictures import is_pictures

    entries = _entries(index)
    keys = _keys(list(entries))
    planned = []
    for record, key in zip(index.videos, keys, strict=True):
        pictures, entry = is_pictures(record.path), entries[record.id]
        if pictures:
            entry["fps"] = record.fps
        status = file_of(record.path).stat()
        stamp = (status.st_size, status.st_mtime_ns)
        planned.append(_Video(key, record.id, record.path, pictures, entry, stamp))
    return planned


def _keys(names: Iterable[str]) -> list[str]:
    """Keys without dots, each once, from the names of videos."""
    keys: dict[str, None] = {}
    for name in names:
        stem = name.rpartition(".")[0] if by_name(name) is True else name
        key = first = stem.encode("utf-8", "replace").decode().replace(".", "_")
        number = 1
        while key in keys:
            number += 1
            key = f"{first}_{number}"
        keys[key] = None
    return [*keys]


def _entries(index: Index) -> dict[str, dict[str, Any]]:
    """id -> entry for labels.json, with the phases of all class sets, in frames."""
    if [*index.class_sets] in ([], [""]):
        return {
            record.id: {**_facts(record, record.split), **_phases(record)}
            for record in index.videos
        }
    parts: dict[str, dict[str, Any]] = {}
    splits: dict[str, str] = {}
    for name in index.class_sets:
        for record in load_index(index.folder, class_set=name, check=False).videos:
            part = _phases(record)
            if part:
                parts.setdefault(record.id, {})[name] = {**part, "split": record.split}
            else:  # a set without labels of the video has the split of the entry
                splits[record.id] = record.split
    return {
        record.id: {
            **_facts(record, splits.get(record.id, record.split)),
            **({"labels": parts[record.id]} if record.id in parts else {}),
        }
        for record in index.videos
    }


def _facts(record: VideoRecord, split: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"action": record.action, "split": split}
    if record.view:
        entry["view"] = record.view
    if record.trim is not None:
        entry["trim"] = list(record.trim)
    if record.crop is not None:
        entry["crop"] = list(record.crop)
    if record.sync is not None:
        entry["sync"] = {"group": record.sync[0], "offset": record.sync[1]}
    if record.unchecked:
        entry["remark"] = TO_BE_CHECKED
    return entry


def _phases(record: VideoRecord) -> dict[str, Any]:
    """The labelled frames as segments (start included, stop excluded); empty without labels."""
    if record.phases is None:
        return {}
    segments, start = [], 0
    for phase, run in groupby(record.phases.tolist()):
        stop = start + len(list(run))
        if phase >= 0:
            segments.append([start, stop, phase])
        start = stop
    return {"segments": segments} if segments else {}


def _digest(about: list[Any], videos: Iterable[_Video]) -> str:
    """A hash of what a shard is made of."""
    return _hash(json.dumps([about, [[v.key, v.id, v.stamp, v.entry] for v in videos]]).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
