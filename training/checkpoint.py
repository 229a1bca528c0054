"""Checkpoints that survive a crash: written whole or not at all, plain data, loaded safely."""

import logging
import os
import random
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8,})\.pt")


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be read, or its weights are those of another model."""


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step_00001234.pt`` atomically and keep the last ``keep`` checkpoints.

    ``state`` holds tensors and plain Python values only, so that ``weights_only=True`` reads it.
    After a crash or a full disk at any moment, the earlier checkpoints are intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    unfinished = path.with_suffix(".tmp")
    try:
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(folder)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name).group(1)))


def load_latest(folder: str | Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None when there is none at all.

    Its tensors are on the CPU: Adam's step counters belong there, and random states too. A damaged
    file, or one without ``keys``, is reported and the one before it taken; CheckpointError when all
    are damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
