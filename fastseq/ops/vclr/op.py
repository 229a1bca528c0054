"""VCLR's losses besides queue_nce, and the sum of its four losses, in plain PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.dispatch import call_as, no_autocast
from fastseq.ops.common.validate import (
    FLOAT_DTYPES,
    REDUCTIONS,
    check_bool,
    check_choice,
    check_positive,
    check_scalar,
    positive_or_nan,
)
from fastseq.ops.queue_nce.op import queue_nce
from fastseq.ops.vclr.options import FORMS, VCLROptions

ORDERS = 4


def intra_nce(
    q: Tensor,
    positive: Tensor,
    negatives: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    form: str = "paper",
    reduction: str = "mean",
) -> Tensor:
    r"""Intra-frame instance discrimination (VCLR, eq. 3): a frame and its re-augmentation against
    other frames of the same video.

    With s+ = <q, positive> / tau and s_m = <q, negatives_m> / tau::

        paper:  -log( exp(s+) / (exp(s+) + sum_m exp(s_m)) )          one softmax
        code:   mean_m -log( exp(s+) / (exp(s+) + exp(s_m)) )         a 2-way problem per negative

    Args:
        q, positive: (N, D); float64, float32, bfloat16 or float16.
        negatives: (N, M, D), M >= 1; VCLR has 2, from the other two segments.
        temperature: tau. Default 0.1: the released code. May be a floating 0-dim tensor on the
            device of q or on the CPU; it is differentiated if it requires a gradient: see
            :func:`fastseq.queue_nce`.
        normalize: divide all embeddings by their L2 norms first (VCLR, appendix A.1).
        form: "paper", or "code" for the loss of the released code, which is smaller where several
            negatives are near.
        reduction: "none": (N,); "sum"; or "mean" over N.

    Returns:
        A scalar, or (N,): float64 when an input is float64, otherwise float32. N = 0: 0. It can be
        differentiated twice.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong or different shapes, or option value.

    Example:
        >>> import torch, fastseq
        >>> q = torch.eye(4)
        >>> loss = fastseq.intra_nce(q[:1], q[:1], q[None, 1:3])  # log(1 + 2 exp(-10))
        >>> round(loss.item(), 6)
        9.1e-05
    """
    op = "intra_nce"
    _check_embeddings(op, {"q": (q, 2), "positive": (positive, 2), "negatives": (negatives, 3)})
    number, tensor = check_scalar(op, "temperature", temperature, q.device)
    number = check_positive(op, "temperature", number)
    check_bool(op, "normalize", normalize)
    check_choice(op, "form", form, FORMS)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    if positive.shape != q.shape:
        raise ValueError(
            f"{op}: q and positive must have the same shape, got {tuple(q.shape)} and "
            f"{tuple(positive.shape)}"
        )
    n, d = q.shape
    if negatives.shape[0] != n or negatives.shape[2] != d or negatives.shape[1] == 0:
        raise ValueError(
            f"{op}: negatives must have shape ({n}, M, {d}) with M >= 1, got "
            f"{tuple(negatives.shape)}"
        )
    with no_autocast(q.device.type):
        q, positive, negatives = _widest(q, positive, negatives)
        if normalize:
            q, positive, negatives = (F.normalize(z, dim=-1) for z in (q, positive, negatives))
        tau = positive_or_nan(tensor, number, q.dtype)
        right = (q * positive).sum(1, keepdim=True) / tau  # [N, 1]
        wrong = (negatives @ q[:, :, None])[..., 0] / tau  # [N, M]
        if form == "paper":
            losses = F.softplus(torch.logsumexp(wrong, 1) - right[:, 0], threshold=50)
        else:
            losses = F.softplus(wrong - right, threshold=50).mean(1)
        return _reduce(losses, reduction)


def temporal_order_loss(
    q: Tensor,
    k: Tensor,
    labels: Tensor,
    classifier: Callable[[Tensor], Tensor],
    *,
    form: str = "paper",
    reduction: str = "mean",
) -> Tensor:
    r"""Temporal order regularisation (VCLR, eq. 7 to 10): which of two tuples of frames, sampled
    in the same way from one video, were shuffled.

    The frames' embeddings are normalised, concatenated over both tuples, classified, and compared
    with the label by cross-entropy::

        logits = classifier([q_1, ..., q_S, k_1, ..., k_S])       (N, 2 S D) -> (N, 4)

    Args:
        q, k: the heads' outputs for the anchor and the positive tuple (N, S, D), not normalised;
            float64, float32, bfloat16 or float16. VCLR: S = 3, D = 128, k from the momentum
            encoder without gradient.
        labels: (N,) integers. 0: both in order, 1: q shuffled, 2: k shuffled, 3: both (the released
            code's numbers).
        classifier: maps (N, 2 S D) to (N, 4): ``torch.nn.Linear(2 * S * D, 4)``, trained with the
            encoder.
        form: "paper": each frame's embedding is divided by its norm (appendix A.1). "code": each
            channel is divided by its norm over the S frames of the tuple, as the released code's
            ``F.normalize(x, dim=1)`` does on a tensor (N, S, D). That removes the scale of each
            channel.
        reduction: "none": (N,); "sum"; or "mean" over N.

    Returns:
        A scalar, or (N,): float64 when an input is float64, otherwise float32. N = 0: 0. It can be
        differentiated twice.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong or different shapes, or option value, or
            labels beyond 0 to 3 in a CPU tensor.

    Example:
        >>> import torch, fastseq
        >>> classifier = torch.nn.Linear(2 * 3 * 16, 4)
        >>> q, k = torch.randn(2, 5, 3, 16)
        >>> fastseq.temporal_order_loss(q, k, torch.tensor([0, 1, 2, 3, 0]), classifier).shape
        torch.Size([])
    """
    op = "temporal_order_loss"
    _check_embeddings(op, {"q": (q, 3), "k": (k, 3)})
    check_choice(op, "form", form, FORMS)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    if q.shape != k.shape:
        raise ValueError(
            f"{op}: q and k must have the same shape (N, S, D), got {tuple(q.shape)} and "
            f"{tuple(k.shape)}"
        )
    _check_labels(op, labels, len(q))
    dim = 2 if form == "paper" else 1
    with no_autocast(q.device.type):
        q, k = (F.normalize(z, dim=dim).flatten(1) for z in _widest(q, k))
    # The classifier belongs to the caller, and so does autocast.
    logits = classifier(torch.cat([q, k], 1))
    if logits.shape != (len(q), ORDERS):
        raise ValueError(
            f"{op}: classifier must return shape ({len(q)}, {ORDERS}), got {tuple(logits.shape)}"
        )
    with no_autocast(q.device.type):
        (logits,) = _widest(logits)
        losses = F.cross_entropy(logits, labels.long(), reduction="none")
        return _reduce(losses, reduction)


def vclr_loss(
    *,
    inter: tuple[Tensor, Tensor, Tensor] | None = None,
    intra: tuple[Tensor, Tensor, Tensor] | None = None,
    video: tuple[Tensor, Tensor, Tensor] | None = None,
    order: tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]] | None = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    form: str = "paper",
    backend: str = "auto",
) -> Tensor:
    r"""VCLR's loss (eq. 11): the weighted sum of its four parts, each a mean over the batch.

    Each part receives the outputs of its head for the frames, or is left out::

        weights[0] queue_nce(*inter)            eq. 2: frame; positives (N, 3, D): its
                                                re-augmentation, frames of other segments; queue
        weights[1] intra_nce(*intra)            eq. 3: frame, its re-augmentation, the others
        weights[2] queue_nce(*video)            eq. 6: head of the tuple's mean feature, that of the
                                                positive tuple, a second queue
        weights[3] temporal_order_loss(*order)  eq. 10: both tuples, labels, classifier

    Args:
        inter, video: arguments of :func:`fastseq.queue_nce`: q, positives, queue. For ``video`` the
            mean over a tuple's frames is that of the backbone's features, before the head (eq. 4
            and 5), not of the head's outputs.
        intra: arguments of :func:`intra_nce`: q, positive, negatives.
        order: arguments of :func:`temporal_order_loss`: q, k, labels, classifier. Its embeddings
            are always normalised.
        weights: four weights, 0 or more. Default 1: the paper, which did not tune them, and the
            released code.
        temperature: temperature of the first three parts. Default 0.1: the released code. May be a
            floating 0-dim tensor on the device of the embeddings or on the CPU: see
            :func:`fastseq.queue_nce`.
        normalize: normalisation of the first three parts.
        form: "paper", or "code" for the losses of the released code, where they differ: see
            :func:`intra_nce` and :func:`temporal_order_loss`.
        backend: backend of :func:`fastseq.queue_nce`.

    Returns:
        A scalar in the widest type of the terms, float32 or float64.

    Raises:
        TypeError, ValueError, RuntimeError: as the parts raise them; ValueError without any part,
            or with a wrong number of tensors or weights.

    Example:
        >>> import torch, fastseq
        >>> q, queue = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> loss = fastseq.vclr_loss(inter=(q, q, queue), video=(q, q, queue))
        >>> round(loss.item(), 6)
        0.000182
    """
    op = "vclr_loss"
    if isinstance(temperature, Tensor):
        # Each part checks whether the temperature is on the device of its embeddings.
        number, _ = check_scalar(op, "temperature", temperature, temperature.device)
    else:
        number = temperature
    opts = VCLROptions.checked(op, weights, number, normalize, form)
    shared = {"temperature": temperature, "normalize": normalize}
    queued = shared | {"backend": backend}
    terms: tuple[tuple[str, tuple | None, int, Callable[..., Tensor], dict[str, Any]], ...] = (
        ("inter", inter, 3, queue_nce, queued),
        ("intra", intra, 3, intra_nce, shared | {"form": form}),
        ("video", video, 3, queue_nce, queued),
        ("order", order, 4, temporal_order_loss, {"form": form}),
    )
    total = None
    for (name, args, count, function, options), weight in zip(terms, opts.weights, strict=True):
        if args is None:
            continue
        if not isinstance(args, tuple | list) or len(args) != count:
            raise ValueError(f"{op}: {name} must be a tuple of {count}, got {_describe(args)}")
        term = weight * call_as(f"{op}: {name}", function, *args, **options)
        total = term if total is None else total + term
    if total is None:
        raise ValueError(f"{op}: pass at least one of inter, intra, video and order")
    return total


def _describe(args) -> str:
    return f"{len(args)}" if isinstance(args, tuple | list) else type(args).__name__


def _check_embeddings(op: str, tensors: dict[str, tuple[Tensor, int]]) -> None:
    letters = {2: "(N, D)", 3: "(N, S, D)"}
    first = next(iter(tensors.values()))[0]
    for name, (z, dims) in tensors.items():
        if not isinstance(z, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(z).__name__}")
        if z.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{op}: {name} must be float64, float32, bfloat16 or float16, got {z.dtype}"
            )
        if z.dim() != dims or z.shape[-1] == 0:
            raise ValueError(
                f"{op}: {name} must have shape {letters[dims]} with D >= 1, got {tuple(z.shape)}"
            )
        if z.device != first.device:
            raise ValueError(
                f"{op}: all embeddings must be on one device, got {first.device} and {z.device}"
            )


def _check_labels(op: str, labels: Tensor, num: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{op}: labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: labels must be integers, got {labels.dtype}")
    if labels.shape != (num,):
        raise ValueError(f"{op}: labels must have shape ({num},), got {tuple(labels.shape)}")
    # The host does not read labels that are on a GPU.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = [label for label in labels.tolist() if not 0 <= label < ORDERS]
        if wrong:
            raise ValueError(f"{op}: labels must lie between 0 and 3, got {wrong[0]}")


def _widest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the widest of their dtypes, float32 at least."""
    dtype = torch.float32
    for z in tensors:
        dtype = torch.promote_types(dtype, z.dtype)
    return tuple(z.to(dtype) for z in tensors)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() / (max(len(losses), 1) if reduction == "mean" else 1)
