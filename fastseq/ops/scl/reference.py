"""The definition of scl_loss in plain PyTorch: dense, any dtype, differentiable twice."""

import torch
from torch import Tensor

from fastseq.ops.common.lengths import shift_times, valid_mask
from fastseq.ops.scl.options import (
    NORM_EPS,
    SCLOptions,
    log_target,
    reach,
    row_coefficients,
    scalars,
)


def scl_reference(
    z1: Tensor,
    z2: Tensor,
    tau: Tensor | None,
    var: Tensor | None,
    t1: Tensor | None,
    t2: Tensor | None,
    valid1: Tensor | None,
    valid2: Tensor | None,
    opts: SCLOptions,
) -> Tensor:
    """Dense scl_loss of inputs that op.py has checked: z (N, T, D), times and masks per frame."""
    (n, frames1, _), frames2 = z1.shape, z2.shape[1]
    dtype = torch.float64 if z1.dtype == torch.float64 else torch.float32
    m1 = valid_mask(valid1, n, frames1, z1.device)
    m2 = valid_mask(valid2, n, frames2, z1.device)
    # Padding may contain NaN; ones are harmless and keep the norm differentiable twice.
    z1 = torch.where(m1[..., None], z1, 1).to(dtype)
    z2 = torch.where(m2[..., None], z2, 1).to(dtype)
    if opts.normalize:
        z1 = z1 / z1.norm(dim=-1, keepdim=True).clamp(min=NORM_EPS)
        z2 = z2 / z2.norm(dim=-1, keepdim=True).clamp(min=NORM_EPS)

    temperature, variance = scalars(tau, var, opts, dtype)
    logits = z1 @ z2.mT / temperature  # [N, T1, T2]
    w, wt, log_w, log_wt = _targets(t1, t2, m1, m2, variance, opts.target, dtype)
    side = z1, z2, m1, m2, temperature, opts.negatives
    rows1 = _rows(w, log_w, logits, _log_denominator(0, logits, *side), opts)
    rows2 = _rows(wt, log_wt, logits.mT, _log_denominator(1, logits, *side), opts)

    coef = row_coefficients(m1, m2, opts.reduction, dtype)
    loss = coef[0] * rows1.sum(1) + coef[1] * rows2.sum(1)
    return loss if opts.reduction == "none" else loss.sum()


@torch.no_grad()
def _targets(t1, t2, m1, m2, variance: Tensor | float, target: str, dtype: torch.dtype):
    """Targets of both directions, with logs. Rows sum to 1, or to 0 if isolated."""
    if t1 is None:
        t1 = torch.arange(m1.shape[1], device=m1.device).expand_as(m1)
        t2 = torch.arange(m2.shape[1], device=m2.device).expand_as(m2)
    t1, t2 = shift_times(t1, t2, m1, m2, dtype)
    gap = t1[:, :, None] - t2[:, None, :]
    near = m1[:, :, None] & m2[:, None, :] & ~(gap.abs() > reach(variance, target))  # NaN stays
    log_g = log_target(gap, variance, target).masked_fill(~near, -torch.inf)
    out = []
    for log_rows in (log_g, log_g.mT):
        log_w = torch.log_softmax(log_rows, -1) if log_rows.numel() else log_rows
        none = log_rows == -torch.inf
        out.append((log_w.exp().masked_fill(none, 0), log_w.masked_fill(none, 0)))
    (w, log_w), (wt, log_wt) = out
    return w, wt, log_w, log_wt


def _log_denominator(view: int, logits, z1, z2, m1, m2, temperature, negatives: str) -> Tensor:
    """log of the sum over the softmax's candidates, for each row of one view: (N, T)."""
    s, keys, own, m_own = (logits, m2, z1, m1) if view == 0 else (logits.mT, m1, z2, m2)
    parts = [s.masked_fill(~keys[:, None, :], -torch.inf)]
    if negatives == "video":
        same_view = own @ own.mT / temperature
        parts.append(same_view.masked_fill(~m_own[:, None, :], -torch.inf))
    elif negatives == "batch":
        every = torch.cat([z1, z2], 1)  # [N, T1 + T2, D]
        others = torch.einsum("ntd,msd->ntms", own, every) / temperature
        n = len(every)
        real = (
            torch.cat([m1, m2], 1)[None]
            & ~torch.eye(n, dtype=torch.bool, device=own.device)[:, :, None]
        )  # [N, N, T1 + T2]
        others = others.masked_fill(~real[:, None], -torch.inf)
        parts.append(others.flatten(2))
    scores = torch.cat(parts, -1)
    # A row without any candidate has no softmax; its weights are 0, so any finite value will do.
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.logsumexp(scores.masked_fill(empty, 0), -1) if scores.shape[-1] else scores.sum(-1)


def _rows(w, log_w, logits, log_denominator, opts: SCLOptions) -> Tensor:
    """KL(w_i || p_i) or the cross-entropy, for each row; 0 for rows without target."""
    near = w > 0
    rows = (w * torch.where(near, log_denominator[..., None] - logits, 0)).sum(-1)
    if opts.objective == "kl":
        rows = rows + (w * log_w).sum(-1)
    return rows
