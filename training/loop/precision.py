"""The number format of a step: autocast, and the scale of the loss with fp16."""

from typing import TYPE_CHECKING

import torch

from training.support.command import UserError

if TYPE_CHECKING:
    from training.recipe.schema import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(cfg: "Config", device: torch.device) -> torch.dtype:
    """The dtype of ``train.precision`` on this device.

    "auto" is bf16 on a GPU that supports it, else fp32. Parameters, gradients and the optimizer's
    state are fp32 with every precision.

    Raises UserError for fp16 on a device without a gradient scaler.
    """
    name = cfg.train.precision
    if name == "auto":
        on_gpu = device.type == "cuda"
        bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if bf16 else "fp32"
    if name == "fp16" and device.type not in ("cuda", "cpu"):
        raise UserError(
            f"train.precision: fp16 needs a device with a gradient scaler (cuda or cpu), got "
            f"{device}; set train.precision=fp32 or bf16"
        )
    return DTYPES[name]


def precision_name(precision: torch.dtype) -> str:
    """The recipe's name of a dtype: "fp32", "bf16" or "fp16"."""
    return next(name for name, dtype in DTYPES.items() if dtype == precision)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Context in which layers compute in this precision; with fp32 it changes nothing."""
    # torch warns of other dtypes than fp16 and bf16, even if autocast is disabled.
    low = precision != torch.float32
    return torch.autocast(device.type, precision if low else torch.bfloat16, enabled=low)


def make_scaler(device: torch.device, precision: torch.dtype) -> torch.amp.GradScaler:
    """The scaler of the loss: with fp16 it starts at 65536, otherwise it is disabled.

    Gradients below about 6e-8 are zero in fp16, so the loss is multiplied by the scale before
    backward and the gradients are divided by it. A step with an overflow halves the scale, 2000
    steps without one double it (torch's defaults).
    """
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
