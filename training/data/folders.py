"""A run's folders and filters as its recipe has them, and their names in messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.selection import Selection


def names_of(value: Any) -> list[Any]:
    """The names in a recipe's value that is null, a name or a list of names."""
    if value is None:
        return []
    return [value] if isinstance(value, str | os.PathLike) else [*value]


def folders_of(cfg: Any, folder: str | os.PathLike | None = None) -> list[Path]:
    """``folder`` alone, or without it all folders of a run's configuration."""
    return [Path(one) for one in names_of(folder or cfg.data.folder)]


def filters_of(data_cfg: Any) -> dict[str, list[str]]:
    """Key of the recipe -> its names, for each filter that is set."""
    values = {"data.action": data_cfg.action} | {
        f"data.where.{name}": getattr(data_cfg.where, name) for name in ("split", "view", "action")
    }
    return {key: names_of(value) for key, value in values.items() if names_of(value)}


def listed(names: Sequence[str]) -> str:
    """Names as a value of the recipe."""
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"


def place(index: Selection) -> str:
    """The folders of an index, for a message."""
    return " and ".join(map(str, index.folders))


def prepare(index: Selection) -> str:
    """The command that prepares the folder of an index, or one of its folders, for a message."""
    folder = index.folders[0] if len(index.folders) == 1 else "FOLDER"
    return f"`python -m training.prepare {folder}`"


def labels_file(index: Selection) -> str:
    """The labels file of the folder of an index, or of one of its folders, for a message."""
    from training.data.files import LABELS_NAME  # imports torch

    return str(index.folders[0] / LABELS_NAME) if len(index.folders) == 1 else LABELS_NAME
