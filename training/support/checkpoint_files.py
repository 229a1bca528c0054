"""The checkpoints of a folder, and the newest valid one."""

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
    """A checkpoint cannot be written, none can be read, or its weights are of another model."""


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name).group(1)))


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Name of a checkpoint -> ``sha256`` and ``bytes``; empty without a manifest."""
    try:
        return json.loads((Path(folder) / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def newest_checkpoint(
    folder: str | Path, keys: Collection[str] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid checkpoint and its content, or None if the folder has no checkpoint.

    A valid checkpoint has the SHA-256 of the manifest (if it is listed there), can be read and has
    ``keys``. Invalid checkpoints are logged and skipped, and the previous one is tried;
    CheckpointError if none is valid. Tensors are loaded onto the CPU, where Adam's step counters
    and the random states belong.
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
        logger.warning("%s is not a checkpoint of a run (expected %s)", path, ", ".join(keys))
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} can be read: restore one from a "
            "copy, or remove them all to train from the start"
        )
    return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
