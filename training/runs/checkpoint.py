"""Checkpoints that survive a crash: written whole or not at all, plain data, loaded safely."""

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.support.command import UserError
from training.support.files import replacing, write_text

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8,})\.pt")


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be read, or its weights are of another model."""


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step_00001234.pt`` atomically and keep the last ``keep`` checkpoints.

    ``state`` holds tensors and plain Python values only, so that ``weights_only=True`` reads it.
    ``folder/manifest.json`` has the SHA-256 of every checkpoint. After a crash or a full disk at
    any moment, the earlier checkpoints are intact.

    Raises:
        CheckpointError: it cannot be written; names the reason and what is intact.
    """
    folder = Path(folder)
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(".*.part"), *folder.glob("*.tmp")):  # by a kill; .tmp: once
            left.unlink(missing_ok=True)
        _write(path, state, keep)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        earlier = [one.name for one in list_checkpoints(folder) if one != path]
        intact = f"{earlier[-1]} is intact" if earlier else "there is no earlier one"
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be written ({reason}); {intact}. Make room or give the folder write "
            "permission, then continue with --resume"
        ) from error
    return path


def _write(path: Path, state: dict[str, Any], keep: int) -> None:
    folder = path.parent
    with replacing(path) as partial:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        entry = {"sha256": _sha256(partial), "bytes": partial.stat().st_size}
        # A file without an entry is judged by loading it, one with a wrong entry is damaged. So an
        # entry never outlives its file, and a new one comes after it.
        entries = read_manifest(folder)
        if entries.pop(path.name, None):
            _write_manifest(folder, entries)
    _sync_folder(folder)
    kept = list_checkpoints(folder)[-keep:]
    entries = {name: entries[name] for name in (p.name for p in kept) if name in entries}
    _write_manifest(folder, entries | {path.name: entry})
    for old in set(list_checkpoints(folder)) - {*kept, path}:
        old.unlink()


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


def load_latest(folder: str | Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The newest valid checkpoint, or None when there is none at all.

    Valid: it has the SHA-256 of the manifest (where it is listed there), can be read and has
    ``keys``. Others are reported and the one before is taken; CheckpointError when none is valid.
    Tensors are on the CPU: Adam's step counters belong there, and random states too.
    """
    paths = list_checkpoints(folder)
    manifest = read_manifest(folder)
    for path in reversed(paths):
        try:
            entry = manifest.get(path.name)
            if entry is not None and _sha256(path) != entry["sha256"]:
                logger.warning("%s cannot be read (SHA-256 is not that of %s)", path, MANIFEST)
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            logger.warning("%s cannot be read (%s)", path, type(error).__name__)
            continue
        if isinstance(state, dict) and state.keys() >= set(keys):
            return state
        logger.warning("%s is no checkpoint of a run (%s expected)", path, ", ".join(keys))
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} can be read: put back a copy, or "
            "remove them to train from the start"
        )
    return None


def load_weights(model: torch.nn.Module, state: dict[str, Any], folder: str | Path) -> None:
    """Put the weights of a checkpoint of ``folder`` into the model."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:  # names every tensor, one per line
        differences = str(error).splitlines()[1:]
        raise CheckpointError(
            f"the weights in {folder} are of another model than config.yaml beside it describes "
            f"({len(differences)} differences, such as {differences[0].strip()})"
        ) from error


def random_state() -> dict[str, Any]:
    """State of the random generators of Python, NumPy and torch, as plain types."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _write_manifest(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    write_text(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")
    _sync_folder(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
