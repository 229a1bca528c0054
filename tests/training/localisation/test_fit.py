"""Training of BMN and the classifier of segments."""

import numpy as np
import pytest
import torch

from training.localisation.annotations import Annotated
from training.localisation.fit import Options, SegmentClassifier, train_bmn
from training.support.command import UserError


def video(name, labels=("run",)):
    segments = np.array([[1.0, 3.0], [5.0, 8.0]])[: len(labels)]
    return Annotated(name, 10.0, 100, "train", segments, labels)


def values(count, seed=0):
    rng = np.random.default_rng(seed)
    return {f"v_{i}": rng.standard_normal((10, 3)).astype(np.float32) for i in range(count)}


def test_learning_rate_and_batches(monkeypatch):
    rates, sizes = [], []
    step, cat = torch.optim.Adam.step, torch.stack
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1],
    )
    monkeypatch.setattr(torch, "stack", lambda x, *_: (sizes.append(len(x)), cat(x, *_))[1])
    options = Options(batch_size=3, channels=2, samples=2)
    videos = [video(f"v_{i}") for i in range(5)]
    _, losses = train_bmn(values(5), videos, options)
    assert len(losses) == 9
    assert rates == [1e-3] * 14 + [pytest.approx(1e-4)] * 4  # after epoch 7 of 9
    assert sizes == [5, 5] + [3, 2] * 9  # mean and variance of the features first


def test_features_without_variance_and_infinite_losses():
    features = values(4)
    for one in features.values():
        one[:, 1] = 3.0
    videos = [video(name) for name in features]
    options = Options(epochs=2, channels=2, samples=2)
    model, losses = train_bmn(features, videos, options)
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(model.mean[1], 3.0)
    with pytest.raises(
        UserError, match=r"the loss of epoch \d is .*; try a lower --lr than 1e\+30"
    ):
        train_bmn(features, videos, Options(epochs=4, channels=2, samples=2, lr=1e30))


def test_classifier_of_segments():
    features = values(20)
    videos = []
    for name, one in features.items():
        one[1:3, 0] += 4  # the first segment runs, the second one jumps
        one[5:8, 1] += 4
        videos.append(video(name, ("run", "jump")))
    classify = SegmentClassifier(features, videos)
    proposals = np.array([[5.0, 8.0, 0.5], [1.0, 3.0, 0.4]])
    scored, labels = classify(features["v_0"], proposals, videos[0])
    assert labels == ["jump", "run"]
    np.testing.assert_array_equal(scored[:, :2], proposals[:, :2])
    assert (scored[:, 2] < proposals[:, 2]).all()  # times a probability
    assert (scored[:, 2] > 0.9 * proposals[:, 2]).all()
    assert classify(features["v_0"], np.zeros((0, 3)), videos[0])[1] == []
    alone = SegmentClassifier(features, [video(name) for name in features])
    scored, labels = alone(features["v_0"], proposals, videos[0])
    assert labels == ["run", "run"]
    np.testing.assert_array_equal(scored, proposals)
