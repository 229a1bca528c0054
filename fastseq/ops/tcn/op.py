"""tcn_loss: n-pairs between anchors and positives, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops.common.dispatch import no_autocast
from fastseq.ops.common.validate import check_nonnegative, check_pair


def tcn_loss(anchors: Tensor, positives: Tensor, *, reg_lambda: float = 0.002) -> Tensor:
    r"""N-pairs loss between frames and their neighbours in time (TCN, Sermanet et al., 2018).

    The positive of anchor i is positive i; its negatives are the positives of the other anchors of
    the sequence. With P pairs per sequence::

        loss = mean_i -log softmax_j(<anchors_i, positives_j>)_i
               + reg_lambda / 4 (mean_i ||anchors_i||^2 + mean_i ||positives_i||^2)

    averaged over sequences. This is the loss in the released code of CARL and TCC, which pair each
    anchor with a frame at most 5 frames away. There is no temperature.

    Args:
        anchors, positives: embeddings (N, P, D), or (P, D) for one sequence; float64, float32,
            bfloat16 or float16. Not normalised here.
        reg_lambda: weight of the squared norms. Default 0.002: the released code.

    Returns:
        A scalar: float64 for float64 inputs, otherwise float32. 0 without any pair. It can be
        differentiated twice. Memory: N P^2 numbers, where P is half the sampled frames.

    Raises:
        TypeError: wrong dtype or type. ValueError: wrong or different shapes.

    Example:
        >>> import torch, fastseq
        >>> z = torch.eye(4)
        >>> round(fastseq.tcn_loss(z, z, reg_lambda=0.0).item(), 4)
        0.7437
    """
    check_pair("tcn_loss", "anchors", anchors, "positives", positives)
    if anchors.shape != positives.shape:
        raise ValueError(
            "tcn_loss: anchors and positives must have the same shape, "
            f"got {tuple(anchors.shape)} and {tuple(positives.shape)}"
        )
    reg_lambda = check_nonnegative("tcn_loss", "reg_lambda", reg_lambda)
    dtype = torch.promote_types(anchors.dtype, positives.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    with no_autocast(anchors.device.type):
        a, p = anchors.to(dtype), positives.to(dtype)
        if a.dim() == 2:
            a, p = a[None], p[None]
        num, pairs = a.shape[:2]
        labels = torch.arange(pairs, device=a.device).repeat(num)
        entropy = F.cross_entropy((a @ p.mT).flatten(0, 1), labels, reduction="sum")
        norms = a.square().sum() + p.square().sum()
        return (entropy + reg_lambda / 4 * norms) / max(num * pairs, 1)
