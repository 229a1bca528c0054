"""How Triton kernels are launched: what tensor cores multiply, for which GPU, on which device."""

import contextlib
from functools import lru_cache

import torch


def operands(dtype: torch.dtype) -> tuple[str, str]:
    """What the tensor cores multiply, and tl.dot's input_precision (half precision ignores it)."""
    if dtype == torch.bfloat16:
        return "bf16", "tf32"
    if dtype == torch.float16:
        return "fp16", "tf32"
    how = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return how, how


@lru_cache
def architecture(device: torch.device) -> int:
    """90 for capability 9.0; 0 for the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device's stream, which need not be the tensors' device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
