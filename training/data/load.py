"""Opening the index of one or several folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.files import INDEX_NAME, LABELS_NAME, Found
from training.data.freshness import changes
from training.data.records import Columns, VideoRecord, Videos
from training.data.store import FORMAT, DamagedIndex, Store
from training.support.command import UserError

OLD_INDEX_NAME = "fastseq_index.json"  # of earlier versions
NUMBERS = ("frames", "fps", "width", "height", "rotation", "sound", "shard")
CODES = ("action", "view", "codec")
TEXTS = ("id", "place", "facts", "used", "times")
_SHOWN = 5


class StaleIndex(UserError):
    """An index is missing or no longer describes its folder; the message names the command."""


@dataclass(frozen=True, eq=False)
class Index:
    """The readable videos of `folder`, the unreadable ones, and the phases of each action.

    Attributes:
        folder: the folder, the first of several.
        videos: `training.data.records.Videos`.
        bad: {path, reason} of the videos that cannot be read.
        classes: the phases of each action in the chosen class set.
        changed_labels: damaged videos whose labels were cut or extended to their frames.
        unused_labels: labelled videos that cannot be read, or whose shard is gone.
        found: the folder's files, if it has just been searched.
        class_sets: the phases of each action in every class set of the labels file.
        class_set: name of the chosen class set; "" for a labels file with "classes".
        folders: all folders; `VideoRecord.source` counts them.
        checked, kept: number of files that were just checked, and of those whose earlier check was
            used.
    """

    folder: Path
    videos: Sequence[VideoRecord]
    bad: list[dict[str, str]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    changed_labels: list[str] = field(default_factory=list)
    unused_labels: list[str] = field(default_factory=list)
    found: Found | None = None
    class_sets: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    class_set: str = ""
    folders: tuple[Path, ...] = ()
    checked: int = 0
    kept: int = 0


def load_index(
    folder: str | os.PathLike, *, class_set: str | None = None, check: bool = True
) -> Index:
    """Read FOLDER/fastseq_index.sqlite.

    Args:
        class_set: name of the class set whose phases and splits are used; default: the first.
        check: compare size and time of modification of every file with those in the index.
    Raises:
        StaleIndex: there is no index, or files were added, removed or changed since it was written.
        UserError: the labels file has no such class set.
        NotADirectoryError: `folder` is not a folder.
    """
    return _open(folder, class_set, check)


def _open(
    folder: str | os.PathLike, class_set: str | None, check: bool, *, optional: bool = False
) -> Index:
    """See `load_index`; with `optional`, a folder without phases need not have the class set."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; expected one with videos")
    advice = f"run `python -m training.prepare {folder}`"
    path = folder / INDEX_NAME
    if not path.is_file():
        if (folder / OLD_INDEX_NAME).is_file():
            raise StaleIndex(f"the index of {folder} is one of an earlier version: {advice}")
        raise StaleIndex(f"{folder} has no index: {advice}")
    try:
        with Store(path) as store:
            if store.about.get("format") != FORMAT:
                raise StaleIndex(f"{path} was written by another version of the project: {advice}")
            found = changes(folder, store) if check else []
            if not found:
                if optional and store.about["class_sets"] == {"": {}}:
                    class_set = None
                return _index(folder, store, class_set)
            advice = f"{advice[:-1]}{as_words(_options(folder, store.about))}`"
    except (DamagedIndex, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise StaleIndex(f"{path} is damaged ({error}): {advice}") from error
    more = f" and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
    shown = ", ".join(found[:_SHOWN]) + more
    raise StaleIndex(f"the index of {folder} is out of date ({shown}): {advice}")


def load_indexes(
    folders: Sequence[str | os.PathLike], *, class_set: str | None = None, check: bool = True
) -> Index:
    """Read the indexes of several folders as one; of one folder, `load_index`.

    The ids of several folders become "FOLDERNAME/id", and `VideoRecord.source` counts the folders.
    Only folders with phases need the class set.

    Raises:
        UserError: two folders have the same name, or different phases for the same action.
        See `load_index` for the others.
    """
    if not folders:
        raise UserError("no folder of videos is given; name at least one")
    if len(folders) == 1:
        return load_index(folders[0], class_set=class_set, check=check)
    indexes = [_open(folder, class_set, check, optional=True) for folder in folders]
    if class_set is not None and all(index.class_set != class_set for index in indexes):
        load_index(folders[0], class_set=class_set, check=False)  # raises
    names: dict[str, Path] = {}
    for index in indexes:
        other = names.setdefault(index.folder.name, index.folder)
        if other == index.folder and other is not index.folder:
            raise UserError(f"{other} is given twice; name each folder once")
        if other is not index.folder:
            raise UserError(
                f"{other} and {index.folder} have the same name, with which the ids of their "
                "videos begin; rename one"
            )
    parts, shards = [], 0
    for source, index in enumerate(indexes):
        (part,) = index.videos.parts
        parts.append(part.placed(f"{index.folder.name}/", source, shards))
        shards += max(0, int(part.arrays["shard"].max(initial=-1)) + 1)
    classes = _merged(indexes)
    chosen = indexes[0].class_set if class_set is None else class_set

    def prefixed(attribute: str) -> list[str]:
        return [f"{one.folder.name}/{name}" for one in indexes for name in getattr(one, attribute)]

    return Index(
        indexes[0].folder,
        Videos(parts),
        [
            {**entry, "path": f"{one.folder.name}/{entry['path']}"}
            for one in indexes
            for entry in one.bad
        ],
        classes,
        changed_labels=prefixed("changed_labels"),
        unused_labels=prefixed("unused_labels"),
        class_sets={chosen: classes},
        class_set=chosen,
        folders=tuple(index.folder for index in indexes),
    )


def _merged(indexes: Sequence[Index]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    origin: dict[str, Path] = {}
    for index in indexes:
        for action, phases in index.classes.items():
            if classes.setdefault(action, phases) != phases:
                raise UserError(
                    f"the action {action!r} has the phases {', '.join(classes[action])} in "
                    f"{origin[action]} and {', '.join(phases)} in {index.folder}; write the same "
                    "phases into both labels files, or rename one action"
                )
            origin.setdefault(action, index.folder)
    return classes


def _index(folder: Path, store: Store, class_set: str | None) -> Index:
    about = store.about
    class_sets = about["class_sets"]
    if class_set is None:
        class_set = next(iter(class_sets))
    elif class_set not in class_sets:
        raise UserError(_unknown_class_set(folder, class_set, class_sets))
    labels = about["labels"] or {"changed": [], "unused": []}
    return Index(
        folder,
        Videos([read_columns(folder, store, class_set)]),
        [{"path": path, "reason": reason} for path, reason, _ in store.bad()],
        class_sets[class_set],
        changed_labels=labels["changed"],
        unused_labels=labels["unused"],
        class_sets=class_sets,
        class_set=class_set,
        folders=(folder,),
    )


def read_columns(folder: Path, store: Store, class_set: str) -> Columns:
    """The columns of an index file; without `phases` of other class sets."""
    split, phases = f"split/{class_set}", f"phases/{class_set}"
    arrays, texts = store.columns((*NUMBERS, *CODES, *TEXTS, split, phases))
    names = {name: store.about["names"][name] for name in (*CODES, split)}
    arrays["split"], names["split"] = arrays.pop(split), names.pop(split)
    texts["phases"] = texts.pop(phases)
    return Columns(folder, arrays, names, texts)


def _unknown_class_set(folder: Path, class_set: str, class_sets: Mapping[str, Any]) -> str:
    if [*class_sets] == [""]:
        return (
            f"the labels of {folder} have no class set {class_set!r}: their phases are in "
            '"classes", expected "class_sets"'
        )
    return f"the labels of {folder} have no class set {class_set!r}; known: {', '.join(class_sets)}"


def made_with(folder: str | os.PathLike) -> dict[str, Any]:
    """labels, fps, pictures and include, where the index of a folder was made with them."""
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        return {}
    try:
        with Store(path) as store:
            return _options(Path(folder).resolve(), store.about)
    except (DamagedIndex, KeyError, TypeError, ValueError):
        return {}  # written by another version: it is made anew


def as_words(options: Mapping[str, Any]) -> str:
    """Options of `made_with` as words of `prepare`'s command, each after a space."""
    words = ""
    if "labels" in options:
        words += f" --labels {shlex.quote(options['labels'])}"
    if "fps" in options:
        words += f" --fps {options['fps']:g}"
    if "pictures" in options:
        words += f" --pictures {shlex.quote(options['pictures'])}"
    if "include" in options:
        words += f" --include {shlex.join(options['include'])}"
    return words


def _options(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which the index was made; labels is a path elsewhere than the default."""
    found = {name: about[name] for name in ("fps", "pictures", "include")}
    if about["labels"] is not None and about["labels"]["path"] != LABELS_NAME:
        labels = os.path.normpath(folder / about["labels"]["path"])
        found = {"labels": labels, **found}
    return {name: value for name, value in found.items() if value not in (None, [])}
