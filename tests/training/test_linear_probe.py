"""CARL's linear classifier of FineGym, compared with an explicit loop and on known clusters."""

import numpy as np
import pytest
import torch
from test_evaluation import embedded, record, video

from training.evaluation import metrics
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.linear_probe import LinearProbe
from training.evaluation.scores import evaluate_embeddings
from training.support.command import UserError

CLASSES, DIM = 7, 16


def clusters(frames, seed, noise=0.35):
    """Embeddings around one unit vector for each class, classes, and the best guess of each."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, frames)
    x = centres[y] + noise * rng.normal(size=(frames, DIM))
    best = (x @ centres.T).argmax(1)  # nearest centre: all have one length
    return x, y, best


def test_accuracy_is_near_the_bayes_rate():
    x, y, _ = clusters(6000, 0)
    x_test, y_test, best = clusters(4000, 1)
    bayes = (best == y_test).mean()
    found = (LinearProbe([100] * 60, epochs=40).fit(x, y).predict(x_test) == y_test).mean()
    assert 0.75 < bayes < 0.95
    assert bayes - 0.02 < found <= bayes + 0.01


def test_steps_are_those_of_the_released_code():
    """SGD by hand: weight decay, momentum, a cosine by epoch, an incomplete batch left out."""
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in rng.integers(2, 5, 90)]  # two batches of 40 videos, ten left out
    y = rng.integers(0, 3, sum(lengths))
    x = rng.normal(size=(len(y), 4)).astype(np.float32)
    lr, epochs = 0.5, 3
    probe = LinearProbe(lengths, lr=lr, epochs=epochs, seed=5).fit(x, y)

    random = torch.Generator().manual_seed(5)
    weight = torch.empty(3, 4).uniform_(-0.5, 0.5, generator=random).double().numpy()
    bias = torch.empty(3).uniform_(-0.5, 0.5, generator=random).double().numpy()
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    starts = np.cumsum([0, *lengths])
    for epoch in range(epochs):
        order = torch.randperm(90, generator=random).tolist()
        rate = lr * (1 + np.cos(np.pi * epoch / epochs)) / 2
        for batch in (order[:40], order[40:80]):
            frames = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            logits = x[frames] @ weight.T + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            error = (p - np.eye(3)[y[frames]]) / len(frames)
            gradients = [error.T @ x[frames] + 1e-6 * weight, error.sum(0) + 1e-6 * bias]
            speed = [0.9 * v + g for v, g in zip(speed, gradients, strict=True)]
            weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    np.testing.assert_allclose(probe.weight.numpy(), weight, atol=2e-5)
    np.testing.assert_allclose(probe.bias.numpy(), bias, atol=2e-5)


def test_the_seed_alone_decides():
    x, y, _ = clusters(300, 2)
    fits = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(fits))
        before = torch.get_rng_state()
        fits.append(LinearProbe([30] * 10, epochs=2, seed=seed).fit(x, y).weight)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_classes_keep_their_numbers_and_unseen_ones_count_as_wrong():
    train = [video([0.0, 1.0] * 4, [3, 8] * 4)]
    test = [video([0.0, 1.0, 1.0], [3, 8, 5])]
    score = metrics.classification(train, test, classifier="sgd", probe={"lr": 5.0})
    assert score.value == pytest.approx(2 / 3)
    assert score.left_out["test frames of a phase that no training frame has (counted as wrong)"]


def test_numbers_that_are_not_finite_are_refused():
    x, y, _ = clusters(40, 3)
    with pytest.raises(UserError, match=r"diverged at learning rate 1e\+38.*smaller --probe-lr"):
        LinearProbe([10] * 4, lr=1e38, epochs=20).fit(1e3 * x, y)
    probe = LinearProbe([10] * 4, epochs=1).fit(x, y)
    x[3, 0] = np.inf
    x[5, 1:3] = np.nan
    for function in (lambda: LinearProbe([10] * 4).fit(x, y), lambda: probe.predict(x)):
        with pytest.raises(UserError, match="embeddings of 2 of 40 frames are infinite or NaN"):
            function()


# --- the protocol -------------------------------------------------------------------------------


def gym(name, action, phases, value):
    x = np.eye(4, dtype=np.float32)[[value] * len(phases)]
    return EmbeddedVideo(record(name, phases, action=action), x)


def test_phases_of_all_actions_are_classes_of_one_classifier():
    # Phase 0 of both actions: another class. A classifier for each action would be right always.
    train = [gym("a", "vault", [0] * 5, 0), gym("b", "beam", [0, 0, -1], 1)]
    train += [gym("c", "beam", [1, 1], 2)]
    test = [gym("d", "vault", [0] * 3, 1), gym("e", "beam", [0, 0, 0, -1], 1)]
    test += [gym("f", "beam", [1, 1], 2)]
    classes = {"vault": ["x", "y"], "beam": ["x", "y"]}
    row = evaluate_embeddings(train, test, classes, protocol="finegym")
    # All 8 labelled frames count alike: those of d look like the other action's phase 0.
    assert row["metrics"] == {"classification": pytest.approx(5 / 8)}
    assert row["per_action"] == {"all actions": row["metrics"]}
    assert row["left_out"]["test frames without a label"] == 1
    assert not any("no pair to compare" in reason for reason in row["left_out"])


def test_fractions_and_learning_rate():
    videos = [embedded(str(seed), [0, 0, 1, 1], "all", seed) for seed in range(6)]
    given = {"protocol": "finegym", "fractions": (0.1, 0.5, 1.0), "probe_epochs": 3}
    row = evaluate_embeddings(videos, videos, {"all": ["x", "y"]}, **given)
    names = ["classification_at_0.1", "classification_at_0.5", "classification"]
    assert list(row["metrics"]) == names
    frames = [metrics.labelled_video(one, np.float32) for one in videos]
    for name, share in zip(names, (0.1, 0.5, 1.0), strict=True):
        options = {"classifier": "sgd", "probe": {"lr": 50.0, "epochs": 3}}
        value = metrics.classification(frames, frames, share, **options).value
        assert row["metrics"][name] == value
    weak = evaluate_embeddings(videos, videos, {}, probe_lr=1e-9, **given)["metrics"]
    assert weak["classification"] != row["metrics"]["classification"]
    empty = evaluate_embeddings([], videos, {}, protocol="finegym")["metrics"]
    assert np.isnan(empty["classification"])


def test_a_share_is_of_the_videos_of_all_actions():
    # The first half of the videos has both actions; grouped by action it would have vault alone.
    train = [gym(f"{n}", "vault" if n % 2 else "beam", [0] * 4, n % 2) for n in range(8)]
    given = {"protocol": "finegym", "fractions": (0.5, 1.0), "probe_epochs": 30}
    row = evaluate_embeddings(train, train, {"vault": ["x"], "beam": ["x"]}, **given)["metrics"]
    assert row == {"classification_at_0.5": 1.0, "classification": 1.0}
