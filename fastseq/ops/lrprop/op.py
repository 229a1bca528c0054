"""lrprop_loss: hard DTW carries each video's times to the other, and scl_loss compares them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.common.fused import transforms_active
from fastseq.ops.common.lengths import Lengths, nonempty_pairs, prepare_valid, real_first, reorder
from fastseq.ops.common.validate import check_pair
from fastseq.ops.lrprop.options import LRPropOptions
from fastseq.ops.scl.op import scl_loss
from fastseq.ops.soft_dtw.path import dtw_path


def lrprop_loss(
    x: Tensor,
    y: Tensor,
    *,
    lengths_x: Lengths = None,
    lengths_y: Lengths = None,
    valid_x: Tensor | None = None,
    valid_y: Tensor | None = None,
    variance: float = 10.0,
    temperature: float = 0.1,
    normalize: bool = True,
    bandwidth: int | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Pair-wise position propagation between two videos of one action (LRProp, Bar-Shalom et al.).

    Hard DTW of the cosine costs matches the two videos; frame i of x lies at position m_i of y, the
    mean of the frames that its path pairs with i, and frame j of y at position n_j of x::

        loss = (SCL(x, y; times m_i and j) + SCL(x, y; times i and n_j)) / 2

    where SCL is :func:`fastseq.scl_loss`: the similarities of a frame are compared with a Gaussian
    around its match. The match is a constant for the gradient. LRProp adds a regularised Soft-DTW
    loss, such as :func:`fastseq.lav_loss`; without it the targets are only as good as the current
    match.

    Memory of the losses grows with N T. The match is computed on the CPU, one pair at a time, with
    9 bytes for each of its T S pairs of frames; embeddings on a GPU are copied to the host for it.

    Args:
        x, y: embeddings (N, T, D) and (N, S, D), or (T, D) and (S, D) for one pair; float64,
            float32, bfloat16 or float16. T and S may differ.
        lengths_x, lengths_y: (N,) integers: the number of real frames at the start of each
            sequence.
        valid_x, valid_y: (N, T) and (N, S) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        variance: sigma^2 of the Gaussian, in frames^2. Default 10: SCL's. The abstract of LRProp
            names no value.
        temperature: tau of the softmax over frames. Default 0.1: SCL's.
        normalize: divide each embedding by its L2 norm in SCL. The match always uses the cosine.
        bandwidth: Sakoe-Chiba band of the match, in frames, as in :func:`fastseq.dtw_path`.
            Default: none.
        reduction: "none": (N,), a sum over the frames of both sides; "sum"; or "mean", the sum
            divided by the number of real frames of the pairs with frames on both sides.
        backend: of :func:`fastseq.scl_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``: float64 for float64 inputs, otherwise float32.
        A pair with an empty side has value 0 and gradient 0; one with NaN in a real frame is NaN.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value.
        RuntimeError: inside torch.func transforms or torch.compile's fullgraph mode.

    Example:
        >>> import torch, fastseq
        >>> x = torch.eye(6)
        >>> slow = x.repeat_interleave(2, 0)  # every frame twice
        >>> round(fastseq.lrprop_loss(x, slow, variance=0.01).item(), 4)
        0.0002
    """
    op = "lrprop_loss"
    if transforms_active():
        raise RuntimeError(
            f"{op}: the match needs the values of the frames, which torch.func transforms (grad, "
            "vmap, jvp) hide; to fix: call it outside of them, with torch.autograd.grad"
        )
    check_pair(op, "x", x, "y", y)
    opts = LRPropOptions.checked(op, variance, temperature, normalize, bandwidth, reduction)
    unbatched = x.dim() == 2
    if unbatched:
        x, y = x[None], y[None]
    num, frames_x, frames_y, device = x.shape[0], x.shape[1], y.shape[1], x.device
    order_x, real_x = real_first(prepare_valid(op, "_x", lengths_x, valid_x, num, frames_x, device))
    order_y, real_y = real_first(prepare_valid(op, "_y", lengths_y, valid_y, num, frames_y, device))
    x, y = reorder(x, order_x), reorder(y, order_y)
    pairs = nonempty_pairs(num, frames_x, frames_y, real_x, real_y, device)
    real_x = _or_all(real_x, pairs, num, frames_x, device)
    real_y = _or_all(real_y, pairs, num, frames_y, device)
    of_x, of_y = propagated(op, x, y, real_x.tolist(), real_y.tolist(), opts.bandwidth)
    own = [torch.arange(frames, device=device).float() for frames in (frames_x, frames_y)]
    values = sum(
        call_as(
            op,
            scl_loss,
            x,
            y,
            times_x,
            times_y,
            lengths1=real_x,
            lengths2=real_y,
            variance=opts.variance,
            temperature=opts.temperature,
            normalize=opts.normalize,
            reduction="none",
            backend=backend,
        )
        for times_x, times_y in ((of_x, own[1]), (own[0], of_y))
    )
    values = values / 2
    if reduction == "none":
        return values[0] if unbatched else values
    total = values.sum()
    return total / (real_x + real_y).sum().clamp(min=1) if reduction == "mean" else total


def propagated(
    op: str,
    x: Tensor,
    y: Tensor,
    real_x: Sequence[int],
    real_y: Sequence[int],
    bandwidth: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions in y of the frames of x (N, T), and in x of those of y (N, S): float32.

    A position is the mean of the frames that the path of hard DTW pairs with a frame. Padded frames
    have position 0; all frames of a pair with NaN or infinity in a real frame have position 0, and
    its loss shows the NaN.
    """
    of_x, of_y = torch.zeros(x.shape[:2]), torch.zeros(y.shape[:2])
    host_x, host_y = (z.detach().cpu() for z in (x, y))
    for k, (n, m) in enumerate(zip(real_x, real_y, strict=True)):
        a, b = host_x[k, :n], host_y[k, :m]
        if n == 0 or m == 0 or not (a.isfinite().all() and b.isfinite().all()):
            continue
        path, _ = call_as(op, dtw_path, a, b, cost="cosine", bandwidth=bandwidth)
        i, j = path.unbind(1)
        of_x[k, :n] = _means(i, j, n)
        of_y[k, :m] = _means(j, i, m)
    return of_x.to(x.device), of_y.to(x.device)


def _means(frames: Tensor, positions: Tensor, count: int) -> Tensor:
    """The mean of the positions of each of ``count`` frames."""
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, frames, positions.double())
    return (total / frames.bincount(minlength=count)).float()


def _or_all(real: Tensor | None, pairs: Tensor | None, num: int, frames: int, device) -> Tensor:
    """Numbers of real frames; 0 on both sides of a pair with an empty side."""
    real = torch.full((num,), frames, device=device) if real is None else real
    return real if pairs is None else torch.where(pairs, real, 0)
