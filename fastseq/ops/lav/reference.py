"""The definition of lav_loss in plain PyTorch: dense, any dtype, differentiable twice."""

from torch import Tensor

from fastseq.ops.contrastive_idm.options import CIDMOptions
from fastseq.ops.contrastive_idm.reference import contrastive_idm_reference
from fastseq.ops.lav.options import LAVOptions
from fastseq.ops.soft_dtw.costs import cosine_frames, full_precision
from fastseq.ops.soft_dtw.options import SoftDTWOptions
from fastseq.ops.soft_dtw.reference import soft_dtw_reference


def lav_reference(
    x: Tensor,
    y: Tensor,
    tx: Tensor | None,
    ty: Tensor | None,
    lengths_x: Tensor | None,
    lengths_y: Tensor | None,
    windows: tuple[Tensor | None, Tensor | None],
    opts: LAVOptions,
) -> Tensor:
    """(N,) of soft_dtw(x, y) + alpha (I(x) + I(y)), of inputs that op.py has checked."""
    regulariser = CIDMOptions(
        opts.window, opts.margin, "contrastive", opts.form, "sqeuclidean", "none"
    )
    idm = contrastive_idm_reference(x, tx, lengths_x, windows[0], regulariser)
    idm = idm + contrastive_idm_reference(y, ty, lengths_y, windows[1], regulariser)
    x, y = full_precision(x), full_precision(y)
    if opts.cost == "cosine":
        x, y = cosine_frames(x, lengths_x, 0), cosine_frames(y, lengths_y, 1)

    def warp(a, b, lengths_a, lengths_b):
        lengths = lengths_a, lengths_b
        gamma = SoftDTWOptions(opts.gamma, None)
        return soft_dtw_reference(a, b, None, None, *lengths, None, None, gamma)

    align = warp(x, y, lengths_x, lengths_y)
    if opts.divergence:
        own = warp(x, x, lengths_x, lengths_x) + warp(y, y, lengths_y, lengths_y)
        align = align - own / 2
    return align + opts.alpha * idm
