"""scl_loss written without fastseq. All functions take z1, z2 (N, T, D) and t1, t2 (N, T)."""

import os
import tempfile
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Unavailable
from fastseq.compat.carl import SCL

VARIANCE, TEMPERATURE = 10.0, 0.1
# Distinct integer timestamps have at most 2 * 24 + 1 neighbours within 24 frames; beyond that the
# Gaussian is below 4e-13.
BAND = 24


def unit(z: Tensor) -> Tensor:
    """Normalised in float32, then cast to the dtype in which autocast would multiply."""
    return F.normalize(z.float(), dim=-1).to(z.dtype)


def eager(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """Vectorised over videos: one (N, T, T) matrix for the scores, one for the Gaussian."""
    scores = torch.bmm(unit(z1), unit(z2).mT).float() / TEMPERATURE
    gap = (t1[:, :, None] - t2[:, None, :]).float()
    log_g = gap.square() / (-2 * VARIANCE)
    loss = F.kl_div(scores.log_softmax(2), log_g.softmax(2), reduction="sum")
    loss = loss + F.kl_div(scores.log_softmax(1), log_g.softmax(1), reduction="sum")
    return loss / (t1.numel() + t2.numel())


def build_compiled(case: Case):
    return torch.compile(eager, dynamic=False, fullgraph=True)


def build_released(case: Case):
    """CARL_code's formula: one (2 N T, 2 N T) matrix, with epsilon in the logarithm."""
    options = SimpleNamespace(
        POSITIVE_TYPE="gauss",
        NEGATIVE_TYPE="single_noself",
        SOFTMAX_TEMPERATURE=TEMPERATURE,
        LABEL_VARIENCE=VARIANCE,
    )
    criterion = SCL(SimpleNamespace(SCL=options), exact=True)

    def released(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        embs = torch.stack([unit(z1), unit(z2)], 1)
        lengths = torch.full((len(z1), 2), 2 * z1.shape[1], device=z1.device)
        return criterion.compute_sequence_loss(embs, lengths, torch.stack([t1, t2], 1))["loss"]

    return released


def softclt(
    z1: Tensor,
    z2: Tensor,
    weights: Tensor,  # (2 T, 2 T) or (N, 2 T, 2 T)
    *,
    own_targets: bool = True,
    without_itself: bool = True,
    normalised: bool = False,
) -> Tensor:
    """SoftCLT's temporal loss, dense. The defaults are the released properties.

    Every frame of both views is compared with all frames of both views, except ``without_itself``.
    Its targets are frames of the other view and, with ``own_targets``, of the same view too.
    """
    frames = z1.shape[1]
    z = torch.cat([z1, z2], 1)
    scores = z @ z.mT
    itself = torch.eye(2 * frames, dtype=torch.bool, device=z.device)
    if without_itself:
        scores = scores.masked_fill(itself, -torch.inf)
        weights = weights.masked_fill(itself, 0)
    if not own_targets:
        view = torch.arange(2 * frames, device=z.device) // frames
        weights = weights.masked_fill(view[:, None] == view, 0)
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    log_p = scores.log_softmax(2)
    if without_itself:
        log_p = log_p.masked_fill(itself, 0)
    return -(weights * log_p).sum() / (2 * frames * len(z))


def build_keops(case: Case):
    """KeOps LazyTensors: symbolic (N, T, T) matrices, reduced by generated code, in float32."""
    # Read when pykeops is imported; one folder per user, kept between runs.
    folder = os.path.join(tempfile.gettempdir(), f"fastseq-keops-{os.getuid()}")
    os.environ.setdefault("KEOPS_CACHE_FOLDER", folder)
    os.makedirs(os.environ["KEOPS_CACHE_FOLDER"], mode=0o700, exist_ok=True)
    try:
        import pykeops
        from pykeops.torch import LazyTensor

    except ImportError:
        raise Unavailable('pykeops is not installed: pip install "fastseq[bench]"') from None
    pykeops.set_verbose(False)

    def side(za: Tensor, zb: Tensor, ta: Tensor, tb: Tensor) -> Tensor:
        a, b = LazyTensor(za[:, :, None]), LazyTensor(zb[:, None])
        gap = LazyTensor(ta.float()[:, :, None, None]) - LazyTensor(tb.float()[:, None, :, None])
        scores, log_g = (a | b) / TEMPERATURE, gap.square() / (-2 * VARIANCE)
        g = log_g.exp()
        total = g.sum(2)
        return (scores.logsumexp(2) - (g * (scores - log_g)).sum(2) / total - total.log()).sum()

    def keops(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        z1, z2 = F.normalize(z1.float(), dim=-1), F.normalize(z2.float(), dim=-1)
        loss = side(z1, z2, t1, t2) + side(z2, z1, t2, t1)
        return loss / (t1.numel() + t2.numel())

    return keops


def flex_lse(za: Tensor, zb: Tensor) -> Tensor:
    """Log-sum-exp over each row of the scores by FlexAttention, with values as narrow as it
    allows.
    """
    from torch.nn.attention import flex_attention as module

    values = zb.new_zeros(len(zb), 1, zb.shape[1], 16)
    args = (za[:, None], zb[:, None], values)
    if hasattr(module, "AuxRequest"):  # since PyTorch 2.9
        aux = module.AuxRequest(lse=True)
        return module.flex_attention(*args, scale=1 / TEMPERATURE, return_aux=aux)[1].lse[:, 0]
    return module.flex_attention(*args, scale=1 / TEMPERATURE, return_lse=True)[1][:, 0]


def dense_lse(za: Tensor, zb: Tensor) -> Tensor:
    """The same, dense: checks `flex` where FlexAttention has no backward."""
    return (za @ zb.mT / TEMPERATURE).float().logsumexp(2)


def flex(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor, lse=flex_lse) -> Tensor:
    """Softmax part by FlexAttention, Gaussian part by gathering each frame's neighbours.

    Timestamps must be sorted, distinct integers.
    """
    z1, z2 = unit(z1), unit(z2)
    loss = _flex_side(z1, z2, t1, t2, lse) + _flex_side(z2, z1, t2, t1, lse)
    return loss / (t1.numel() + t2.numel())


def _flex_side(za: Tensor, zb: Tensor, ta: Tensor, tb: Tensor, lse) -> Tensor:
    num, frames = tb.shape
    index = torch.searchsorted(tb, ta - BAND)[..., None]
    index = index + torch.arange(2 * BAND + 1, device=tb.device)  # [N, T, W]
    inside = index < frames
    index = index.clamp(max=frames - 1)
    gap = ta[..., None] - tb.gather(1, index.flatten(1)).view_as(index)
    log_g = (gap.float().square() / (-2 * VARIANCE)).masked_fill(~inside, -1e4)
    log_w = log_g.log_softmax(2)
    # In float32, so that the scatter of the gradient accumulates in float32.
    video = torch.arange(num, device=tb.device)[:, None, None]
    neighbours = zb.float()[video, index]  # [N, T, W, D]
    scores = (za[:, :, None].float() * neighbours).sum(3) / TEMPERATURE
    return lse(za, zb).sum() + (log_w.exp() * (log_w - scores)).sum()


def build_flex(case: Case):
    if case.device != "cuda":
        raise Unavailable("FlexAttention has no backward on the CPU")
    return torch.compile(flex, dynamic=False)
