"""Lengths, masks and timestamps: validated once, passed on in one form."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INT_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


# How a caller states the number of real frames of each sequence, and the length of each video.
Lengths = Tensor | Sequence[int] | int | None
Durations = Tensor | Sequence[float] | float | None


def prepare_valid(
    op: str,
    suffix: str,
    lengths: Lengths,
    valid: Tensor | None,
    num: int,
    frames: int,
    device: torch.device,
) -> Tensor | None:
    """Normalise lengths or valid to one form: None (all frames real), int64 lengths (N,) or a bool
    mask (N, T).

    Lists and CPU tensors of lengths are checked and copied to ``device``. The host never reads
    lengths and masks that are on the GPU already (kernels clamp lengths to [0, T]).
    """
    if lengths is not None and valid is not None:
        raise ValueError(f"{op}: pass lengths{suffix} or valid{suffix}, not both")
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            what = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
            raise TypeError(
                f"{op}: valid{suffix} must be a bool tensor (True = real frame), got {what}"
            )
        if valid.dim() == 1 and num == 1:
            valid = valid[None]
        if valid.shape != (num, frames):
            raise ValueError(
                f"{op}: valid{suffix} must have shape {(num, frames)}, got {tuple(valid.shape)}"
            )
        return valid.to(device)
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        try:
            lengths = integers(lengths)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{op}: lengths{suffix} must be integers, got {lengths!r}") from None
        if lengths.numel() == 0:
            lengths = lengths.long()
    if lengths.dtype not in INT_DTYPES:
        raise TypeError(f"{op}: lengths{suffix} must be integers, got {lengths.dtype}")
    if lengths.dim() == 0 and num == 1:
        lengths = lengths[None]
    if lengths.shape != (num,):
        raise ValueError(
            f"{op}: lengths{suffix} must have shape ({num},), got "
            f"{'a single number' if lengths.dim() == 0 else tuple(lengths.shape)}"
        )
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        for place, length in enumerate(lengths.tolist()):
            if not 0 <= length <= frames:
                raise ValueError(
                    f"{op}: lengths{suffix} must lie between 0 and T = {frames}, got {length} "
                    f"for sequence {place}"
                )
    # A copy: the caller may change lengths in place before the backward.
    return lengths.to(device=device, dtype=torch.int64, copy=lengths.device.type == "cpu")


def integers(lengths: Sequence[int] | int) -> Tensor:
    try:
        return torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):  # a list of numpy's unsigned numbers
        return torch.as_tensor(np.asarray(lengths))


def valid_mask(valid: Tensor | None, num: int, frames: int, device: torch.device) -> Tensor:
    """The (N, T) bool mask of any form that :func:`prepare_valid` returns."""
    if valid is None:
        return torch.ones(num, frames, dtype=torch.bool, device=device)
    if valid.dtype == torch.bool:
        return valid
    return torch.arange(frames, device=device) < valid[:, None]


def real_first(valid: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(order, lengths) of any form that :func:`prepare_valid` returns, for code that takes lengths.

    For a mask: frame numbers (N, T), the real frames first in their original order, and the number
    of real frames. The order is None for lengths and for None, which need no reordering.
    """
    if valid is None or valid.dtype != torch.bool:
        return None, valid
    return (~valid).byte().argsort(stable=True, dim=1), valid.sum(1)


def reorder(z: Tensor, order: Tensor | None, dim: int = 1) -> Tensor:
    """Frames of z (N, ..., T, ...), along dimension ``dim``, in the order of (N, T)."""
    if order is None:
        return z
    shape = [1] * z.dim()
    shape[0], shape[dim] = order.shape
    return z.gather(dim, order.view(shape).expand_as(z))


def compact(
    z: Tensor, t: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Embeddings (N, T, D) and times with the real frames first, and the number of real frames."""
    order, lengths = real_first(valid)
    if order is not None:
        z, t = reorder(z, order), order if t is None else reorder(t, order)
    return z, t, lengths


def nonempty_pairs(
    num: int,
    frames_x: int,
    frames_y: int,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Which pairs have frames on both sides, (N,); None: all pairs."""
    if frames_x == 0 or frames_y == 0:
        return torch.zeros(num, dtype=torch.bool, device=device)
    parts = [lengths > 0 for lengths in (lengths_x, lengths_y) if lengths is not None]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] & parts[1]


def prepare_times(
    op: str, name: str, t: Tensor | None, num: int, frames: int, device: torch.device
) -> Tensor | None:
    """Timestamps as an (N, T) tensor; (T,) is shared by all sequences."""
    if t is None:
        return None
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be integers or floats, got {t.dtype}")
    if t.shape not in ((frames,), (num, frames)):
        raise ValueError(
            f"{op}: {name} must have shape ({frames},) or {(num, frames)}, got {tuple(t.shape)}"
        )
    if t.dtype in (torch.float16, torch.bfloat16):
        t = t.float()
    elif t.dtype not in (torch.float32, torch.float64, torch.int32):
        t = t.long()
    t = t.detach()
    # Most calls need neither conversion, and each takes microseconds.
    if t.device != device:
        t = t.to(device)
    return t if t.dim() == 2 else t.expand(num, frames)


def prepare_duration(
    op: str,
    name: str,
    duration: Durations,
    num: int,
    device: torch.device,
) -> Tensor | None:
    """Lengths of whole videos, in the units of their times, as an (N,) tensor; a single number
    applies to all videos.

    As with lengths, the host never reads values that are on the GPU already.
    """
    if duration is None:
        return None
    if not isinstance(duration, Tensor):
        try:
            if isinstance(duration, bool | np.bool_):
                raise TypeError
            duration = torch.as_tensor(duration, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{op}: {name} must be numbers, got {duration!r}") from None
    if duration.is_complex() or duration.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be integers or floats, got {duration.dtype}")
    if duration.shape not in ((), (num,)):
        raise ValueError(f"{op}: {name} must have shape ({num},), got {tuple(duration.shape)}")
    if duration.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = [d for d in duration.reshape(-1).tolist() if not 0 < d < float("inf")]
        if wrong:
            raise ValueError(f"{op}: {name} must be finite and greater than 0, got {wrong[0]}")
    # A copy: the caller may change it in place before the backward.
    copy = duration.device.type == "cpu"
    return duration.detach().to(device=device, copy=copy).expand(num)


def shift_times(
    t1: Tensor, t2: Tensor, m1: Tensor, m2: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Times in ``dtype``, ready to be subtracted from each other; padded entries become 0.

    Each pair's earliest real time is subtracted in a type that represents the span, then the result
    is converted: nanosecond integers or epoch seconds lose nothing that way. Times that need no
    conversion stay as they are, since a subtraction would round them. One NaN makes all times of
    its pair NaN.
    """
    kind = torch.promote_types(t1.dtype, t2.dtype)
    kind = torch.promote_types(kind, dtype) if kind.is_floating_point else torch.int64
    top = torch.finfo(kind).max if kind.is_floating_point else torch.iinfo(kind).max
    both = torch.cat([t1.to(kind), t2.to(kind)], 1)
    mask = torch.cat([m1, m2], 1)
    if both.shape[1] == 0:
        return t1.to(dtype), t2.to(dtype)
    start = torch.where(mask, both, top).amin(1, keepdim=True)
    if kind == dtype:
        start = start - start  # 0 or NaN
    both = torch.where(mask, both - start, 0).to(dtype)
    return both[:, : t1.shape[1]], both[:, t1.shape[1] :]
