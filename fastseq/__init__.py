"""Fused losses for long sequences of frame embeddings, with memory linear in the number of frames.

Public names are imported on first use, so that ``import fastseq`` costs nothing beyond torch and
works without a GPU, a driver or a compiler.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastseq import compat as compat
    from fastseq import nn as nn
    from fastseq import ops as ops
    from fastseq import video as video
    from fastseq.ops.contrastive_idm import contrastive_idm
    from fastseq.ops.lav import lav_loss
    from fastseq.ops.queue_nce import queue_nce
    from fastseq.ops.scl import scl_loss
    from fastseq.ops.sinkhorn import sinkhorn_alignment, sinkhorn_plan, vava_loss
    from fastseq.ops.soft_dtw import (
        dtw_cross,
        dtw_path,
        soft_dtw,
        soft_dtw_alignment,
        soft_dtw_barycenter,
        soft_dtw_cross,
        soft_dtw_from_cost,
    )
    from fastseq.ops.tcc import tcc_loss
    from fastseq.ops.tcn import tcn_loss
    from fastseq.ops.vclr import intra_nce, temporal_order_loss, vclr_loss

__version__ = "0.1.0"

_PUBLIC = {
    "contrastive_idm": "fastseq.ops.contrastive_idm",
    "dtw_cross": "fastseq.ops.soft_dtw",
    "dtw_path": "fastseq.ops.soft_dtw",
    "intra_nce": "fastseq.ops.vclr",
    "lav_loss": "fastseq.ops.lav",
    "queue_nce": "fastseq.ops.queue_nce",
    "scl_loss": "fastseq.ops.scl",
    "sinkhorn_alignment": "fastseq.ops.sinkhorn",
    "sinkhorn_plan": "fastseq.ops.sinkhorn",
    "soft_dtw": "fastseq.ops.soft_dtw",
    "soft_dtw_alignment": "fastseq.ops.soft_dtw",
    "soft_dtw_barycenter": "fastseq.ops.soft_dtw",
    "soft_dtw_cross": "fastseq.ops.soft_dtw",
    "soft_dtw_from_cost": "fastseq.ops.soft_dtw",
    "tcc_loss": "fastseq.ops.tcc",
    "tcn_loss": "fastseq.ops.tcn",
    "temporal_order_loss": "fastseq.ops.vclr",
    "vava_loss": "fastseq.ops.sinkhorn",
    "vclr_loss": "fastseq.ops.vclr",
}
_SUBMODULES = ("compat", "nn", "ops", "video")

__all__ = [
    "__version__",
    "contrastive_idm",
    "dtw_cross",
    "dtw_path",
    "intra_nce",
    "lav_loss",
    "queue_nce",
    "scl_loss",
    "sinkhorn_alignment",
    "sinkhorn_plan",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_barycenter",
    "soft_dtw_cross",
    "soft_dtw_from_cost",
    "tcc_loss",
    "tcn_loss",
    "temporal_order_loss",
    "vava_loss",
    "vclr_loss",
]


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str):
        if name in _PUBLIC:
            value = getattr(importlib.import_module(_PUBLIC[name]), name)
            globals()[name] = value
            return value
        if name in _SUBMODULES:
            return importlib.import_module(f"fastseq.{name}")
        raise AttributeError(f"module 'fastseq' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PUBLIC, *_SUBMODULES])
