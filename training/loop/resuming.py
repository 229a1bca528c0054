"""Whether a checkpoint's state of each rank fits the ranks of a resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.support.command import UserError


def split_time_of(state: Mapping[str, Any]) -> int:
    """data.split_time of the run that wrote a checkpoint."""
    return state["config"]["data"].get("split_time", 1)  # older checkpoints lack the key


def check_shards(order: Mapping[str, Any], run_dir: Path, ranks: int, parts: int) -> None:
    """UserError if a run that reads shards would read others on these ranks.

    Args:
        order: the order in the state of the saved loader.
        ranks: number of ranks of the resume; each ``parts`` of them share every clip.
    """
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
