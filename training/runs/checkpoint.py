"""Checkpoints that survive a crash: written whole, plain data, loaded without running code."""

import json
import os
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.support.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    list_checkpoints,
    newest_checkpoint,
    read_manifest,
    sha256,
)
from training.support.files import replacing, write_text

__all__ = [
    "CheckpointError",
    "list_checkpoints",
    "load_latest",
    "load_weights",
    "random_state",
    "read_manifest",
    "reason_of",
    "save_checkpoint",
    "save_initial",
    "set_random_state",
    "write_listed",
]
INITIAL = "initial.pt"


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step_00001234.pt`` atomically and keep the last ``keep`` checkpoints.

    ``state`` holds tensors and plain Python values only, so that ``weights_only=True`` reads it.
    ``folder/manifest.json`` has the SHA-256 of every checkpoint. After a crash or a full disk at
    any moment, the earlier checkpoints are intact.

    Raises:
        CheckpointError: writing failed; the message names the reason and the intact checkpoint.
    """
    folder = Path(folder)
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(".*.part"), *folder.glob("*.tmp")):  # .tmp: earlier versions
            left.unlink(missing_ok=True)
        write_listed(path, state, keep)
    except (OSError, RuntimeError) as error:
        earlier = [one.name for one in list_checkpoints(folder) if one != path]
        intact = f"{earlier[-1]} is intact" if earlier else "there is no earlier one"
        raise CheckpointError(
            f"{path} cannot be written ({reason_of(error)}); {intact}. Free some space or grant "
            "write permission, then continue with --resume"
        ) from error
    return path


def save_initial(run_dir: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write ``RUN/initial.pt``, the weights before the first step, atomically.

    Raises:
        CheckpointError: writing failed; the message names the reason.
    """
    path = run_dir / INITIAL
    try:
        with replacing(path) as partial:
            _save(weights, partial)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({reason_of(error)}); free some space or grant write "
            "permission"
        ) from error


def reason_of(error: Exception) -> str:
    """Why writing a file failed, in the system's words."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return getattr(cause, "strerror", None) or str(cause).partition("\n")[0]


def _save(content: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def write_listed(path: Path, content: dict[str, Any], keep: int | None = None) -> None:
    """Replace a checkpoint whole, and its entry in the manifest of its folder.

    Args:
        keep: number of the last checkpoints of `list_checkpoints` that stay besides this one;
            None: all of them.

    Raises:
        OSError, RuntimeError: writing failed; torch's writer raises RuntimeError on a full disk.
    """
    folder = path.parent
    with replacing(path) as partial:
        _save(content, partial)
        entry = {"sha256": sha256(partial), "bytes": partial.stat().st_size}
        # A file without an entry is checked by loading it; a file with a wrong entry counts as
        # damaged. So an entry is removed before its file and added after it.
        entries = read_manifest(folder)
        if entries.pop(path.name, None):
            _write_manifest(folder, entries)
    _sync_folder(folder)
    old = [] if keep is None else list_checkpoints(folder)[:-keep]
    gone = {one.name for one in old if one != path}
    entries = {
        name: one for name, one in entries.items() if name not in gone and (folder / name).is_file()
    }
    _write_manifest(folder, entries | {path.name: entry})
    for name in gone:
        (folder / name).unlink()


def load_latest(folder: str | Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The content of the newest valid checkpoint, see `newest_checkpoint`."""
    found = newest_checkpoint(folder, keys)
    return None if found is None else found[1]


def load_weights(
    model: torch.nn.Module, state: dict[str, Any], folder: str | Path, averaged: bool = False
) -> None:
    """Load the weights of a checkpoint of ``folder`` into the model.

    averaged: load the average of the weights (``optim.ema``) if the checkpoint has one.
    """
    try:
        model.load_state_dict(state["ema"] if averaged and "ema" in state else state["model"])
    except RuntimeError as error:  # names every tensor, one per line
        differences = str(error).splitlines()[1:]
        raise CheckpointError(
            f"the weights in {folder} are of another model than config.yaml beside it describes "
            f"({len(differences)} differences, such as {differences[0].strip()})"
        ) from error


def random_state() -> dict[str, Any]:
    """The states of the random generators of Python, NumPy and torch, as plain types."""
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


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, on systems that can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
