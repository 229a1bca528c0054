"""LAV-CVPR21's ``losses.LAV``: change one import, keep the training loop."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.common.validate import (
    check_bool,
    check_nonnegative,
    check_pair,
    check_positive,
)
from fastseq.ops.contrastive_idm import contrastive_idm
from fastseq.ops.soft_dtw import soft_dtw


class LAV(torch.nn.Module):
    """LAV's loss with the constructor and the call of the released module, for any number of pairs.

    Values equal those of that module; gradients of Soft-DTW equal those it would compute in exact
    arithmetic. Memory is linear in the number of frames, and nothing moves to the CPU and back.

    Args:
        alpha: weight of the regularisation (released configuration: 0.5).
        sigma: window in frames of the video (released configuration: 10).
        margin: margin of squared distances (2.0).
        num_frames: divisor of the total (20, the frames of a sequence).
        dtw_gamma: smoothing of Soft-DTW (0.1).
        dtw_normalize: use Soft-DTW's divergence instead of its value (False).
        debug: accepted and ignored: nothing is drawn.
        backend: "auto", "torch" or "reference", as in :func:`fastseq.lav_loss`.

    Example:
        >>> import torch
        >>> criterion = LAV(0.5, 10, 2.0, 20, 0.1, False)
        >>> a, b = torch.nn.functional.normalize(torch.randn(2, 1, 20, 128), dim=-1)
        >>> steps = torch.arange(20) / 20
        >>> criterion(a, b, steps, steps, torch.tensor([300]), torch.tensor([240])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        alpha: float,
        sigma: float,
        margin: float,
        num_frames: int,
        dtw_gamma: float,
        dtw_normalize: bool,
        debug: bool = False,
        *,
        backend: str = "auto",
    ):
        super().__init__()
        check_bool("LAV", "dtw_normalize", dtw_normalize)
        self.alpha = check_nonnegative("LAV", "alpha", alpha)
        self.sigma = check_nonnegative("LAV", "sigma", sigma)
        self.margin = check_positive("LAV", "margin", margin)
        self.N = check_positive("LAV", "num_frames", num_frames)
        self.gamma = check_positive("LAV", "dtw_gamma", dtw_gamma)
        self.normalize = dtw_normalize
        self.debug = debug
        self.backend = backend

    def forward(
        self,
        a_emb: Tensor,
        b_emb: Tensor,
        a_idx: Tensor,
        b_idx: Tensor,
        a_len: Tensor | int,
        b_len: Tensor | int,
        logger: object = None,
    ) -> Tensor:
        """(B,) values of a_emb (B, N, D) and b_emb (B, M, D).

        a_idx and b_idx are the frames' indices divided by their video's length, (N,) or (B, N);
        a_len and b_len are those lengths, a number or (B,). logger is ignored.
        """
        check_pair("LAV", "a_emb", a_emb, "b_emb", b_emb)
        if a_emb.dim() != 3:
            raise ValueError(
                "LAV: a_emb and b_emb must have shape (B, N, D) and (B, M, D), got "
                f"{tuple(a_emb.shape)} and {tuple(b_emb.shape)}"
            )
        total = call_as(
            "LAV",
            soft_dtw,
            a_emb,
            b_emb,
            gamma=self.gamma,
            divergence=self.normalize,
            backend=self.backend,
        )
        for z, idx, length in ((a_emb, a_idx, a_len), (b_emb, b_idx, b_len)):
            length = torch.as_tensor(length, device=z.device).float().reshape(-1)
            idm = call_as(
                "LAV",
                contrastive_idm,
                z,
                idx.float(),
                window=(self.sigma / length).expand(len(z)),
                margin=self.margin,
                weights="code",
                reduction="none",
                backend=self.backend,
            )
            total = total + self.alpha * idm
        return total / self.N
