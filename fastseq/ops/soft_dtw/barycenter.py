"""soft_dtw_barycenter: the average of sequences under soft-DTW."""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.lengths import Lengths, prepare_valid, valid_mask
from fastseq.ops.common.validate import check_choice, check_embeddings, check_nonnegative
from fastseq.ops.soft_dtw.costs import full_precision
from fastseq.ops.soft_dtw.cross import soft_dtw_cross
from fastseq.ops.soft_dtw.options import COSTS, SoftDTWOptions

_OP = "soft_dtw_barycenter"


def soft_dtw_barycenter(
    x: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[float] | None = None,
    *,
    length: int | None = None,
    init: Tensor | None = None,
    lengths: Lengths = None,
    gamma: float = 1.0,
    cost: str = "sqeuclidean",
    bandwidth: int | None = None,
    warp_penalty: float = 0.0,
    max_iter: int = 50,
    tol: float = 1e-3,
    backend: str = "auto",
) -> Tensor:
    r"""The average of sequences under soft-DTW (Cuturi and Blondel, 2017, section 3.1).

    A local minimum over z (S, D), by L-BFGS with a line search, of::

        sum_k w_k soft_dtw(z, x_k) / sum_k w_k

    Features that the sequences share at different times stay sharp; a mean of frames smears them.
    Each iteration costs about one value and gradient of :func:`fastseq.soft_dtw_cross`.

    Args:
        x: (N, T, D), or a list of (T_k, D); float64, float32, bfloat16 or float16.
        weights: (N,) numbers of at least 0, not all 0. Default: equal weights.
        length: S, the number of frames of the average, at least 1. Default: that of the longest
            sequence.
        init: (S, D), the start of the search; instead of ``length``. Default: the weighted mean of
            the sequences, each stretched evenly to S frames.
        lengths: (N,) integers, for x (N, T, D): the number of real frames at the start of each
            sequence. Sequences without real frames are ignored.
        gamma, cost, bandwidth, warp_penalty, backend: as in :func:`fastseq.soft_dtw_cross`. A
            larger gamma makes the average smoother; default 1.0 as there.
        max_iter: maximum number of iterations; 0 returns ``init``. Default 50, as in tslearn.
        tol: the search stops when no element of the gradient exceeds ``tol`` times the largest
            element at the start. Default 1e-3.

    Returns:
        (S, D), float64 for float64 inputs, otherwise float32, on the device of x. It has no
        gradient.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value, NaN or infinity in
            a real frame, no real frame at all. RuntimeError: as :func:`fastseq.soft_dtw_cross`.

    Example:
        >>> import torch, fastseq
        >>> early, late = torch.zeros(2, 9, 1)
        >>> early[2], late[5] = 4.0, 4.0
        >>> fastseq.soft_dtw_barycenter([early, late], gamma=0.1).max() > 3.5  # their mean has 2
        tensor(True)
    """
    if transforms_active():
        raise RuntimeError(f"{_OP}: a search does not work inside torch.func transforms")
    check_choice(_OP, "cost", cost, COSTS)
    SoftDTWOptions.checked(_OP, gamma, bandwidth, cost, warp_penalty=warp_penalty)
    tol = check_nonnegative(_OP, "tol", tol)
    max_iter = _integer("max_iter", max_iter, 0)
    with torch.no_grad():
        x, real = _sequences(x, lengths)
        share = _shares(weights, real)
        z = _start(x, real, share, length, init)

    options = {"gamma": gamma, "cost": cost, "bandwidth": bandwidth, "warp_penalty": warp_penalty}

    def objective() -> Tensor:
        values = soft_dtw_cross(z[None], x, lengths_y=real, backend=backend, **options)
        return (values[0] * share).sum()

    with torch.inference_mode(False), torch.enable_grad():
        x, real, share = x.clone(), real.clone(), share.clone()  # leave inference mode
        z = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(), z)
        search = torch.optim.LBFGS(
            [z],
            max_iter=max_iter,
            tolerance_grad=tol * slope.abs().max().item(),
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            value = objective()
            value.backward()
            return value

        if max_iter:
            search.step(closure)
    return z.detach()


def _sequences(x, lengths: Lengths) -> tuple[Tensor, Tensor]:
    """(N, T, D) in float32 or float64, padding 0, and real lengths (N,)."""
    if isinstance(x, Tensor):
        check_embeddings(_OP, "x", x)
        if x.dim() != 3:
            raise ValueError(
                f"{_OP}: x must have shape (N, T, D), or be a list of (T, D); got {tuple(x.shape)}"
            )
        real = prepare_valid(_OP, "", lengths, None, *x.shape[:2], x.device)
    else:
        if not isinstance(x, Sequence) or not x:
            what = "an empty list" if isinstance(x, Sequence) else type(x).__name__
            raise TypeError(f"{_OP}: x must be a tensor or a list of tensors (T, D), got {what}")
        if lengths is not None:
            raise ValueError(f"{_OP}: lengths apply to a tensor x (N, T, D), but x is a list")
        for k, one in enumerate(x):
            check_embeddings(_OP, f"x[{k}]", one)
            if one.dim() != 2 or one.shape[1] != x[0].shape[1] or one.device != x[0].device:
                raise ValueError(
                    f"{_OP}: the sequences must have shapes (T, D) with one D, on one device; got "
                    f"{tuple(x[0].shape)} on {x[0].device} and {tuple(one.shape)} on {one.device}"
                )
        real = torch.tensor([len(one) for one in x], device=x[0].device)
        wide = functools.reduce(torch.promote_types, (one.dtype for one in x))
        x = torch.nn.utils.rnn.pad_sequence([one.detach().to(wide) for one in x], batch_first=True)
    if real is None:
        real = torch.full((x.shape[0],), x.shape[1], device=x.device)
    mask = valid_mask(real, *x.shape[:2], x.device)
    x = torch.where(mask[..., None], full_precision(x.detach()), 0)
    if not x.isfinite().all():
        raise ValueError(f"{_OP}: x has NaN or infinity in a real frame; expected finite numbers")
    if not mask.any():
        raise ValueError(f"{_OP}: x has no real frame, got shape {tuple(x.shape)}")
    return x, real


def _shares(weights, real: Tensor) -> Tensor:
    """Weights as (N,) float64 with sum 1, and 0 for sequences without frames."""
    if weights is None:
        weights = torch.ones(real.shape)
    try:
        weights = torch.as_tensor(weights, dtype=torch.float64, device=real.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{_OP}: weights must be numbers, got {weights!r}") from None
    if weights.shape != real.shape:
        raise ValueError(
            f"{_OP}: weights must have shape ({len(real)},), one for each sequence, got "
            f"{tuple(weights.shape)}"
        )
    wrong = [w for w in weights.tolist() if not 0 <= w < float("inf")]
    if wrong:
        raise ValueError(f"{_OP}: weights must be finite and at least 0, got {wrong[0]}")
    weights = torch.where(real > 0, weights, 0)
    if not weights.any():
        raise ValueError(f"{_OP}: weights must not be 0 for all sequences with real frames")
    weights = weights / weights.max()  # their sum cannot overflow
    return weights / weights.sum()


def _start(x: Tensor, real: Tensor, share: Tensor, length, init) -> Tensor:
    """(S, D): the start of the search."""
    if init is not None:
        if length is not None:
            raise ValueError(f"{_OP}: pass length or init, not both")
        check_embeddings(_OP, "init", init)
        if init.dim() != 2 or init.shape[0] == 0 or init.shape[1] != x.shape[2]:
            raise ValueError(
                f"{_OP}: init must have shape (S, {x.shape[2]}), S at least 1, got "
                f"{tuple(init.shape)}"
            )
        if not init.isfinite().all():
            raise ValueError(f"{_OP}: init has NaN or infinity; expected finite numbers")
        return init.detach().to(x)
    frames = int(real.max()) if length is None else _integer("length", length, 1)
    # Position of the average's frames in each sequence.
    place = torch.linspace(0, 1, frames, dtype=torch.float64, device=x.device)
    place = place * (real[:, None] - 1).clamp(min=0)
    before = place.floor().long()
    after = torch.minimum(before + 1, (real[:, None] - 1).clamp(min=0))
    low, high = (x.gather(1, t[..., None].expand(-1, -1, x.shape[2])) for t in (before, after))
    stretched = torch.lerp(low.double(), high.double(), (place - before)[..., None])
    return (stretched * share[:, None, None]).sum(0).to(x.dtype)


def _integer(name: str, value: int, least: int) -> int:
    try:
        if isinstance(value, bool | Tensor):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{_OP}: {name} must be an integer, got {type(value).__name__}") from None
    if value < least:
        raise ValueError(f"{_OP}: {name} must be at least {least}, got {value}")
    return value
