"""queue_nce: argument checks, choice of backend, and the link from its backends to PyTorch."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import choose_triton_or_torch, constant_under_compile
from fastseq.ops.common.fused import FusedLoss
from fastseq.ops.common.validate import FLOAT_DTYPES, check_scalar
from fastseq.ops.queue_nce.options import QueueNCEOptions, keeps_mean
from fastseq.ops.queue_nce.reference import queue_nce_reference


def queue_nce(
    q: Tensor,
    positives: Tensor,
    queue: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""InfoNCE of each query and each of its positives against a queue of negatives (VCLR, eq. 1, 2
    and 6; MoCo).

    With tau the temperature::

        s_np    = <q_n, positives_np> / tau
        lse_n   = log sum_k exp(<q_n, queue_k> / tau)
        loss_np = -log( exp(s_np) / (exp(s_np) + exp(lse_n)) ) = log(1 + exp(lse_n - s_np))

    One pass over the queue covers all positives of a query, and the (N, 1 + K) logits are never
    stored, except with ``backend="reference"``. The backward does not read the queue: it may be
    changed (:meth:`fastseq.nn.FeatureQueue.enqueue`) as soon as this call returns.

    Args:
        q: queries (N, D); float64, float32, bfloat16 or float16.
        positives: (N, D), or (N, P, D) for P positives of each query. P positives are P losses; no
            positive is a negative of another. They may require a gradient; those of a momentum
            encoder do not need one.
        queue: negatives (K, D), without a gradient. Rows are used as they are: normalise them if q
            is normalised (:class:`fastseq.nn.FeatureQueue` does). K may be 0.
        temperature: tau. Default 0.1: VCLR's released code; MoCo v2 uses 0.2. May be a floating
            0-dim tensor on the device of q or on the CPU; it is differentiated if it requires a
            gradient. torch.compile compiles once more for another float (from torch 2.8 on), never
            for another value of a tensor. The host never reads a tensor that is on a GPU: if such a
            tensor is not positive and finite, every loss is NaN. For a float, and for a tensor on
            the CPU outside torch.compile, that is an error. A CUDA graph needs the tensor on the
            device of q.
        normalize: divide q and positives by their L2 norms first (VCLR, appendix A.1). Embeddings
            that are already normalised stay the same.
        reduction: "none": the losses, of the shape of positives without D; "sum"; or "mean" over
            all N P of them (the paper averages the losses of several positives).
        backend: "auto", "triton" (NVIDIA GPU), "torch" (blockwise, any device) or "reference"
            (dense; the only one that can be differentiated twice).

    Returns:
        A scalar, or (N,) or (N, P) with ``reduction="none"``: float64 when an input is float64,
        otherwise float32. Gradients have the dtypes of q and positives. Inputs of different dtypes
        are multiplied in the widest one. N = 0: 0 with gradient 0. K = 0: every loss is 0.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong shape or option value, or a queue that
            requires a gradient. RuntimeError: a backend named in the call does not support it (it
            is never replaced), or a backend other than "reference" is differentiated twice.

    Example:
        >>> import torch, fastseq
        >>> q, queue = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(fastseq.queue_nce(q, q, queue).item(), 6)  # log(1 + 2 exp(-10))
        9.1e-05
    """
    op = "queue_nce"
    check_inputs(op, q, positives, queue)
    number, tau = check_scalar(op, "temperature", temperature, q.device)
    opts = QueueNCEOptions.checked(op, number, normalize, reduction)
    single = positives.dim() == 2
    if single:
        positives = positives[:, None]
    wide = q.dtype
    if not wide == positives.dtype == queue.dtype:
        wide = torch.promote_types(torch.promote_types(wide, positives.dtype), queue.dtype)
        q, positives = q.to(wide), positives.to(wide)
    name, _ = resolve_backend(backend, q.device.type, wide)
    loss = FUSED(name, opts, q, positives, tau, queue)
    return loss[:, 0] if single and reduction == "none" else loss


def check_inputs(op: str, q: Tensor, positives: Tensor, queue: Tensor) -> None:
    for name, z in (("q", q), ("positives", positives), ("queue", queue)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(z).__name__}")
        if z.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{op}: {name} must be float64, float32, bfloat16 or float16, got {z.dtype}"
            )
        if z.device != q.device:
            raise ValueError(
                f"{op}: q, positives and queue must be on one device, got q on {q.device} and "
                f"{name} on {z.device}"
            )
    if q.dim() != 2 or q.shape[1] == 0:
        raise ValueError(f"{op}: q must have shape (N, D) with D >= 1, got {tuple(q.shape)}")
    n, d = q.shape
    fits = positives.dim() == 2 or (positives.dim() == 3 and positives.shape[1] > 0)
    if not fits or positives.shape[0] != n or positives.shape[-1] != d:
        raise ValueError(
            f"{op}: positives must have shape {(n, d)} or ({n}, P, {d}) with P >= 1, got "
            f"{tuple(positives.shape)}"
        )
    if queue.dim() != 2 or queue.shape[1] != d:
        raise ValueError(
            f"{op}: queue must have shape (K, {d}), got {tuple(queue.shape)}"
            + ("; to fix: queue.mT" if queue.dim() == 2 and queue.shape[0] == d else "")
        )
    if queue.requires_grad:
        raise ValueError(
            f"{op}: queue requires a gradient, which is not computed; to fix: queue.detach()"
        )


@constant_under_compile
def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for such a call, and why it was picked. Depends only on the arguments and the
    environment."""
    return choose_triton_or_torch("queue_nce", requested, device_type, dtype)


def _shapes(q, positives, temperature, queue, backend: str, opts: QueueNCEOptions, needs):
    """Shapes of the loss, of 1 - the probability of each positive, and of the queue's mean."""
    losses = positives.shape[:2]
    value = losses if opts.reduction == "none" else ()
    return value, losses, q.shape if keeps_mean(needs) else None


FUSED = FusedLoss(
    "queue_nce",
    "fastseq.ops.queue_nce",
    inputs=("q", "positives", "tau?", "queue"),  # must differ from the option's name
    differentiable=3,
    options=QueueNCEOptions,
    reference=queue_nce_reference,
    kept=2,
    shapes=_shapes,
    forward_only=1,
)
