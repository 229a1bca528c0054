"""What a run's numbers depend on besides its configuration: versions, device, threads, ranks."""

import logging
import os
import platform
from typing import Any

import numpy as np
import torch

import fastseq
from training.support.distributed import world_size

logger = logging.getLogger(__name__)

# What the speed on a busy machine depends on, for libgomp and for Intel's and LLVM's runtimes.
_OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "KMP_BLOCKTIME")

# A resumed run has other bits where one of these is another.
_EXACT = ("torch", "device", "precision", "threads", "ranks")


def environment(device: torch.device, bf16: bool) -> dict[str, Any]:
    """Plain types: for RUN/environment.json and for checkpoints."""
    return {
        "fastseq": fastseq.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": "bf16" if bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "openmp": " ".join(f"{key}={os.environ[key]}" for key in _OPENMP if key in os.environ),
        "ranks": world_size(),
    }


def warn_if_inexact(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say where a run that continues will differ in rounding from an uninterrupted one."""
    changed = [
        f"{key} {before.get(key)} (now {now[key]})" for key in _EXACT if before.get(key) != now[key]
    ]
    if changed:
        logger.warning(
            "the run was saved with %s: it continues, but not to the bit", ", ".join(changed)
        )
