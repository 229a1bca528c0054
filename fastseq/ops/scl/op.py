"""scl_loss: argument checks, choice of backend, and the link from its backends to PyTorch."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_triton_or_torch, constant_under_compile
from fastseq.ops.common.fused import FusedLoss, transforms_active
from fastseq.ops.common.lengths import Lengths, prepare_times, prepare_valid
from fastseq.ops.common.short import kept_pairs
from fastseq.ops.common.validate import check_choice, check_group, check_pair, check_scalar
from fastseq.ops.scl.options import ROWS, SCLOptions, padded
from fastseq.ops.scl.reference import scl_reference
from fastseq.ops.scl.ring.call import FUSED as RING
from fastseq.ops.scl.ring.options import SPLITS, RingOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def scl_loss(
    z1: Tensor,
    z2: Tensor,
    t1: Tensor | None = None,
    t2: Tensor | None = None,
    *,
    lengths1: Lengths = None,
    lengths2: Lengths = None,
    valid1: Tensor | None = None,
    valid2: Tensor | None = None,
    variance: float | Tensor = 10.0,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    objective: str = "kl",
    negatives: str = "cross",
    reduction: str = "mean",
    target: str = "gauss",
    group: "ProcessGroup | None" = None,
    split: str = "frames",
    backend: str = "auto",
) -> Tensor:
    r"""Sequence contrastive loss between two views of each video (CARL, eq. 1 to 3).

    With cosine similarity ``sim`` and timestamps ``t``, and symmetrically for the other direction::

        w_ij = g(t1_i - t2_j) / sum_k g(t1_i - t2_k),  g(d) = exp(-d^2 / (2 variance))
        p_ij = exp(sim(z1_i, z2_j) / temperature) / sum_k exp(sim(z1_i, z2_k) / temperature)
        row_i = KL(w_i || p_i)

    Beyond ``|d| = sqrt(206 variance)``, g is 0. ``target`` selects another g.

    Memory grows with N T, not with N T^2, except with ``backend="reference"``.

    Args:
        z1, z2: embeddings (N, T1, D) and (N, T2, D), or (T1, D) and (T2, D) for one video;
            float64, float32, bfloat16 or float16. T1 and T2 may differ.
        t1, t2: timestamps (T,) or (N, T) of integers or floats, in any unit and any order;
            duplicates allowed. Pass both or neither. Default: the frame index. No gradient is
            computed for them.
        lengths1, lengths2: (N,) integers: the number of real frames at the start of each view.
        valid1, valid2: (N, T1) and (N, T2) bool, True = real frame; pass these or lengths. Padding
            is ignored, even if it contains NaN.
        variance: sigma^2 of the target, in squared units of t. Default 10 frames^2 (CARL, section
            4.2); for times in seconds, pass 10 / fps^2. May be a 0-dim tensor, as for the
            temperature, but without a gradient.
        temperature: tau. Default 0.1 (CARL, section 4.2). May be a floating 0-dim tensor on the
            device of z1 or on the CPU; it is differentiated if it requires a gradient. The host
            never reads a tensor that is on a GPU, and torch.compile compiles once for all values.
            If such a tensor is not positive and finite, the loss is NaN; in all other cases that is
            an error.
        normalize: divide each embedding by its L2 norm first (the cosine of the paper).
        objective: "kl" as in the released code, or "ce", the cross-entropy of eq. 1: the gradient
            is the same, the value differs by the entropy of w.
        negatives: the candidates of the softmax. "cross": the other view of the same video (the
            paper; released as ``single_noself``); "video": both views of the same video, the row's
            own frame included (``single``); "batch": the other view, and both views of the other
            videos of the batch (``batch_noself``).
        reduction: "none": (N,), the sum over the real rows of both views; "sum": the sum of that;
            "mean": the sum divided by the number of real frames of both views in the batch
            (released code); "paper": L1 + L2 with the mean of each view (eq. 3), averaged over
            videos that have a real frame: twice the gradient of "mean" when all lengths are equal.
        target: g(d) with sigma = sqrt(variance). "gauss": exp(-d^2 / (2 sigma^2)), the default
            (CARL, eq. 1); "laplace": exp(-|d| / sigma); "sigmoid": 2 / (1 + exp(|d| / sigma))
            (SoftCLT, ICLR 2024, with tau = 1 / sigma); "box": 1 for |d| <= sigma, 0 beyond. The
            first three are 0 beyond sqrt(206 variance).
        group: a process group of torch.distributed. Each of its ranks calls with its part of the
            data. The value is the same on all ranks: that of one process with all parts. The
            gradient is that of the sum of the ranks' values. DistributedDataParallel and FSDP
            average gradients over ranks, so ``loss.backward()`` on every rank has the gradient of
            one process. Every rank has to run the backward too. No rank has the frames of all:
            blocks of the other ranks' z and t arrive one after the other. None: no communication.
        split: what the ranks' parts are. "frames": z1 and z2 are part of the frames of each video,
            the parts follow each other along T in the order of ranks, and N is the same on all
            ranks; without t, a frame's time is its place in the whole, padding counted. "videos":
            each rank has other videos, which ``negatives="batch"`` and the reductions join. T1 and
            T2, and N with "videos", may differ between ranks and may be 0.
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device)
            or "reference" (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) with ``reduction="none"`` (the rank's own videos): float64 for float64
        inputs, otherwise float32. Gradients have the dtypes of z1 and z2.

    A row with no real frame within reach contributes exactly 0 loss and gradient and still counts
    in the mean, as in the released code. Without any real row the result is 0 with zero gradients.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value, or ranks whose
            calls do not fit together. RuntimeError: a backend named in the call does not support it
            (it is never replaced), or a rank of the group was lost.

    Example:
        >>> import torch, fastseq
        >>> z = torch.eye(4)
        >>> round(fastseq.scl_loss(z, z, variance=0.01).item(), 6)
        0.000136
    """
    check_pair("scl_loss", "z1", z1, "z2", z2)
    number, tau = check_scalar("scl_loss", "temperature", temperature, z1.device)
    squared, var = check_scalar("scl_loss", "variance", variance, z1.device)
    if var is not None and var.requires_grad:
        raise ValueError(
            "scl_loss: variance requires a gradient, which is not computed; to fix: "
            "variance.detach()"
        )
    opts = SCLOptions.checked(
        "scl_loss", squared, number, normalize, objective, negatives, reduction, target
    )
    if (t1 is None) != (t2 is None):
        raise ValueError("scl_loss: pass both t1 and t2 or neither")
    unbatched = z1.dim() == 2
    if unbatched:
        z1, z2 = z1[None], z2[None]
    if z1.dtype != z2.dtype:
        wider = torch.promote_types(z1.dtype, z2.dtype)
        z1, z2 = z1.to(wider), z2.to(wider)
    (n, frames1, _), frames2, device = z1.shape, z2.shape[1], z1.device
    times = (
        prepare_times("scl_loss", "t1", t1, n, frames1, device),
        prepare_times("scl_loss", "t2", t2, n, frames2, device),
    )
    valid = (
        prepare_valid("scl_loss", "1", lengths1, valid1, n, frames1, device),
        prepare_valid("scl_loss", "2", lengths2, valid2, n, frames2, device),
    )
    name, _ = resolve_backend(backend, device.type, z1.dtype)
    check_choice("scl_loss", "split", split, SPLITS)
    ranks = check_group("scl_loss", group)
    inputs = z1, z2, tau, var, *times, *valid
    if ranks is not None and transforms_active():
        raise RuntimeError(
            "scl_loss: group= does not work inside torch.func transforms (grad, vmap, jvp); to "
            "fix: use torch.autograd.grad, or join the ranks' frames and leave out group="
        )
    if ranks is None:
        loss = FUSED(name, opts, *inputs)
    else:
        loss = RING(name, RingOptions(*opts, ranks, split), *inputs)
    return loss[0] if unbatched and reduction == "none" else loss


@constant_under_compile
def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for such a call, and why it was picked. Depends only on the arguments and the
    environment."""
    return choose_triton_or_torch("scl_loss", requested, device_type, dtype)


def _shapes(z1, z2, tau, var, t1, t2, valid1, valid2, backend: str, opts: SCLOptions, needs):
    """Shapes of the loss, of the statistics of all rows, of the reduction's coefficients, and of
    the numbers that the backend "torch" keeps for each pair."""
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]
    loss = (n,) if opts.reduction == "none" else ()
    if backend == "torch":
        return loss, (3, n, frames1 + frames2), (2, n), kept_pairs(z1, z2, needs)
    return loss, (ROWS, n, padded(frames1) + padded(frames2)), (2, n), None


FUSED = FusedLoss(
    "scl_loss",
    "fastseq.ops.scl",
    inputs=("z1", "z2", "tau?", "var?", "t1?", "t2?", "valid1?", "valid2?"),
    differentiable=3,
    options=SCLOptions,
    reference=scl_reference,
    kept=3,
    shapes=_shapes,
)
