"""Checks of user input shared by two or more ops. Errors state what was passed and expected."""

import numbers
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastseq.ops.common.fused import transforms_active

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")


def check_embeddings(op: str, name: str, z: Tensor) -> None:
    """A floating tensor of shape (N, T, D) or (T, D), D >= 1."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(z).__name__}")
    if z.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: {name} must be float64, float32, bfloat16 or float16, got {z.dtype}"
        )
    shape = z.shape
    if len(shape) not in (2, 3) or shape[-1] == 0:
        raise ValueError(
            f"{op}: {name} must have shape (N, T, D), or (T, D) for one sequence, with D >= 1; "
            f"got {tuple(shape)}"
        )


def check_pair(op: str, name1: str, z1: Tensor, name2: str, z2: Tensor) -> None:
    """Two embedding tensors of the same number of sequences, channels and device."""
    check_embeddings(op, name1, z1)
    check_embeddings(op, name2, z2)
    shape1, shape2 = z1.shape, z2.shape
    if shape1 != shape2 and (
        len(shape1) != len(shape2) or shape1[-1] != shape2[-1] or shape1[:-2] != shape2[:-2]
    ):
        raise ValueError(
            f"{op}: {name1} and {name2} must agree in N and D, "
            f"got {tuple(shape1)} and {tuple(shape2)}"
        )
    if z1.device != z2.device:
        raise ValueError(
            f"{op}: {name1} and {name2} must be on one device, got {z1.device} and {z2.device}"
        )


def _is_number(value: object) -> bool:
    # isinstance(value, numbers.Real) takes ten times as long.
    if type(value) is float or type(value) is int:
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_positive(op: str, name: str, value: float) -> float:
    """A positive number within float32's range, returned as a Python float."""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{op}: {name} must be a Python number, got a Tensor; pass float({name}) "
            f"(gradients with respect to {name} are not computed)"
        )
    if not _is_number(value):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    # One comparison rejects NaN too, and torch.compile can trace it.
    if not 1e-30 <= value <= 1e30:
        raise ValueError(
            f"{op}: {name} must be finite (1e-30 to 1e30) and greater than 0, got {value}"
        )
    return float(value)


def check_scalar(
    op: str, name: str, value: float | Tensor, device: torch.device
) -> tuple[float, Tensor | None]:
    """An option that may be a 0-dim tensor. Returns the number and None, or 1 and the tensor on
    ``device``. The caller checks the number.

    The value of a tensor is checked on the CPU only, and not while torch.compile traces: reading it
    from a GPU would wait for the GPU. Kernels return NaN for values that are not positive and
    finite. A number that torch.compile traces as a symbol becomes a tensor too: as a constant
    passed to a custom operator, each value would be compiled separately.
    """
    if not isinstance(value, Tensor):
        if not _has_symbol(value):
            return value, None
        # A product, since torch.compile makes a tensor only of a float used in arithmetic.
        wide = torch.float32 if device.type == "mps" else torch.float64
        one = torch.ones((), dtype=wide, device=device)
        return 1.0, one * check_positive(op, name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: {name} must be a number or a tensor of float64, float32, bfloat16 or float16, "
            f"got {value.dtype}"
        )
    if value.dim() != 0:
        raise ValueError(
            f"{op}: {name} must be a number or a tensor of shape (), got {tuple(value.shape)}"
            + (f"; to fix: {name}.squeeze()" if value.numel() == 1 else "")
        )
    if value.device.type == "cpu":
        if not (torch.compiler.is_compiling() or transforms_active()):
            check_positive(op, name, value.item())
    elif value.device != device:
        places = "the CPU" if device.type == "cpu" else f"{device} or the CPU"
        raise ValueError(
            f"{op}: {name} must be on {places} for embeddings on {device}, got {value.device}"
        )
    if value.device == device:
        return 1.0, value
    # A copy that is not pinned: later writes by the caller do not reach this call.
    return 1.0, value.clone().to(device, non_blocking=True)


def _has_symbol(value: object) -> bool:
    """Whether torch.compile traces the number as one that changes from call to call."""
    if not torch.compiler.is_compiling() or isinstance(value, bool):
        return False
    if not isinstance(value, float | int):
        return False
    # Not imported at the top: it takes longer than this whole package.
    from torch.fx.experimental import symbolic_shapes

    # Before torch 2.8 this attribute is missing, and every number is a constant.
    if not hasattr(symbolic_shapes, "has_static_value"):
        return False
    return not symbolic_shapes.has_static_value(value)


def positive_or_nan(value: Tensor | None, number: float, dtype: torch.dtype) -> Tensor | float:
    """The number, or the value of a tensor from :func:`check_scalar`: NaN unless that is positive
    and finite."""
    if value is None:
        return number
    return torch.where((value > 0) & (value < torch.inf), value, torch.nan).to(dtype)


def check_nonnegative(op: str, name: str, value: float, below: float | None = None) -> float:
    """Zero or a number that :func:`check_positive` accepts, less than ``below``, as a float."""
    if not _is_number(value):
        raise TypeError(f"{op}: {name} must be a Python number, got {type(value).__name__}")
    top = 1e30 if below is None else below
    if not 0 <= value <= top or value == below:
        wanted = "finite and at least 0" if below is None else f"at least 0 and below {below:g}"
        if below is None and top < value < float("inf"):
            wanted = f"at most {top:g}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {value}")
    return float(value)


def check_bool(op: str, name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")


def renamed(op: str, old: str, old_value: str, new: str, value: str, default: str) -> str:
    """The value of an option that the caller may have passed under its former name, ``old``."""
    if value != default:
        raise TypeError(f"{op}: {old} is the former name of {new}; pass {new} alone")
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"{op}: {old}= is now called {new}=, and version 0.3 drops the former name; "
            f"to fix: {new}={old_value!r}",
            DeprecationWarning,
            stacklevel=3,
        )
    return old_value


def check_group(op: str, group: Any) -> str | None:
    """The name of a process group; None for no group, or for one of a single process."""
    if group is None:
        return None
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{op}: group must be a process group of torch.distributed (dist.group.WORLD for all "
            f"ranks, mesh.get_group() of a device mesh) or None, got {type(group).__name__}"
        )
    return None if group.size() == 1 else group.group_name
