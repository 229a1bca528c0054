"""Whether a recipe can be trained by a number of processes."""

from typing import Any

from training.recipe.load import ConfigError
from training.recipe.losses import loss_terms


def check_ranks(cfg: Any, ranks: int) -> None:
    """ConfigError unless ``ranks`` processes can share the batches and, with data.split_time, the
    clips."""
    parts, batch_size = cfg.data.split_time, cfg.data.batch_size
    length = cfg.data.num_frames
    if parts > 1 and ranks == 1:
        raise ConfigError(
            f"data.split_time: {parts} ranks share every clip, but this is a single process; start "
            f"it with torchrun --nproc-per-node {parts} -m training.train, or set "
            "data.split_time=1"
        )
    if ranks % parts:
        raise ConfigError(
            f"data.split_time: {parts} ranks share every clip, but there are {ranks} ranks; start "
            f"a multiple of {parts}"
        )
    if length % parts:
        raise ConfigError(
            f"data.split_time: {parts} ranks cannot share the data.num_frames={length} frames of a "
            f"clip equally; choose a multiple of {parts} frames"
        )
    groups = ranks // parts
    if batch_size % groups:
        sharing = f"{ranks} ranks" if parts == 1 else f"{groups} groups of {parts} ranks"
        unit = "ranks" if parts == 1 else "groups"
        raise ConfigError(
            f"data.batch_size: {batch_size} items cannot be shared by {sharing}; choose a multiple "
            f"of the number of {unit}"
        )
    uses_scl = any(name == "scl" for name, *_ in loss_terms(cfg.loss))
    if parts > 1 and groups > 1 and uses_scl and cfg.loss.scl.negatives == "batch":
        raise ConfigError(
            f"loss.scl.negatives: batch compares the clips of all ranks, which {groups} groups of "
            f"data.split_time={parts} ranks do not support; set loss.scl.negatives=cross, or "
            f"data.split_time={ranks}"
        )


def check_one_process(cfg: Any) -> None:
    """ConfigError with data.split_time above 1, for commands that train in a single process."""
    parts = cfg.data.split_time
    if parts > 1:
        raise ConfigError(
            f"data.split_time: expected 1, because this command trains in one process, got {parts};"
            f" leave the key out, or train each run alone with torchrun --nproc-per-node {parts} "
            "-m training.train"
        )
