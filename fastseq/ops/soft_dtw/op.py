"""Soft-DTW as called by the user: checks, costs, reductions, choice of backend."""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseq.ops.common import nvrtc
from fastseq.ops.common.dispatch import (
    choose_backend,
    constant_under_compile,
    no_autocast,
    unavailable,
)
from fastseq.ops.common.fused import refuse_transforms
from fastseq.ops.common.lengths import (
    Lengths,
    nonempty_pairs,
    prepare_valid,
    real_first,
    reorder,
)
from fastseq.ops.common.validate import FLOAT_DTYPES, check_pair
from fastseq.ops.soft_dtw import autograd
from fastseq.ops.soft_dtw.costs import cosine_frames, full_precision, softmax_cost
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.soft_dtw.per_pair import Bandwidth, Gamma, split_bandwidth, split_gamma
from fastseq.ops.soft_dtw.reference import dense_cost, soft_dtw_reference


def soft_dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Gamma = 1.0,
    cost: str = "sqeuclidean",
    temperature: float = 0.1,
    softmin: str = "logsumexp",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    bandwidth: Bandwidth = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
    divergence: bool = False,
    reduction: str = "none",
    backend: str = "auto",
) -> Tensor:
    r"""Soft dynamic time warping between each x and its y (Cuturi and Blondel, 2017).

    The soft minimum over all monotone paths from the first pair of frames to the last one::

        c_ij  = ||x_i - y_j||^2                                 or  1 - cos(x_i, y_j)
        R_ij  = c_ij + softmin(R_i-1,j-1, R_i-1,j, R_i,j-1)     R of the first pair: its cost
        value = R of the last pair of real frames
        softmin(a, b, c) = -gamma log(exp(-a / gamma) + exp(-b / gamma) + exp(-c / gamma))

    Memory grows with T + S and with T S / tile size; no T x S matrix, except with
    ``backend="reference"``. The value may be negative: all paths count, not only the best one.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. T and S may differ.
        gamma: smoothing, in the units of the cost; for gamma towards 0 this becomes hard DTW.
            Default 1.0: the paper and the packages that follow it. Used in practice: 1e-4 to 1e3. A
            number, or a tensor (N,) with one for each pair, or (). No gradient is computed for it.
        cost: "sqeuclidean"; "cosine", 1 - cos (a frame of norm below 1e-12 costs 1 against every
            frame and has no gradient); or "softmax", -log softmax_i(cos(x_i, y_j) / temperature),
            over the real frames i of x (GTA, AE2). Others: :func:`soft_dtw_from_cost`.
        temperature: of cost="softmax"; other costs ignore it. Default 0.1 (GTA and AE2's code).
        softmin: the soft minimum of the recursion: "logsumexp", as above; "prob", sum_k p_k r_k
            with p = softmax(-r / gamma) (GTA, AE2, Drop-DTW), whose E may have negative entries;
            or "sparse", min over probabilities q of sum_k q_k r_k - gamma / 2 sum_k q_k (1 - q_k)
            (Mensch and Blondel, 2018, shifted to be r for a single r), whose E is mostly 0. The
            two latter need fixed ends.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Other
            frames are removed: the real frames on either side become neighbours. Padding is
            ignored, even if it contains NaN.
        bandwidth: Sakoe-Chiba band r >= 0, in (real) frames: pairs with -r <= j - i <= (s - t) + r
            for real lengths s >= t, mirrored for s < t, so that a path always exists. Default:
            none. An integer, or (N,) integers, one for each pair.
        begin: "fixed", or "free": a path may begin with the first frame of x and any frame of y.
            Then R_0j = c_0j + softmin(0, R_0,j-1 + warp_penalty).
        end: "fixed", or "free": a path may end with the last real frame of x and any real frame of
            y; value = softmin of R over that row. All of x is always used, so both together search
            for x in y (subsequence DTW). Free ends do not move the band.
        warp_penalty: added to the cost of each step that is not diagonal, 0 or more, in the units
            of the cost; beginning late or ending early costs nothing. Default 0: plain DTW.
        divergence: value(x, y) - (value(x, x) + value(y, y)) / 2, which is 0 for y = x (Blondel,
            Mensch and Vert, 2021). Not with free ends, nor with cost="softmax".
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto", "numba" (CPU), "cuda" (NVIDIA GPU), "torch" (any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        (N,), or a scalar for one pair or with a reduction: float64 for float64 inputs, otherwise
        float32. Gradients have the dtypes of x and y. A pair with a length 0 has value 0 and
        gradient 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it (it is never replaced), or
            a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> y = torch.tensor([[0.0], [2.0], [2.0], [2.0]])
        >>> round(fastseq.soft_dtw(x, y, gamma=0.01).item(), 4)
        0.989
    """
    op = "soft_dtw"
    check_pair(op, "x", x, "y", y)
    unbatched = x.dim() == 2
    opts, per_pair = _options(
        op,
        1 if unbatched else x.shape[0],
        x.device,
        gamma,
        bandwidth,
        cost=cost,
        divergence=divergence,
        reduction=reduction,
        begin=begin,
        end=end,
        warp_penalty=warp_penalty,
        softmin=softmin,
        temperature=temperature,
    )
    name = _resolve(op, backend, x.device.type, softmin)
    x, y, bias, real_x, real_y, _ = _embeddings(
        op, x, y, cost, temperature, (lengths_x, lengths_y), (valid_x, valid_y), name
    )
    num, frames_x, frames_y = x.shape[0], x.shape[1], y.shape[1]
    pairs = nonempty_pairs(num, frames_x, frames_y, real_x, real_y, x.device)

    def run(a: Tensor, b: Tensor, lengths_a: Tensor | None, lengths_b: Tensor | None) -> Tensor:
        return autograd.FUSED[op](name, opts, a, b, None, bias, lengths_a, lengths_b, *per_pair)

    values = run(x, y, real_x, real_y)
    if divergence:
        # Drop pairs with an empty side, also from the values of the other side with itself.
        if pairs is not None:
            real_x = torch.where(pairs, frames_x if real_x is None else real_x, 0)
            real_y = torch.where(pairs, frames_y if real_y is None else real_y, 0)
        own = run(x, x, real_x, real_x) + run(y, y, real_y, real_y)
        values = values - own / 2
    return _reduce(values, pairs, reduction, unbatched)


def soft_dtw_from_cost(
    cost: Tensor,
    *,
    gamma: Gamma = 1.0,
    softmin: str = "logsumexp",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    bandwidth: Bandwidth = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
    reduction: str = "none",
    backend: str = "auto",
) -> Tensor:
    r"""Soft dynamic time warping of costs that the caller has computed; see :func:`soft_dtw`.

    Args:
        cost: (N, T, S), or (T, S) for one pair: the cost of pairing frame i of x with frame j of
            y, of any sign; float64, float32, bfloat16 or float16. Its gradient is the expected
            alignment. +inf forbids a pair, whose gradient is then 0. If no path is left, the value
            is +inf and the whole gradient 0. NaN and -inf make the value NaN. Padded embeddings
            that contain NaN must be set to 0 before costs are computed from them.
        gamma, softmin, lengths_x, lengths_y, valid_x, valid_y: as in :func:`soft_dtw`.
        bandwidth, begin, end, warp_penalty, reduction, backend: as in :func:`soft_dtw`.

    Returns and raises the same as :func:`soft_dtw`.

    Example:
        >>> import torch, fastseq
        >>> cost = torch.cdist(torch.randn(2, 40, 8), torch.randn(2, 50, 8), p=1)
        >>> fastseq.soft_dtw_from_cost(cost, gamma=0.1, lengths_x=[40, 25]).shape
        torch.Size([2])
    """
    op = "soft_dtw_from_cost"
    if not isinstance(cost, Tensor):
        raise TypeError(f"{op}: cost must be a torch.Tensor, got {type(cost).__name__}")
    if cost.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: cost must be float64, float32, bfloat16 or float16, got {cost.dtype}"
        )
    if cost.dim() not in (2, 3):
        raise ValueError(
            f"{op}: cost must have shape (N, T, S), or (T, S) for one pair; got {tuple(cost.shape)}"
        )
    unbatched = cost.dim() == 2
    cost = full_precision(cost[None] if unbatched else cost)
    num, frames_x, frames_y = cost.shape
    ends = {"begin": begin, "end": end, "warp_penalty": warp_penalty, "softmin": softmin}
    opts, per_pair = _options(op, num, cost.device, gamma, bandwidth, reduction=reduction, **ends)
    orders, (real_x, real_y) = _real_first(
        op, cost.shape, cost.device, (lengths_x, lengths_y), (valid_x, valid_y)
    )
    for dim, order in enumerate(orders, 1):
        cost = reorder(cost, order, dim)
    name = _resolve(op, backend, cost.device.type, softmin)
    values = autograd.FUSED[op](name, opts, None, None, cost, None, real_x, real_y, *per_pair)
    pairs = nonempty_pairs(num, frames_x, frames_y, real_x, real_y, cost.device)
    return _reduce(values, pairs, reduction, unbatched)


def soft_dtw_alignment(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Gamma = 1.0,
    cost: str = "sqeuclidean",
    temperature: float = 0.1,
    softmin: str = "logsumexp",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    bandwidth: Bandwidth = None,
    begin: str = "fixed",
    end: str = "fixed",
    warp_penalty: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    r"""Expected alignment of :func:`soft_dtw`: E_ij, the probability that a path pairs i with j.

    Paths are weighted by exp(-cost of the path / gamma); E is the gradient of the value with
    respect to the costs. Rows and columns of real frames sum to at least 1 (columns that a free
    begin or end leaves out: to less), those of padding to 0. With ``softmin="prob"`` E is the
    gradient but no probability: entries may be negative. E is the whole T x S matrix: the one
    exception to memory that grows with T + S.

    Args:
        x, y, gamma, cost, temperature, softmin, lengths_x, lengths_y, valid_x, valid_y, bandwidth,
            begin, end, warp_penalty, backend: as in :func:`soft_dtw`. Only ``backend="reference"``
            returns an E that can be differentiated.

    Returns:
        (N, T, S), or (T, S) for one pair: float64 for float64 inputs, otherwise float32.

    Raises:
        As :func:`soft_dtw`. RuntimeError when E is differentiated with another backend.

    Example:
        >>> import torch, fastseq
        >>> x = torch.arange(3.0)[:, None]
        >>> fastseq.soft_dtw_alignment(x, x, gamma=0.01).round(decimals=2)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    op = "soft_dtw_alignment"
    check_pair(op, "x", x, "y", y)
    unbatched = x.dim() == 2
    num = 1 if unbatched else x.shape[0]
    rest = {"begin": begin, "end": end, "warp_penalty": warp_penalty, "softmin": softmin}
    rest |= {"cost": cost, "temperature": temperature}
    opts, per_pair = _options(op, num, x.device, gamma, bandwidth, **rest)
    name = _resolve(op, backend, x.device.type, softmin)
    x, y, bias, real_x, real_y, orders = _embeddings(
        op, x, y, cost, temperature, (lengths_x, lengths_y), (valid_x, valid_y), name
    )
    constants = real_x, real_y, *per_pair
    if name == "reference":
        expected = _reference_alignment(x, y, bias, constants, opts)
    else:
        refuse_transforms(op, name)
        expected = autograd.alignment(x, y, bias, constants, name, opts)
    for dim, order in enumerate(orders, 1):  # frames return to their original places
        expected = reorder(expected, None if order is None else order.argsort(1), dim)
    return expected[0] if unbatched else expected


def resolve_backend(
    requested: str, device_type: str, op: str = "soft_dtw", softmin: str = "logsumexp"
) -> tuple[str, str]:
    """The backend for a call on such a device, and why it was picked. Depends only on the arguments
    and the environment."""
    why_not = {
        "cuda": _elsewhere("cuda", device_type) or unavailable("cuda") or _no_kernels(softmin),
        "numba": _elsewhere("cpu", device_type) or unavailable("numba"),
        "torch": None,
        "reference": None,
    }
    return choose_backend(op, requested, why_not)


def _elsewhere(home: str, device_type: str) -> str | None:
    if device_type == home:
        return None
    where = "a CUDA device" if home == "cuda" else "the CPU"
    return f"the tensors are on {device_type}; to fix: move them to {where}"


def _no_kernels(softmin: str) -> str | None:
    """Why the kernels of a soft minimum cannot run. Only run time compiles "prob" and "sparse": in
    the extension they would triple its size."""
    possible, reason, fix = (True, "", "") if softmin == "logsumexp" else nvrtc.status()
    if possible:
        return None
    return (
        f"softmin={softmin!r} needs kernels compiled at run time, which is not possible: {reason}; "
        f"to fix: {fix}"
    )


@constant_under_compile
def _resolve(op: str, requested: str, device_type: str, softmin: str = "logsumexp") -> str:
    name, reason = resolve_backend(requested, device_type, op, softmin)
    if name == "torch" and device_type == "cuda" and reason.startswith("preferred"):
        _warn_slow(reason)
    return name


@functools.cache
def _warn_slow(reason: str) -> None:
    warnings.warn(
        f"soft_dtw runs as many small PyTorch kernels, which is slow on a GPU ({reason})",
        stacklevel=4,
    )


def _embeddings(
    op: str, x: Tensor, y: Tensor, cost: str, temperature: float, lengths, valid, name: str
):
    """Checked inputs in the form of backend ``name``: batched, float32 or float64, cost squared
    Euclidean plus a bias of each column (None: 0), real frames first; and the orders that brought
    the real frames first."""
    if x.dim() == 2:
        x, y = x[None], y[None]
    if x.dtype != y.dtype:
        wider = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wider), y.to(wider)
    x, y = full_precision(x), full_precision(y)
    sizes = x.shape[0], x.shape[1], y.shape[1]
    orders, (real_x, real_y) = _real_first(op, sizes, x.device, lengths, valid)
    x, y = reorder(x, orders[0]), reorder(y, orders[1])
    if cost == "cosine":
        x, y = cosine_frames(x, real_x, 0), cosine_frames(y, real_y, 1)
    bias = None
    if cost == "softmax":
        x, y, bias = softmax_cost(x, y, real_x, real_y, temperature, name)
    return x, y, bias, real_x, real_y, orders


def _real_first(op: str, sizes: Sequence[int], device: torch.device, lengths, valid):
    """Orders that put real frames first, and the numbers of real frames, of both sides."""
    num, *frames = sizes
    sides = zip(("_x", "_y"), lengths, valid, frames, strict=True)
    real = [prepare_valid(op, name, n, mask, num, size, device) for name, n, mask, size in sides]
    (order_x, lengths_x), (order_y, lengths_y) = map(real_first, real)
    return (order_x, order_y), (lengths_x, lengths_y)


def _options(op: str, num: int, device: torch.device, gamma: Gamma, bandwidth: Bandwidth, **rest):
    """Checked options, and gammas and bands of each pair or None."""
    gamma, gammas = split_gamma(op, gamma, num, device)
    bandwidth, bands = split_bandwidth(op, bandwidth, num, device)
    return SoftDTWOptions.checked(op, gamma, bandwidth, **rest), (gammas, bands)


def _reference_alignment(x, y, bias, constants, opts: SoftDTWOptions) -> Tensor:
    lengths_x, lengths_y, gammas, bands = constants
    differentiable = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    with no_autocast(x.device.type), torch.enable_grad():
        cost = dense_cost(x, y, lengths_x, lengths_y, bias)
        if not differentiable:
            cost = cost.detach().requires_grad_()
        values = soft_dtw_reference(
            None, None, cost, None, lengths_x, lengths_y, gammas, bands, opts
        )
        (expected,) = torch.autograd.grad(values.sum(), cost, create_graph=differentiable)
    return expected.to(x.dtype)


def _reduce(values: Tensor, pairs: Tensor | None, reduction: str, unbatched: bool) -> Tensor:
    if reduction == "none":
        return values[0] if unbatched else values
    if reduction == "sum":
        return values.sum()
    if pairs is None:
        return values.sum() / max(values.shape[0], 1)
    return values.sum() / pairs.sum().clamp(min=1)
