"""drop_dtw and otam as called by the user: checks, reductions, choice of backend."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.dispatch import choose_backend, constant_under_compile, unavailable
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.lengths import Lengths, nonempty_pairs, prepare_valid
from fastseq.ops.common.validate import FLOAT_DTYPES
from fastseq.ops.drop_dtw.options import DropDTWOptions
from fastseq.ops.drop_dtw.reference import drop_dtw_reference
from fastseq.ops.soft_dtw.costs import full_precision
from fastseq.ops.soft_dtw.op import _elsewhere, _reduce

# One for each function, so that errors name the one that was called.
FUSED = {
    op: FusedLoss(
        op,
        "fastseq.ops.drop_dtw",
        inputs=("cost", "drop_cost", "lengths_x?", "lengths_y?"),
        differentiable=2,
        options=DropDTWOptions,
        reference=drop_dtw_reference,
        stem=op,
    )
    for op in ("drop_dtw", "otam")
}


def drop_dtw(
    cost: Tensor,
    drop_cost: Tensor,
    *,
    gamma: float = 1.0,
    softmin: str = "logsumexp",
    contiguous: bool = True,
    exclusive: bool = True,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    reduction: str = "none",
    backend: str = "auto",
) -> Tensor:
    r"""Drop-DTW: each step matches frames, and other frames are dropped (Dvornik et al., 2021).

    The K rows are steps (or frames of another video), the S columns frames. Each frame is either
    matched to a step, at cost_ij, or dropped, at drop_cost_j. Each step matches at least one frame,
    and the steps keep their order. The value is the soft minimum over all such matchings::

        P_ij  = cost_ij + softmin(D_i-1,j-1, P_i,j-1)     frame j is matched to step i
        M_ij  = drop_cost_j + D_i,j-1                     frame j is dropped
        D_ij  = softmin(P_ij, M_ij),   D_0j = drop_cost_1 + ... + drop_cost_j,   D_i0 = +inf
        value = D of the last step and the last real frame
        softmin(a, b) = -gamma log(exp(-a / gamma) + exp(-b / gamma))

    With softmin="logsumexp" every matching counts once. With softmin="prob" the nested minima are
    those of the released code. That code divides the value by S; divide where you want its scale.

    Drop costs in the paper: a percentile of the costs of the video, or learned. The released code
    adds one row to the similarities of steps and frames, a percentile of them or the similarity of
    each frame to a learned background vector; the costs are -log softmax over the K + 1 rows.

    Args:
        cost: (N, K, S), or (K, S) for one pair: the cost of matching frame j to step i, of any
            sign; float64, float32, bfloat16 or float16. +inf forbids a match. NaN and -inf make the
            value NaN.
        drop_cost: (N, S), or (S,) for one pair: the cost of dropping each frame; one of the four
            dtypes. +inf: the frame must be matched. For one number per video:
            ``number[:, None].expand(N, S)``.
        gamma: smoothing, in the units of the costs; towards 0 the value becomes the cost of
            :func:`drop_dtw_path`. Default 1.0: the released code.
        softmin: "logsumexp", or "prob", sum_k p_k r_k with p = softmax(-r / gamma) (default of the
            released code), whose gradient may have negative entries.
        contiguous: True: the frames of a step are neighbours. False: frames between them may be
            dropped, P_ij = cost_ij + softmin(D_i-1,j-1, D_i,j-1).
        exclusive: True: a frame matches at most one step, so that K > S leaves no path. False: it
            may match consecutive steps, with P_i-1,j as a third term of P's minimum.
        lengths_x, lengths_y: (N,) integers: the number of real steps and of real frames, which come
            first. Padding of the costs is ignored, even if it contains NaN. Embeddings whose
            padding contains NaN must be set to 0 there before the costs are computed from them:
            0 times NaN is NaN in the gradient of their product.
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0. One
            pair without a path makes the sum and the mean +inf; to avoid that, repeat its frames
            (see Returns) or pass exclusive=False.
        backend: "auto", "numba" (CPU), "torch" (any device) or "reference" (dense; the only one
            that can be differentiated twice).

    Returns:
        (N,), or a scalar for one pair or with a reduction: float64 if an input is float64,
        otherwise float32. A pair without a path, for example one with K > S, has the value +inf and
        the gradient 0. (The released code repeats the frames of such pairs:
        ``cost.repeat_interleave(r, -1)`` and ``drop_cost.repeat_interleave(r, -1)`` with
        r = ceil(K / S).) A pair with a length 0 has the value 0 and the gradient 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it, or a backend other than
            "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> cost = torch.tensor([[0.1, 0.2, 5.0, 4.0], [4.0, 6.0, 5.0, 0.1]])
        >>> fastseq.drop_dtw(cost, torch.full((4,), 0.5), gamma=0.01)  # the third frame is dropped
        tensor(0.9000)
    """
    op = "drop_dtw"
    opts = DropDTWOptions.checked(op, gamma, softmin, contiguous, exclusive, reduction)
    cost, unbatched = _checked(op, cost)
    drop_cost = _checked_drops(op, drop_cost, cost, unbatched)
    wider = torch.promote_types(cost.dtype, drop_cost.dtype)
    cost, drop_cost = cost.to(wider), drop_cost.to(wider)
    real = _lengths(op, cost, lengths_x, lengths_y)
    return _value(op, opts, backend, cost, drop_cost, real, reduction, unbatched)


def otam(
    cost: Tensor,
    *,
    gamma: float = 0.1,
    softmin: str = "logsumexp",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    reduction: str = "none",
    backend: str = "auto",
) -> Tensor:
    r"""OTAM (Cao et al., CVPR 2020): each frame of y matches one of x, whose ends may be skipped.

    A column of zeros is added before and after the costs. With rows i = 1 to T and columns j = 0
    (the first added one) to S + 1 (the second)::

        R_1,0 = 0
        R_ij  = c_ij + softmin(R_i-1,j-1, R_i,j-1)               columns 1 to S
        R_ij  = softmin(R_i-1,j-1, R_i-1,j, R_i,j-1)             columns 0 and S + 1
        value = R_T,S+1

    A path descends by at most one row per column, and skips rows only at its ends, at no cost.
    A path whose first match lies below the first row counts twice (it leaves column 0 diagonally,
    or down and then right), and so does one whose last match lies above the last row: its value is
    gamma log 2 lower for each. Hard minima do not change by that.

    The value is not symmetric. Few-shot classifiers, with the cost 1 - cos, average both
    directions (with lengths_x and lengths_y exchanged in the second call)::

        (otam(cost) + otam(cost.mT)) / 2

    Args:
        cost: (N, T, S), or (T, S) for one pair, as in :func:`drop_dtw`. Padded embeddings that
            contain NaN must be set to 0 before costs are computed from them.
        gamma: smoothing, in the units of the cost. Default 0.1: the public few-shot codes.
        softmin, lengths_x, lengths_y, reduction, backend: as in :func:`drop_dtw`, where lengths_x
            are those of the T rows and lengths_y those of the S columns.

    Returns and raises the same as :func:`drop_dtw`. T and S may differ.

    Example:
        >>> import torch, fastseq
        >>> cost = torch.tensor([[9.0, 9.0], [0.0, 3.0], [3.0, 1.0], [9.0, 9.0]])
        >>> fastseq.otam(cost, gamma=1e-3).round(decimals=2)  # the second and the third row
        tensor(1.)
    """
    op = "otam"
    opts = DropDTWOptions.checked(op, gamma, softmin, reduction=reduction)._replace(up="ends")
    cost, unbatched = _checked(op, cost)
    real_x, real_y = _lengths(op, cost, lengths_x, lengths_y)
    num, _, columns = cost.shape
    if columns:  # a pair without columns stays empty
        cost = F.pad(cost, (1, 1))
        if real_y is not None:  # the second column of zeros comes after the last real one
            added = torch.arange(columns + 2, device=cost.device) == real_y[:, None] + 1
            cost = torch.where(added[:, None], 0, cost)
            real_y = torch.where(real_y > 0, real_y + 2, 0)
    drop_cost = cost.new_full((num, cost.shape[2]), torch.inf)
    return _value(op, opts, backend, cost, drop_cost, (real_x, real_y), reduction, unbatched)


def resolve_backend(op: str, requested: str, device_type: str) -> tuple[str, str]:
    """The backend for such a call, and why it was picked."""
    numba = _elsewhere("cpu", device_type) or unavailable("numba")
    return choose_backend(op, requested, {"numba": numba, "torch": None, "reference": None})


@constant_under_compile
def _resolve(op: str, requested: str, device_type: str) -> str:
    return resolve_backend(op, requested, device_type)[0]


def _value(op: str, opts, backend: str, cost, drop_cost, real, reduction: str, unbatched: bool):
    name = _resolve(op, backend, cost.device.type)
    values = FUSED[op](name, opts, cost, drop_cost, *real)
    num, rows, columns = cost.shape
    pairs = nonempty_pairs(num, rows, columns, real[0], real[1], cost.device)
    return _reduce(values, pairs, reduction, unbatched)


def _checked(op: str, cost: Tensor) -> tuple[Tensor, bool]:
    """(N, K, S) in float32 or float64, and whether the caller passed one pair."""
    _check_dtype(op, "cost", cost)
    if cost.dim() not in (2, 3):
        raise ValueError(
            f"{op}: cost must have shape (N, K, S), or (K, S) for one pair; got {tuple(cost.shape)}"
        )
    return full_precision(cost[None] if cost.dim() == 2 else cost), cost.dim() == 2


def _check_dtype(op: str, name: str, cost: Tensor) -> None:
    if not isinstance(cost, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(cost).__name__}")
    if cost.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: {name} must be float64, float32, bfloat16 or float16, got {cost.dtype}"
        )


def _checked_drops(op: str, drop_cost: Tensor, cost: Tensor, unbatched: bool) -> Tensor:
    num, _, frames = cost.shape
    wanted = (frames,) if unbatched else (num, frames)
    if isinstance(drop_cost, int | float):
        raise TypeError(
            f"{op}: drop_cost must be a torch.Tensor, got {type(drop_cost).__name__}; to fix: "
            f"torch.full({wanted}, {drop_cost}, device=cost.device)"
        )
    _check_dtype(op, "drop_cost", drop_cost)
    if drop_cost.shape != wanted:
        raise ValueError(
            f"{op}: drop_cost must have shape {wanted}, one cost for each frame, got "
            f"{tuple(drop_cost.shape)}; {_drops_fix(drop_cost, wanted)}"
        )
    if drop_cost.device != cost.device:
        raise ValueError(
            f"{op}: cost and drop_cost must be on one device, got {cost.device} and "
            f"{drop_cost.device}"
        )
    return full_precision(drop_cost[None] if unbatched else drop_cost)


def _drops_fix(drop_cost: Tensor, wanted: tuple[int, ...]) -> str:
    """What to do with drop costs of another shape."""
    shape, size = tuple(drop_cost.shape), ", ".join(map(str, wanted))
    if len(shape) == len(wanted) + 1:
        return (
            "the first argument is costs, (N, K, S) or (K, S), not embeddings; to fix: compute the "
            "costs of matching each frame to each step, and one drop cost for each frame"
        )
    fixes = []
    if len(wanted) == 2 and shape == wanted[:1]:
        fixes.append(f"to fix, for one cost per pair: drop_cost[:, None].expand({size})")
    padded = (1,) * (len(wanted) - len(shape)) + shape
    if all(have in (1, want) for have, want in zip(padded, wanted, strict=True)):
        fixes.append(f"to fix, for the same costs in each pair: drop_cost.expand({size})")
    return "; ".join(fixes) or "to fix: pass one cost for each column of cost"


def _lengths(op: str, cost: Tensor, lengths_x: Lengths, lengths_y: Lengths):
    num, rows, columns = cost.shape
    sides = ("_x", lengths_x, rows), ("_y", lengths_y, columns)
    real_x, real_y = (
        prepare_valid(op, side, lengths, None, num, size, cost.device)
        for side, lengths, size in sides
    )
    return real_x, real_y
