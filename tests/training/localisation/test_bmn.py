"""BMN: the boundary-matching layer, the targets, the loss and the proposals, against loops."""

import math

import numpy as np
import pytest
import torch

from training.localisation.loss import balanced_cross_entropy, bmn_loss
from training.localisation.metrics import temporal_iou
from training.localisation.model import BMN, BoundaryMatching
from training.localisation.proposals import candidates, propose, soft_nms, uniform_windows
from training.localisation.rescale import bin_means, segment_means
from training.localisation.targets import boundary_targets, iou_map, valid_entries


def naive_matching(layer, x):
    """Samples of every proposal, then the 3-D convolution over them."""
    _, channels, samples = layer.weight.shape
    count, _, steps = x.shape
    columns = []
    for d in range(steps):
        for t in range(steps - d):
            length = d + 1
            begin, end = t - 0.5 * length, t + length + 0.5 * length
            read = torch.zeros(count, channels, samples, dtype=x.dtype)
            for n in range(samples):
                place = begin + (end - begin) * n / (samples - 1) - 0.5  # step 0 is at 0.5
                low = math.floor(place)
                for step, weight in ((low, low + 1 - place), (low + 1, place - low)):
                    if 0 <= step < steps:
                        read[:, :, n] += weight * x[:, :, step]
            columns.append(torch.einsum("hcn,bcn->bh", layer.weight, read) + layer.bias)
    return torch.stack(columns, dim=2)


def test_boundary_matching_against_loops():
    torch.manual_seed(0)
    layer = BoundaryMatching(3, 4, steps=7, samples=5).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), naive_matching(layer, x)
    assert found.shape == (2, 4, 28)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the matrix is float32
    weights = torch.randn_like(found)
    (grad,) = torch.autograd.grad((found * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-5)


def test_network_shapes_and_invalid_entries():
    torch.manual_seed(0)
    model = BMN(6, 9, channels=4, samples=3)
    start, end, maps = model(torch.randn(2, 9, 6))
    assert start.shape == end.shape == (2, 9)
    assert maps.shape == (2, 2, 9, 9)
    targets = (torch.rand(2, 9), torch.rand(2, 9), torch.rand(2, 9, 9))
    loss = bmn_loss(start, end, maps, targets, model.valid)
    assert torch.isfinite(loss)
    invalid = maps.detach().clone()
    invalid[:, :, ~model.valid] = 100.0
    assert bmn_loss(start, end, invalid, targets, model.valid) == loss


def test_features_are_standardised():
    torch.manual_seed(0)
    model = BMN(3, 8, channels=4, samples=3).eval()
    x = torch.randn(1, 8, 3)
    shift, scale = torch.tensor([5.0, -2.0, 1.0]), torch.tensor([10.0, 0.1, 3.0])
    before = model(x)
    model.mean.copy_(shift)
    model.std.copy_(scale)
    for found, expected in zip(model(x * scale + shift), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_targets_against_loops():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.random((3, 2)), axis=1)
    segments[0] = (0.0, 0.3)
    steps = 13
    start, end = boundary_targets(segments, steps)
    for curve, bound, offset in ((start, 0, 0), (end, 1, 1)):
        for i in range(steps):
            middle = (i + offset) / steps
            shares = []
            for segment in segments:
                low = max(middle - 0.5 / steps, segment[bound] - 1.5 / steps)
                high = min(middle + 0.5 / steps, segment[bound] + 1.5 / steps)
                shares.append(max(0.0, high - low) * steps)
            assert curve[i] == pytest.approx(max(shares), abs=1e-6)
    found = iou_map(segments, steps)
    for d in range(steps):
        for t in range(steps):
            one = np.array([[t / steps, (t + d + 1) / steps]])
            expected = temporal_iou(one, segments).max() if t + d < steps else 0.0
            assert found[d, t] == pytest.approx(expected, abs=1e-6)
    assert start[0] == 1.0
    assert valid_entries(steps).sum() == steps * (steps + 1) // 2


def naive_loss(start, end, maps, targets, valid):
    def balanced(scores, labels):
        ratio = min(max(len(labels) / max(sum(labels), 1), 1.05), 21)
        total = 0.0
        for s, one in zip(scores, labels, strict=True):
            total += ratio / 2 * math.log(s) if one else ratio / (2 * (ratio - 1)) * math.log1p(-s)
        return -total / len(labels)

    def sigmoid(values):
        return [1 / (1 + math.exp(-v)) for v in values]

    iou = targets[2][:, valid].flatten().tolist()
    regression = sigmoid(maps[:, 0][:, valid].flatten().tolist())
    presence = sigmoid(maps[:, 1][:, valid].flatten().tolist())
    groups = ([u > 0.7 for u in iou], [0.3 < u <= 0.7 for u in iou], [0 < u <= 0.3 for u in iou])
    weights = [
        sum(g[i] * min(1, sum(groups[0]) / max(sum(g), 1)) for g in groups) for i in range(len(iou))
    ]
    square = sum(w * (r - u) ** 2 for w, r, u in zip(weights, regression, iou, strict=True))
    total = balanced(sigmoid(start.flatten().tolist()), (targets[0] > 0.5).flatten().tolist())
    total += balanced(sigmoid(end.flatten().tolist()), (targets[1] > 0.5).flatten().tolist())
    total += 10 * 0.5 * square / max(sum(weights), 1)
    return total + balanced(presence, [u > 0.9 for u in iou])


def loss_inputs(seed=0, steps=6):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    segments = [np.array([[0.1, 0.5], [0.55, 0.95]]), np.array([[0.0, 1.0]])]
    curves = [boundary_targets(one, steps) for one in segments]
    targets = (
        torch.from_numpy(np.stack([one[0] for one in curves])).double(),
        torch.from_numpy(np.stack([one[1] for one in curves])).double(),
        torch.from_numpy(np.stack([iou_map(one, steps) for one in segments])).double(),
    )
    valid = torch.from_numpy(valid_entries(steps))
    return (draw(2, steps), draw(2, steps), draw(2, 2, steps, steps)), targets, valid


@pytest.mark.parametrize("mostly_high", [False, True])
def test_loss_against_loops(mostly_high):
    """Also with more proposals of high tIoU than of others, and without any start."""
    logits, targets, valid = loss_inputs()
    if mostly_high:
        random = torch.rand(2, 6, 6, dtype=torch.float64, generator=torch.manual_seed(0))
        targets = (0 * targets[0], targets[1], random**0.2)
    found = bmn_loss(*logits, targets, valid)
    assert found.item() == pytest.approx(naive_loss(*logits, targets, valid), rel=1e-12)


def test_loss_gradient():
    logits, targets, valid = loss_inputs()
    inputs = tuple(one.requires_grad_() for one in logits)
    assert torch.autograd.gradcheck(lambda *x: bmn_loss(*x, targets, valid), inputs)


@pytest.mark.parametrize("label", [0, 1])
def test_loss_without_positives_or_negatives_is_finite(label):
    logits = torch.zeros(2, 5, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.full((2, 5), bool(label)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def naive_soft_nms(rows, most):
    rows, kept = [list(map(float, row)) for row in rows], []
    while rows and len(kept) < most:
        best = max(rows, key=lambda row: row[2])
        rows.remove(best)
        kept.append(best)
        for row in rows:
            overlap = temporal_iou(np.array([best[:2]]), np.array([row[:2]]))[0, 0]
            if overlap > 0.5 + 0.4 * (best[1] - best[0]):
                row[2] *= math.exp(-(overlap**2) / 0.4)
    return kept


def test_soft_nms_against_loops():
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.sort(rng.random((60, 2)), axis=1), rng.random(60)])
    found = soft_nms(rows, 25)
    np.testing.assert_allclose(found, naive_soft_nms(rows, 25), atol=1e-12)
    assert not np.array_equal(found, rows[np.argsort(-rows[:, 2])][:25])  # some were lowered
    assert soft_nms(np.zeros((0, 3))).shape == (0, 3)


def test_candidates_and_proposals():
    assert candidates(np.array([0.1, 0.3, 0.2, 0.9, 0.6, 0.1])).tolist() == [
        *(False, True, False, True, True, False)
    ]
    start = np.array([0.0, 0.9, 0.1, 0.1])
    end = np.array([0.0, 0.1, 0.8, 0.0])
    maps = np.full((2, 4, 4), 0.5)
    found = propose(start, end, maps)
    np.testing.assert_allclose(found[0], [0.25, 0.75, 0.9 * 0.8 * 0.25])
    assert [0.0, 1.0] in found[:, :2].tolist()  # the first start and the last end always count
    assert (found[:, 1] > found[:, 0]).all()


def test_uniform_windows():
    found = uniform_windows()
    assert found.shape == (100, 3)
    assert found[0, :2].tolist() == [0.0, 1.0]
    assert len(np.unique(found[:, :2].round(9), axis=0)) == 100
    assert found[:, 0].min() == 0
    assert found[:, 1].max() == pytest.approx(1)
    assert (np.diff(found[:, 2]) < 0).all()


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_bin_means_are_the_means_of_the_interpolation(count):
    rng = np.random.default_rng(count)
    times = np.sort(rng.uniform(0, 9, count))
    values = rng.standard_normal((count, 3))
    found = bin_means(values, times, 9.0, 10)
    fine = (np.arange(100_000) + 0.5) * 9 / 100_000
    for column in range(3):
        dense = np.interp(fine, times, values[:, column]).reshape(10, -1).mean(axis=1)
        np.testing.assert_allclose(found[:, column], dense, atol=1e-5)
    assert found.dtype == np.float32


def test_segment_means_weigh_by_overlap():
    features = np.arange(8.0).reshape(4, 2)
    segments = np.array([[0.0, 1.0], [0.25, 0.5], [0.125, 0.5], [0.5, 0.5], [1.0, 1.0]])
    found = segment_means(features, segments)
    expected = [features.mean(0), features[1], (features[0] / 2 + features[1]) / 1.5]
    np.testing.assert_allclose(found, [*expected, features[2], features[3]])
