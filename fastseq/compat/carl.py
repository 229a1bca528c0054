"""CARL_code's ``algos.scl.SCL``: change one import, keep the training loop."""

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.scl import scl_loss


class SCL:
    """The sequence contrastive loss with the constructor and methods of CARL_code's class.

    By default this is :func:`fastseq.scl_loss` (fused, memory linear in T, no epsilon, no NaN at
    small temperatures). ``exact=True`` is the released formula to the letter, dense, for checking
    old results. It includes the released 1e-6 inside the logarithm and the weight of 1e-6 of padded
    pairs.

    Args:
        cfg: CARL_code's config. The class reads SCL.POSITIVE_TYPE, SCL.NEGATIVE_TYPE,
            SCL.SOFTMAX_TEMPERATURE, SCL.LABEL_VARIENCE, TRAIN.NUM_FRAMES and MODEL.PROJECTION.
        exact: True: the released formula. False (default): the fused one.
        backend: as in :func:`fastseq.scl_loss`; no effect with ``exact``.

    Raises:
        ValueError: POSITIVE_TYPE is not "gauss" (the released class then returns 0 silently), or
            NEGATIVE_TYPE is one that only the released formula supports.
    """

    def __init__(self, cfg, *, exact: bool = False, backend: str = "auto"):
        if cfg.SCL.POSITIVE_TYPE != "gauss":
            raise ValueError(
                f"SCL.POSITIVE_TYPE must be 'gauss', got {cfg.SCL.POSITIVE_TYPE!r} "
                "(anything else makes the released loss 0)"
            )
        self.cfg = cfg
        self.exact = exact
        self.backend = backend
        self.negative_type = cfg.SCL.NEGATIVE_TYPE
        self.temperature = cfg.SCL.SOFTMAX_TEMPERATURE
        self.variance = cfg.SCL.LABEL_VARIENCE
        # The released class tests for substrings.
        single, noself = "single" in self.negative_type, "noself" in self.negative_type
        self.negatives = {
            (True, True): "cross",
            (True, False): "video",
            (False, True): "batch",
        }.get((single, noself))
        if self.negatives is None and not exact:
            raise ValueError(
                f"SCL.NEGATIVE_TYPE {self.negative_type!r} needs exact=True; use 'single_noself' "
                "(the paper), 'single' or 'batch_noself', or SCL(cfg, exact=True)"
            )

    def compute_loss(
        self, model, videos, seq_lens, chosen_steps, video_masks=None, training=True
    ) -> dict[str, Tensor]:
        """One pass through the model; videos (B, 2, T, C, H, W). Returns {"loss": scalar}."""
        batch, views, steps, *image = videos.shape
        frames = self.cfg.TRAIN.NUM_FRAMES
        masks = None if video_masks is None else video_masks.view(-1, 1, steps)
        embs = model(
            videos.view(-1, steps, *image),
            frames,
            video_masks=masks,
            project=self.cfg.MODEL.PROJECTION,
        )
        embs = embs.view(batch, views, frames, embs.size(-1))
        device = embs.device
        return self.compute_sequence_loss(
            embs,
            seq_lens.view(batch, views).to(device),
            chosen_steps.to(device),
            None if masks is None else masks.to(device),
        )

    def compute_sequence_loss(
        self, embs: Tensor, seq_lens: Tensor, steps: Tensor, masks: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss of embeddings (B, 2, T, D) that the model has normalised.

        seq_lens (B, 2) are the videos' lengths in frames, steps (B, 2, T) raw frame indices and
        masks (B * 2, 1, T) 1 = real frame. Without masks all frames are real.
        """
        batch, views, frames, _ = embs.shape
        if views != 2:
            raise ValueError(f"SCL needs two views, got embeddings of shape {tuple(embs.shape)}")
        steps = steps.view(batch, views, frames)
        valid = torch.ones_like(steps) if masks is None else masks.view(batch, views, frames)
        if self.exact:
            return {"loss": self._released(embs, seq_lens, steps, valid)}
        # Both views of a video have the same length, so the released rescaling of steps changes
        # nothing.
        loss = call_as(
            "SCL",
            scl_loss,
            embs[:, 0],
            embs[:, 1],
            steps[:, 0],
            steps[:, 1],
            valid1=valid[:, 0] != 0,
            valid2=valid[:, 1] != 0,
            variance=self.variance,
            temperature=self.temperature,
            normalize=False,
            negatives=self.negatives,
            backend=self.backend,
        )
        return {"loss": loss}

    def _released(self, embs, seq_lens, steps, valid) -> Tensor:
        batch, views, frames, channels = embs.shape
        with torch.autocast(embs.device.type, enabled=False):
            z = embs.reshape(-1, channels)
            z = z if z.dtype == torch.float64 else z.float()
            # Rows are ordered by video, view, frame.
            length = seq_lens.to(z.dtype)[..., None].expand(-1, -1, frames).reshape(-1)
            time = steps.to(z.dtype).reshape(-1)
            side = torch.arange(batch * views, device=z.device).repeat_interleave(frames)
            same_video = side[:, None] // views == side // views
            same_view = side[:, None] == side
            real = valid.reshape(-1).to(z.dtype)
            pair = real[:, None] * real

            gap = (time / length)[:, None] * length - time
            gap = gap.masked_fill(pair == 0, 1e6)
            candidates = torch.ones_like(gap)
            if "single" in self.negative_type:
                candidates.masked_fill_(~same_video, 0)
            if "noself" in self.negative_type:
                candidates.masked_fill_(same_view, 0)
            candidates.masked_fill_(pair == 0, 1e-6)

            target = torch.exp(-gap.square() / (2 * self.variance)) * (same_video & ~same_view)
            target = (target / target.sum(1, keepdim=True)).nan_to_num(0)
            weight = torch.exp(z @ z.T / self.temperature)
            q = weight / (candidates * weight).sum(1, keepdim=True)
            q = torch.where(q.isnan(), 0, q)
            kl = torch.special.xlogy(target, target) - target * torch.log(q + 1e-6)
            return (kl * pair).sum() / real.sum()
