"""The environment that a run's numbers depend on: versions, device, threads, ranks."""

import logging
import os
import platform
from typing import Any

import numpy as np
import torch

import fastseq
from training.support.distributed import world_size

logger = logging.getLogger(__name__)

# Variables of libgomp and of Intel's and LLVM's runtimes that affect speed on a busy machine.
_OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "KMP_BLOCKTIME")

# If one of these changes, a resumed run differs in rounding.
_EXACT = ("torch", "device", "precision", "threads", "ranks")


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """The environment as plain types, for RUN/environment.json and for checkpoints.

    precision: the name of the step's precision, such as "bf16".
    """
    return {
        "fastseq": fastseq.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "openmp": " ".join(f"{key}={os.environ[key]}" for key in _OPENMP if key in os.environ),
        "ranks": world_size(),
    }


def warn_if_inexact(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn if a resumed run will differ in rounding from an uninterrupted one."""
    changed = [
        f"{key} {before.get(key)} (now {now[key]})" for key in _EXACT if before.get(key) != now[key]
    ]
    if changed:
        logger.warning(
            "the run was saved with %s: it continues, but not bit for bit", ", ".join(changed)
        )
