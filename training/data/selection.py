"""The videos of a run: those of all its folders that its filters leave, and those of a split."""

from __future__ import annotations

import difflib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from training.data.folders import filters_of, folders_of, labels_file, listed, place, prepare
from training.data.index import Index, load_index, load_indexes
from training.data.label_values import SPLITS, known_hint
from training.support.command import UserError

if TYPE_CHECKING:
    from training.data.index import VideoRecord

logger = logging.getLogger(__name__)

_SHOWN = 20  # names in an error message


@dataclass(frozen=True, eq=False)
class Selection(Index):
    """The videos of a run's folders that its filters leave.

    Attributes:
        counts: the numbers of videos before the filters and after each one, as words; empty without
            filters.
        run_class_set: the class set of the run; `class_set` differs where another one was chosen.
    """

    counts: str = ""
    run_class_set: str = ""


def open_index(
    cfg: Any,
    folder: str | os.PathLike | None = None,
    *,
    class_set: str | None = None,
    check: bool = True,
) -> Selection:
    """The videos of a run's folders that its filters leave: `data.action` and `data.where`.

    Args:
        cfg, folder, class_set, check: see `open_folders`.

    Raises:
        UserError: no video has a name that a filter requires, or the filters together leave no
            video.
        StaleIndex: a folder must be prepared first.
    """
    return select(open_folders(cfg, folder, class_set=class_set, check=check), filters_of(cfg.data))


def open_folders(
    cfg: Any,
    folder: str | os.PathLike | None = None,
    *,
    class_set: str | None = None,
    check: bool = True,
) -> Selection:
    """All videos of a run's folders as one index, with the phases of one class set.

    With several folders, the ids of the videos begin with the name of their folder.

    Args:
        cfg: the run's configuration.
        folder: a prepared folder in place of the run's folders.
        class_set: name of the class set (default: the run's `data.class_set`).
        check: look for files that have changed since the folder was prepared.

    Raises:
        UserError: two folders have the same name, or different phases of one action.
        StaleIndex: a folder must be prepared first.
    """
    folders = folders_of(cfg, folder)
    index = load_indexes(folders, class_set=class_set or cfg.data.class_set, check=check)
    own = cfg.data.class_set
    if own is None:  # the first one, which the index of several folders does not tell
        first = index if class_set is None else load_index(folders[0], check=False)
        own = first.class_set
    known = {field.name: getattr(index, field.name) for field in fields(index)}
    return Selection(**known, run_class_set=own)


def select(index: Selection, filters: Mapping[str, Sequence[str]]) -> Selection:
    """The videos that pass all filters: key such as "data.where.view" -> names.

    Raises:
        UserError: see `open_index`.
    """
    left, counts = index.videos, [f"{len(index.videos)} videos"]
    for key, names in filters.items():
        attribute = key.rpartition(".")[2]
        check_known(index, key, attribute, names)
        left = left.where(**{attribute: names})
        counts.append(f"{len(left)} after {key}={listed(names)}")
    if not filters:
        return index
    logger.info("%s: %s", place(index), ", ".join(counts))
    if index.videos and not left:
        raise UserError(f"no video of {place(index)} passes all filters: {', '.join(counts)}")
    return replace(index, videos=left, counts=", ".join(counts))


def videos_of_split(index: Selection, split: str) -> Sequence[VideoRecord]:
    """The videos of one split; UserError if there are none."""
    records = index.videos.where(split=split)
    if not records:
        if not index.videos:
            raise UserError(
                f"{place(index)} has no video that can be read; {prepare(index)} says why"
            )
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}{known_hint(split, SPLITS)}")
        splits = ", ".join(sorted(set(index.videos.column("split"))))
        passing = f" that pass the filters ({index.counts})" if index.counts else ""
        raise UserError(
            f"{place(index)} has no videos in the split {split!r}{passing}, only in {splits}; "
            f'write "split": "{split}" for some of them in {labels_file(index)} and run '
            f"{prepare(index)}"
        )
    return records


def warn_without_test(index: Selection, split: str) -> None:
    """Warn of an empty test split before a training, which needs none.

    ``split``: the run's `data.test_split`.
    """
    if not index.videos.where(split=split):
        logger.warning(
            "no video is in the test split %r: the run can be trained, but `python -m "
            "training.evaluate` will have no video to score",
            split,
        )


def check_known(index: Selection, key: str, attribute: str, names: Sequence[str]) -> None:
    """UserError, with the names that exist, if no video has one of these as its attribute.

    ``key``: the option that the names are from.
    """
    counts = Counter(index.videos.column(attribute))
    for name in names:
        if name in counts or not index.videos:
            continue
        if set(counts) == {""}:
            raise UserError(
                f"{key}: no video of {place(index)} has a {attribute}; write "
                f'"{attribute}": "{name}" for some of them in {labels_file(index)} and run '
                f"{prepare(index)}"
            )
        near = difflib.get_close_matches(name, counts, n=3, cutoff=0.5)
        advice = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        known = sorted(counts)
        some = ", ".join(f"{one or '(none)'} ({counts[one]})" for one in known[:_SHOWN])
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        raise UserError(
            f"{key}: no video of {place(index)} has the {attribute} {name!r}; there are {some}"
            f"{more}.{advice}"
        )
