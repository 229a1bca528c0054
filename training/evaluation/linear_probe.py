"""CARL's linear classifier of FineGym: one layer on frozen embeddings, trained by SGD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.support.command import UserError

# Of CARL's released evaluate_finegym.py: 10 videos on each of 4 GPUs.
BATCH_VIDEOS = 40
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-6


class LinearProbe:
    """Linear(E -> classes) with softmax cross-entropy, with the interface of scikit-learn.

    Each epoch visits the videos in a new random order. A batch is the labelled frames of 40 videos,
    or of all videos if there are fewer; an incomplete last batch is left out, as in CARL's code.
    The learning rate of epoch e = 0, 1, ... is lr (1 + cos(pi e / epochs)) / 2; the weights after
    the last epoch count. The same seed and number of threads produce the same weights.

    Args:
        lengths: number of labelled frames of each training video, in the order of the frames.
        lr, epochs: initial learning rate and number of epochs.
        seed: of the initial weights, uniform in [-1 / sqrt(E), 1 / sqrt(E)], and of the orders.
        progress: show a bar of the epochs.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        lr: float = 50.0,
        epochs: int = 100,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.lengths, self.lr, self.epochs = list(lengths), lr, epochs
        self.seed, self.progress = seed, progress

    def fit(self, x: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Train on embeddings x (frames, E) of the classes y (frames,).

        UserError if an embedding or a weight after training is infinite or NaN.
        """
        import torch
        from torch.nn import functional
        from tqdm import tqdm

        self.classes, targets = np.unique(y, return_inverse=True)
        frames = _tensor(x)
        videos = frames.split(self.lengths)
        labels = torch.from_numpy(targets).split(self.lengths)
        random = torch.Generator().manual_seed(self.seed)
        bound = frames.shape[1] ** -0.5
        weight = torch.empty(len(self.classes), frames.shape[1])
        bias = torch.empty(len(self.classes))
        for parameter in (weight, bias):
            parameter.uniform_(-bound, bound, generator=random).requires_grad_()
        optimiser = torch.optim.SGD(
            [weight, bias], lr=self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda epoch: (1 + np.cos(np.pi * epoch / self.epochs)) / 2
        )
        size = min(BATCH_VIDEOS, len(videos))
        bar = tqdm(
            range(self.epochs), "linear probe", unit="epoch", disable=not self.progress, leave=False
        )
        with torch.enable_grad():
            for _ in bar:
                order = torch.randperm(len(videos), generator=random).tolist()
                for start in range(0, len(videos) - size + 1, size):
                    batch = order[start : start + size]
                    logits = functional.linear(torch.cat([videos[i] for i in batch]), weight, bias)
                    loss = functional.cross_entropy(logits, torch.cat([labels[i] for i in batch]))
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                schedule.step()
        self.weight, self.bias = weight.detach(), bias.detach()
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise UserError(
                f"the linear classifier diverged at learning rate {self.lr:g}, which suits "
                "embeddings of unit length; choose a smaller --probe-lr"
            )
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The class of each embedding of x (frames, E), the first one of equal scores."""
        import torch

        best = [
            torch.addmm(self.bias, part, self.weight.T).argmax(1)
            for part in _tensor(x).split(65536)  # the scores of all frames may be gigabytes
        ]
        return self.classes[torch.cat(best).numpy()]


def _tensor(x: np.ndarray):
    """Embeddings as a float32 tensor; UserError if one is infinite or NaN."""
    import torch

    frames = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if not frames.isfinite().all():
        bad = int((~frames.isfinite()).any(1).sum())
        raise UserError(
            f"the embeddings of {bad} of {len(frames)} frames are infinite or NaN; evaluate a "
            "checkpoint with finite embeddings"
        )
    return frames
