"""vava_loss: transport between two videos, Contrastive-IDM of each, and their best matches."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.common.fused import refuse_transforms
from fastseq.ops.common.lengths import Lengths, valid_mask
from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_choice,
    check_nonnegative,
    check_positive,
)
from fastseq.ops.contrastive_idm.op import contrastive_idm
from fastseq.ops.sinkhorn.matches import best_and_worst, nearest
from fastseq.ops.sinkhorn.op import FUSED, reduced, resolve_backend
from fastseq.ops.sinkhorn.options import (
    Frames,
    Numbers,
    SinkhornOptions,
    check_iterations,
)

FORMS = ("paper", "code")
NO_MARGIN = 1e-30  # frames further apart than this have no hinge


class VAVAOptions(NamedTuple):
    phi: float
    epsilon: float
    iterations: int
    structure: float
    prior_width: float
    virtual_cost: float
    virtual_distance: float
    window: float
    margin: float
    intra: float
    inter: float
    temperature: float
    form: str
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        phi: float,
        epsilon: float,
        iterations: int,
        structure: float,
        prior_width: float,
        virtual_cost: float,
        virtual_distance: float,
        window: float,
        margin: float,
        intra: float,
        inter: float,
        temperature: float,
        form: str,
        reduction: str,
    ) -> "VAVAOptions":
        check_choice(op, "form", form, FORMS)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        phi = check_nonnegative(op, "phi", phi)
        if phi > 1:
            raise ValueError(f"{op}: phi must lie between 0 and 1, got {phi}")
        return cls(
            phi,
            check_positive(op, "epsilon", epsilon),
            check_iterations(op, iterations),
            check_nonnegative(op, "structure", structure),
            check_positive(op, "prior_width", prior_width),
            check_nonnegative(op, "virtual_cost", virtual_cost),
            check_nonnegative(op, "virtual_distance", virtual_distance),
            check_nonnegative(op, "window", window),
            check_positive(op, "margin", margin),
            check_nonnegative(op, "intra", intra),
            check_nonnegative(op, "inter", inter),
            check_positive(op, "temperature", temperature),
            form,
            reduction,
        )


def vava_phi(step: int) -> float:
    """Share of the consistency prior after ``step`` optimiser steps: 0.999^floor(sqrt(step + 1)),
    between 0.001 and 0.999 (the released code)."""
    return min(max(0.999 ** int(math.sqrt(step + 1)), 0.001), 0.999)


def vava_loss(
    x: Tensor,
    y: Tensor,
    *,
    phi: float = 0.999,
    epsilon: float = 0.1,
    iterations: int = 21,
    structure: float = 1.0,
    prior_width: float = 2.0,
    virtual_cost: float = 0.5,
    virtual_distance: float = 5.0,
    window: float = 15.0,
    margin: float = 2.0,
    intra: float = 0.5,
    inter: float = 1e-4,
    temperature: float = 0.5,
    form: str = "paper",
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""VAVA's loss of pairs of videos of the same action (Liu et al., CVPR 2022).

    A virtual frame precedes both videos; n' = n + 1 and m' = m + 1 frames have the weights 1 / n'
    and 1 / m', and the relative times a_i = i / n' and b_j = j / m' with i, j from 1. With j*(i)
    the frame of y nearest to frame i of x and D_ij = ||x_i - y_j||^2::

        loss      = sum_ij P_ij D_ij + intra (C(x) + C(y)) + inter log(1 + exp(best - worst))
        P         = the plan of exp((S_ij - D_ij) / epsilon) Q_ij       (Sinkhorn iterations)
        Q_ij      = phi N(a_i - b_j) + (1 - phi) N(b_j*(i) - b_j)       N = exp(-gap^2 / (2 w^2))
        S_ij      = structure (phi / ((a_i - b_j)^2 + 1) + (1 - phi) / ((b_j*(i) - b_j)^2 + 1))
        w         = prior_width sqrt(1 / n'^2 + 1 / m'^2)
        C(x)      = mean over i, j of  D_ij / ((i - j)^2 + 1)     where |i - j| <= window
                                       max(0, margin - D_ij)      where |i - j| > window
        best      = (mean_i D_i,p(i) + mean_j D_p(j),j) / (D temperature)     p: largest P; worst:
                    the same with the smallest P. The mean is also over the D channels.

    A cell with one virtual frame costs virtual_cost and has the Q and S of a gap of
    3 virtual_distance / (n' + m'). The cell of both virtual frames also costs virtual_cost; its gap
    is 1 / n' - 1 / m' where phi stands in Q and S, and 0 where 1 - phi stands.

    Memory grows with iterations (T + S); no T x S matrix, except with ``backend="reference"``.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. They are not normalised here.
        phi: share of the consistency prior (the diagonal), 0 to 1; the rest is that of the
            optimality prior (the nearest frames). Default 0.999. The released schedule is
            :func:`fastseq.ops.sinkhorn.vava_phi` of the optimiser's step.
        epsilon: lambda2, weight of the KL divergence, in the units of D. Default 0.1.
        iterations: Sinkhorn iterations. Default 21: the released code's 20 and its last update.
        structure: lambda1, weight of the structure term, in the units of D. Default 1.0.
        prior_width: delta, standard deviation of both priors in units of the distance between
            neighbouring cells, sqrt(1 / n'^2 + 1 / m'^2). That of
            :func:`fastseq.sinkhorn_alignment` is in relative time. Default 2.0.
        virtual_cost: zeta, cost of a cell with a virtual frame, in the units of D. Default 0.5.
        virtual_distance: gap of such a cell in the priors, in frames. Default 5.0.
        window: delta of C, in frames: pairs up to this gap are pulled together. Default 15.0.
        margin: lambda3 of C, in the units of D. Default 2.0.
        intra, inter: weights of C and of the matches. Defaults 0.5 and 1e-4. 0 leaves the term out.
        temperature: of the matches. Default 0.5.
        form: "paper", or "code" for the loss of the released code: epsilon n m / 4 and
            structure (n + m); sum_ij P_ij D_ij / (n' m' n m); centres b_j*(i) - 1 / m'; D divided
            by the number of channels in C; and p of the largest exp((S - D) / epsilon) Q D. All
            defaults are those of the code.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        reduction: "none": (N,); "sum"; or "mean", over the pairs where both lengths are > 0.
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (a scalar for one pair): float64 for float64
        inputs, otherwise float32. Gradients have the dtypes of x and y. A pair with a length 0 has
        value 0 and gradient 0. Nearest frames and matches are constants of the gradient.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: a backend named in the call does not support it (it is never replaced), or
            a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 4, 40, 128), dim=-1)
        >>> fastseq.vava_loss(x, y, lengths_x=[40, 32, 40, 25]).shape
        torch.Size([])
    """
    op = "vava_loss"
    opts = VAVAOptions.checked(
        op,
        phi,
        epsilon,
        iterations,
        structure,
        prior_width,
        virtual_cost,
        virtual_distance,
        window,
        margin,
        intra,
        inter,
        temperature,
        form,
        reduction,
    )
    frames = Frames.checked(op, x, y, (lengths_x, lengths_y), (valid_x, valid_y)).without_empty()
    name, _ = resolve_backend(backend, x.device.type, frames.x.dtype, op)
    if name != "reference":
        refuse_transforms(op, name)
    n, m = frames.counts()
    inputs = _inputs(frames, opts, n, m)
    values = FUSED[op](name, SinkhornOptions(opts.iterations, True), *inputs)
    if opts.form == "code":
        values = values * _per_cell(n, m).to(values.dtype)
    if opts.intra:
        for z, lengths in ((frames.x, frames.lengths_x), (frames.y, frames.lengths_y)):
            values = values + opts.intra * _within(op, z, lengths, opts, name)
    if opts.inter:
        values = values + opts.inter * _between(frames, inputs, opts)
    return reduced(values, frames, reduction, x.dim() == 2)


def _per_cell(n: Tensor, m: Tensor) -> Tensor:
    """1 / (n' m' n m): the released code divides by the cells with and without virtual frames."""
    return 1 / ((n + 1) * (m + 1) * (n * m).clamp(min=1))


def _inputs(frames: Frames, opts: VAVAOptions, n: Tensor, m: Tensor) -> tuple[Tensor | None, ...]:
    """The inputs of the backends for n and m real frames."""
    code = opts.form == "code"
    epsilon, structure = opts.epsilon, opts.structure
    inverse = 1 / (epsilon * (n * m).clamp(min=1) / 4) if code else 1 / epsilon
    kappa = inverse * structure * (n + m) if code else structure / epsilon
    step_a, step_b = 1 / (n + 1), 1 / (m + 1)
    rate = 0.5 / (opts.prior_width**2 * (step_a.square() + step_b.square()))
    gap = (3 * opts.virtual_distance / (n + m + 2)).square()
    numbers = Numbers(
        inverse_epsilon=inverse,
        step_a=step_a,
        step_b=step_b,
        rate=rate,
        kappa=kappa,
        phi=opts.phi,
        virtual_cost=opts.virtual_cost,
        log_virtual=-rate * gap + kappa / (gap + 1),
    )
    x, y, lengths_x, lengths_y, _ = frames
    pairs = numbers.stacked(len(x), frames.dtype, x.device)
    centres = None
    if opts.phi < 1:
        place = nearest(x, y, lengths_x, lengths_y) + (1 if code else 2)
        centres = (place * step_b[:, None]).to(frames.dtype)
    return x, y, centres, lengths_x, lengths_y, pairs


def _within(op: str, z: Tensor, lengths: Tensor | None, opts: VAVAOptions, backend: str) -> Tensor:
    """C of each video, (N,): near weights of "contrastive" and far weights of "sfa"."""
    if opts.form == "code":  # distances are means over the channels
        z = z * z.shape[2] ** -0.5

    def idm(kind: str, margin: float) -> Tensor:
        options = {"window": opts.window, "margin": margin, "kind": kind, "lengths": lengths}
        options |= {"reduction": "none", "backend": backend}
        times = torch.arange(z.shape[1], dtype=torch.float32, device=z.device)
        return call_as(op, contrastive_idm, z, times, **options)

    total = idm("contrastive", NO_MARGIN) + idm("sfa", opts.margin) - idm("sfa", NO_MARGIN)
    size = z.shape[1] if lengths is None else lengths.clamp(1, max(z.shape[1], 1))
    return total / (size * size if isinstance(size, Tensor) else max(size, 1) ** 2)


def _between(frames: Frames, inputs: tuple[Tensor | None, ...], opts: VAVAOptions) -> Tensor:
    """log(1 + exp(best - worst)) of each pair, (N,); 0 where a side has no frames."""
    x, y, lengths_x, lengths_y, _ = frames
    (num, frames_x, channels), frames_y = x.shape, y.shape[1]
    if not (num and frames_x and frames_y):
        return (x.sum() + y.sum()).to(frames.dtype) * x.new_zeros(num, dtype=frames.dtype)
    matches = best_and_worst(*inputs, opts.iterations, opts.form == "code")
    real_x = valid_mask(lengths_x, num, frames_x, x.device)
    real_y = valid_mask(lengths_y, num, frames_y, x.device)
    x = torch.where(real_x[..., None], x, 0).to(frames.dtype)
    y = torch.where(real_y[..., None], y, 0).to(frames.dtype)

    def mean(z: Tensor, others: Tensor, match: Tensor, real: Tensor) -> Tensor:
        taken = others.gather(1, match[..., None].expand(-1, -1, channels))
        distance = (z - taken).square().mean(2) * real
        return distance.sum(1) / real.sum(1).clamp(min=1)

    row_best, row_worst, column_best, column_worst = matches
    best = mean(x, y, row_best, real_x) + mean(y, x, column_best, real_y)
    worst = mean(x, y, row_worst, real_x) + mean(y, x, column_worst, real_y)
    loss = torch.nn.functional.softplus((best - worst) / opts.temperature)
    return loss * (real_x.any(1) & real_y.any(1))
