"""Whether a checkpoint's state of each rank fits the ranks of a resume."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.support.command import UserError
from training.support.distributed import is_main, world_size

logger = logging.getLogger(__name__)


def same_ranks(state: Mapping[str, Any], parts: int) -> bool:
    """Whether this rank continues with the state that the checkpoint has of it.

    ``parts``: number of consecutive ranks that share every clip, data.split_time.
    """
    before = state["config"]["data"].get("split_time", 1)  # older checkpoints lack the key
    if before != parts and is_main():
        logger.warning(
            "the run was saved with data.split_time %d (now %d): it continues, but not bit for bit",
            before,
            parts,
        )
    return (len(state["ranks"]), before) == (world_size(), parts)


def check_shards(order: Mapping[str, Any], run_dir: Path, parts: int) -> None:
    """UserError if a run that reads shards would read others on these ranks.

    Args:
        order: the order in the state of the saved loader.
        parts: number of consecutive ranks that share every clip, data.split_time.
    """
    ranks = world_size()
    if order.get("kind") != "by shard" or order["world_size"] * parts == ranks:
        return
    saved, unit, now = order["world_size"], "rank", f"{ranks}"
    if parts > 1:
        unit, now = "group", f"{ranks // parts} (data.split_time={parts})"
    raise UserError(
        f"{run_dir} reads shards on {saved} {unit}{'s' * (saved != 1)}, and this is a "
        f"resume on {now}: {unit}s would read other videos. Resume on {saved} "
        f"(`torchrun --nproc-per-node={saved * parts}`), or start a new run with "
        f"model.weights={run_dir} model.weights_parts=all"
    )
