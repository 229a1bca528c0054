"""Entropic optimal transport as called by the user: checks, numbers of each pair, reductions."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_triton_or_torch, constant_under_compile, no_autocast
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.lengths import Lengths, nonempty_pairs, reorder
from fastseq.ops.sinkhorn.options import AlignmentOptions, Frames, Numbers, SinkhornOptions
from fastseq.ops.sinkhorn.reference import plan_and_cost, sinkhorn_reference
from fastseq.ops.soft_dtw.costs import cosine_frames, full_precision


def sinkhorn_alignment(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    cost: str = "sqeuclidean",
    prior_width: float | None = None,
    virtual_cost: float | None = None,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    reduction: str = "none",
    backend: str = "auto",
) -> Tensor:
    r"""Cost of the entropic optimal transport between the frames of x and those of y.

    Each of the n real frames of x has the weight 1 / n, each of the m real frames of y the weight
    1 / m. Sinkhorn's algorithm (Cuturi, 2013) computes the plan P in the log domain::

        value = sum_ij P_ij c_ij        c_ij = ||x_i - y_j||^2   or   1 - cos(x_i, y_j)
        P     = the plan with these marginals that minimises <P, c> + epsilon KL(P || prior)
        prior_ij = exp(-(i / n - j / m)^2 / (2 prior_width^2))     for i = 1..n, j = 1..m

    Memory grows with iterations (T + S); no T x S matrix, except with ``backend="reference"``. The
    gradient is that of the finite number of iterations.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. T and S may differ.
        epsilon: weight of the KL divergence, in the units of the cost. Default 0.1: VAVA's
            lambda2, before VAVA scales it with the lengths (:func:`fastseq.vava_loss`). Rounding of
            the float32 gradient grows with 1 / epsilon: for unit vectors, 20 frames each, relative
            errors are 4e-6 at 0.1, 7e-5 at 0.01 and 4e-3 at 0.001. Pass float64 for less.
        iterations: number of Sinkhorn iterations, 1 or more. One updates the columns, then the
            rows, so that the rows of P are exact. Default 20 (VAVA). A small epsilon needs more.
        cost: "sqeuclidean", or "cosine", 1 - cos (a frame of norm below 1e-12 costs 1 against every
            frame and has no gradient).
        prior_width: standard deviation of the prior, in relative time (1 = the whole video).
            Default: no prior, as in plain entropic optimal transport.
        virtual_cost: cost of matching a frame with the virtual frame, 0 or more, in the units of
            the cost. A virtual frame precedes each video, and all weights become 1 / (n + 1) and
            1 / (m + 1); the prior of a cell with one virtual frame is 1. A virtual frame has the
            weight of one frame, so that it takes one frame in total. Default: no virtual frame.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Other
            frames are removed: the real frames on either side become neighbours. Padding is
            ignored, even if it contains NaN.
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
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
        >>> round(fastseq.sinkhorn_alignment(x, x + 0.5, epsilon=0.01).item(), 4)
        0.25
    """
    op = "sinkhorn_alignment"
    opts = AlignmentOptions.checked(
        op, epsilon, iterations, cost, prior_width, virtual_cost, reduction
    )
    frames = Frames.checked(op, x, y, (lengths_x, lengths_y), (valid_x, valid_y))
    inputs = _inputs(frames, opts)
    name, _ = resolve_backend(backend, x.device.type, inputs[0].dtype, op)
    values = FUSED[op](name, _backend_options(opts), *inputs)
    return reduced(values, frames, reduction, x.dim() == 2)


def sinkhorn_plan(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    cost: str = "sqeuclidean",
    prior_width: float | None = None,
    virtual_cost: float | None = None,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
) -> Tensor:
    r"""The transport plan P of :func:`sinkhorn_alignment`, for pictures and for further losses.

    P is the whole matrix: memory grows with T S D. It is differentiable, also twice.

    Args:
        x, y, epsilon, iterations, cost, prior_width: as in :func:`sinkhorn_alignment`.
        virtual_cost, lengths_x, lengths_y, valid_x, valid_y: as there.

    Returns:
        (N, T, S), or (T, S) for one pair: float64 for float64 inputs, otherwise float32. With
        virtual_cost: (N, T + 1, S + 1), and row 0 and column 0 belong to the virtual frames. Rows
        of real frames sum to 1 / n, or 1 / (n + 1) with virtual frames; those of padding are 0. A
        pair with a length 0 has a plan of zeros.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.

    Example:
        >>> import torch, fastseq
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> (3 * fastseq.sinkhorn_plan(x, x, epsilon=0.01)).round(decimals=2)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    op = "sinkhorn_plan"
    opts = AlignmentOptions.checked(op, epsilon, iterations, cost, prior_width, virtual_cost)
    frames = Frames.checked(op, x, y, (lengths_x, lengths_y), (valid_x, valid_y))
    with no_autocast(x.device.type):
        plan, _ = plan_and_cost(*_inputs(frames, opts), _backend_options(opts))
    virtual = int(virtual_cost is not None)
    for dim, order in enumerate(frames.orders, 1):  # frames return to their original places
        if order is not None:
            first, rest = plan.split([virtual, plan.shape[dim] - virtual], dim)
            plan = torch.cat([first, reorder(rest, order.argsort(1), dim)], dim)
    return plan[0] if x.dim() == 2 else plan


def reduced(values: Tensor, frames: Frames, reduction: str, unbatched: bool) -> Tensor:
    """The values (N,), or their sum, or their mean over the pairs that have frames."""
    if reduction == "none":
        return values[0] if unbatched else values
    if reduction == "sum":
        return values.sum()
    x, y, lengths_x, lengths_y, _ = frames
    sizes = len(x), x.shape[1], y.shape[1]
    pairs = nonempty_pairs(*sizes, lengths_x, lengths_y, x.device)
    count = max(len(x), 1) if pairs is None else pairs.sum().clamp(min=1)
    return values.sum() / count


@constant_under_compile
def resolve_backend(
    requested: str, device_type: str, dtype: torch.dtype, op: str = "sinkhorn_alignment"
) -> tuple[str, str]:
    """The backend for such a call, and why it was picked. Depends only on the arguments and the
    environment."""
    return choose_triton_or_torch(op, requested, device_type, dtype)


def _backend_options(opts: AlignmentOptions) -> SinkhornOptions:
    return SinkhornOptions(opts.iterations, opts.virtual_cost is not None)


def _inputs(
    frames: Frames, opts: AlignmentOptions
) -> tuple[Tensor, Tensor, None, Tensor | None, Tensor | None, Tensor]:
    """The inputs of the backends."""
    x, y, lengths_x, lengths_y, _ = frames
    if opts.cost == "cosine":
        x = cosine_frames(full_precision(x), lengths_x, 0)
        y = cosine_frames(full_precision(y), lengths_y, 1)
    virtual = int(opts.virtual_cost is not None)
    n, m = ((c + virtual).clamp(min=1) for c in frames.counts())
    width = opts.prior_width
    numbers = Numbers(
        inverse_epsilon=1 / opts.epsilon,
        step_a=1 / n,
        step_b=1 / m,
        rate=0.0 if width is None else 0.5 / width**2,
        kappa=0.0,
        phi=1.0,
        virtual_cost=opts.virtual_cost or 0.0,
        log_virtual=0.0,
    )
    pairs = numbers.stacked(len(x), frames.dtype, x.device)
    return x, y, None, lengths_x, lengths_y, pairs


def _shapes(x, y, centres, lengths_x, lengths_y, pairs, backend: str, opts, needs):
    """Shapes of the values, and of all f and all g: place 0 is the virtual frame."""
    n, frames_x, _ = x.shape
    return (
        (n,),
        (n, opts.iterations + 1, frames_x + 1),
        (n, opts.iterations, y.shape[1] + 1),
    )


# One for each function, so that errors name the function that was called.
FUSED = {
    op: FusedLoss(
        op,
        "fastseq.ops.sinkhorn",
        inputs=("x", "y", "centres?", "lengths_x?", "lengths_y?", "pairs"),
        differentiable=2,
        options=SinkhornOptions,
        reference=sinkhorn_reference,
        kept=2,
        shapes=_shapes,
        stem=op,
    )
    for op in ("sinkhorn_alignment", "vava_loss")
}
