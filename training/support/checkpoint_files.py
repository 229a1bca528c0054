"""Which checkpoints a folder has, and the newest of them that can be trusted."""

import hashlib
import json
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from training.support.command import UserError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8,})\.pt")


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be read, or its weights are of another model."""


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name).group(1)))


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Checkpoint's name -> ``sha256`` and ``bytes``; empty where there is none."""
    try:
        return json.loads((Path(folder) / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def newest_checkpoint(
    folder: str | Path, keys: Collection[str] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid checkpoint and what it holds, or None when there is none at all.

    Valid: it has the SHA-256 of the manifest (where it is listed there), can be read and has
    ``keys``. Others are reported and the one before is taken; CheckpointError when none is valid.
    Tensors are on the CPU: Adam's step counters belong there, and random states too.
    """
    paths = list_checkpoints(folder)
    manifest = read_manifest(folder)
    for path in reversed(paths):
        try:
            entry = manifest.get(path.name)
            if entry is not None and sha256(path) != entry["sha256"]:
                logger.warning("%s cannot be read (SHA-256 is not that of %s)", path, MANIFEST)
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            logger.warning("%s cannot be read (%s)", path, type(error).__name__)
            continue
        if isinstance(state, dict) and state.keys() >= set(keys):
            return path, state
        logger.warning("%s is no checkpoint of a run (%s expected)", path, ", ".join(keys))
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} can be read: put back a copy, or "
            "remove them to train from the start"
        )
    return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
