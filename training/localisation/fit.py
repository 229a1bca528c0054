"""Training of BMN and of the classifier of segments, and their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.localisation.annotations import Annotated
from training.localisation.rescale import segment_means


@dataclass(frozen=True)
class Options:
    """How BMN is trained. The defaults are VCLR's (A.2.2) and mmaction2's bmn_400x100 recipe.

    Attributes:
        epochs: the learning rate is a tenth in the last 2/9 of them (after epoch 7 of 9).
        batch_size: videos in a step; the last step of an epoch may have fewer.
        lr: learning rate of Adam; its weight decay is 1e-4.
        channels, samples: of `training.localisation.model.BMN`.
        seed: of the initial weights and the order of the videos.
    """

    epochs: int = 9
    batch_size: int = 16
    lr: float = 1e-3
    channels: int = 128
    samples: int = 32
    seed: int = 0


WEIGHT_DECAY = 1e-4
DECAYED_FROM = 7 / 9


def train_bmn(
    features: Mapping[str, np.ndarray],
    videos: Sequence[Annotated],
    options: Options,
    *,
    title: str = "training BMN",
) -> tuple[Any, list[float]]:
    """A BMN trained on videos with segments, in eval mode, and the mean loss of each epoch.

    Uses the GPU if there is one. Shows a bar of the steps. UserError if the loss is not finite.

    Args:
        features: video -> float32 (T, F).
        videos: the training videos.
    """
    import torch
    from tqdm import tqdm

    from training.localisation.loss import bmn_loss
    from training.localisation.model import BMN
    from training.localisation.targets import boundary_targets, iou_map
    from training.support.command import UserError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = [torch.from_numpy(features[video.name]) for video in videos]  # a stack would copy them
    steps, size = x[0].shape
    curves = [boundary_targets(video.shares, steps) for video in videos]
    targets = (
        *(torch.from_numpy(np.stack(one)) for one in zip(*curves, strict=True)),
        torch.from_numpy(np.stack([iou_map(video.shares, steps) for video in videos])),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = BMN(size, steps, channels=options.channels, samples=options.samples)
    mean = torch.stack([one.mean(0) for one in x]).mean(0)
    variance = torch.stack([(one - mean).square().mean(0) for one in x]).mean(0)
    model.mean.copy_(mean)
    model.std.copy_(variance.sqrt().clamp(min=1e-6))
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)
    random = torch.Generator().manual_seed(options.seed)
    losses = []
    batches = -(-len(videos) // options.batch_size)
    with tqdm(total=options.epochs * batches, desc=title, unit="step") as bar, torch.enable_grad():
        for epoch in range(options.epochs):
            late = epoch >= round(DECAYED_FROM * options.epochs)
            optimiser.param_groups[0]["lr"] = options.lr * (0.1 if late else 1.0)
            total = 0.0
            for batch in torch.randperm(len(videos), generator=random).split(options.batch_size):
                start, end, maps = model(torch.stack([x[i] for i in batch]).to(device))
                wanted = tuple(one[batch].to(device) for one in targets)
                loss = bmn_loss(start, end, maps, wanted, model.valid)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(batch)
                bar.update()
            losses.append(total / len(videos))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if not np.isfinite(losses[-1]):
                raise UserError(
                    f"the loss of epoch {epoch + 1} is {losses[-1]}; try a lower --lr than "
                    f"{options.lr:g}"
                )
    return model.eval(), losses


def proposals_of(
    model: Any, features: Mapping[str, np.ndarray], videos: Sequence[Annotated]
) -> dict[str, np.ndarray]:
    """Video -> float64 (n, 3): start and end in seconds, and score. Shows a bar."""
    import torch
    from tqdm import tqdm

    from training.localisation.proposals import propose

    found = {}
    device = model.mean.device
    with torch.inference_mode():
        for video in tqdm(videos, "proposals", unit="video"):
            x = torch.from_numpy(features[video.name])[None].to(device)
            scores = (one[0].sigmoid().cpu().double().numpy() for one in model(x))
            found[video.name] = in_seconds(propose(*scores), video)
    return found


def in_seconds(proposals: np.ndarray, video: Annotated) -> np.ndarray:
    """Proposals whose start and end are shares of the video's length, in seconds."""
    return proposals * [video.seconds, video.seconds, 1.0]


class SegmentClassifier:
    """The class of a segment by its mean feature: multinomial logistic regression.

    It is fitted to the annotated segments of the training videos, on standardised features, with
    scikit-learn's LogisticRegression (C = 1). With one class it needs no fit.
    """

    def __init__(self, features: Mapping[str, np.ndarray], videos: Sequence[Annotated]):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x = np.concatenate([segment_means(features[one.name], one.shares) for one in videos])
        y = np.array([label for one in videos for label in one.labels])
        self.classes = sorted({*y})
        self._fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        if len(self.classes) > 1:
            self._fitted.fit(x, y)

    def __call__(
        self, features: np.ndarray, proposals: np.ndarray, video: Annotated
    ) -> tuple[np.ndarray, list[str]]:
        """Each proposal with its most likely class, and its score times that probability.

        Args:
            features: (T, F) of the video.
            proposals: (n, 3), start and end in seconds, and score.
        """
        if not len(proposals):
            return proposals, []
        if len(self.classes) == 1:
            return proposals, self.classes * len(proposals)
        chances = self._fitted.predict_proba(
            segment_means(features, proposals[:, :2] / video.seconds)
        )
        best = chances.argmax(axis=1)
        scored = proposals.copy()
        scored[:, 2] *= chances[np.arange(len(best)), best]
        return scored, [str(self._fitted.classes_[i]) for i in best]
