"""SaL and SpeedNet: their losses against direct definitions, their draws, and their recipes."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from runs import numbers, same, weights
from steps import Killed, stopped_at

from training.loop.clips import Clips
from training.loop.objectives import Objective
from training.loop.shuffle_and_learn import draw_triples, sal
from training.loop.speed import speed
from training.models.heads import build_heads
from training.recipe.load import ConfigError, load_config
from training.runs.log import read_log
from training.runs.model import load_run
from training.train import main

SIZE = 5
SPEEDS = ["loss.speed.weight=1", "data.sampling=speeds"]


SAL = ["loss.sal.weight=1", "model.positions=none"]


def clips(lengths, t=8, seed=0) -> Clips:
    """Clips with these numbers of real frames, (N, 2)."""
    lengths = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(*lengths.shape, t, SIZE, generator=generator)
    valid = torch.arange(t) < lengths[..., None]
    steps = torch.arange(t).expand(valid.shape)
    return Clips(h, None, steps, None if valid.all() else valid, torch.full_like(lengths, t))


def heads(*overrides):
    torch.manual_seed(1)
    size = [f"model.embedding_size={SIZE}", "loss.scl.weight=0"]
    return build_heads(load_config("recipes/carl.yaml", [*size, *overrides]))


@pytest.fixture(scope="module")
def sal_head():
    return heads(*SAL)["sal"]


@pytest.fixture(scope="module")
def speed_head():
    return heads(*SPEEDS)["speed"]


def test_the_head_of_sal_is_that_of_the_released_code(sal_head):
    shapes = [tuple(p.shape) for p in sal_head.parameters() if p.dim() == 2]
    assert shapes == [(128, 3 * SIZE), (64, 128), (2, 64)]


def test_triples_have_the_published_distribution():
    """Frequencies compared with an enumeration of all draws of the released code."""
    expected = Counter()
    for drawn in itertools.combinations(range(6), 5):
        for five in (drawn, drawn[::-1]):
            a, b, c, d, e = five
            expected[(b, c, d), 0] += 0.25 / 12
            expected[(b, a, d), 1] += 0.75 / 24
            expected[(b, e, d), 1] += 0.75 / 24
    torch.manual_seed(0)
    valid = (torch.arange(9) < 6)[None].expand(300, 9)  # 3 padded frames
    places, classes = draw_triples(300, 9, valid, 100, 0.75)
    assert (classes == 1).sum(1).tolist() == [75] * 300
    found = Counter(
        (tuple(three), label)
        for three, label in zip(
            places.flatten(0, 1).tolist(), classes.flatten().tolist(), strict=True
        )
    )
    assert found.keys() == expected.keys()
    for key, probability in expected.items():
        # 30,000 triples: 5 standard deviations are at most 0.006.
        assert found[key] / 30000 == pytest.approx(probability, abs=0.006)


def test_reversal_is_drawn_for_each_triple():
    torch.manual_seed(0)
    places, _ = draw_triples(1, 30, None, 200, 0.0)
    ascending = (places.diff(dim=-1) > 0).all(-1)
    assert 60 < ascending.sum() < 140


@pytest.mark.parametrize("lengths", [[[8, 8], [8, 8]], [[8, 6], [4, 5], [2, 0]]])
def test_sal_is_the_mean_cross_entropy_of_the_triples(lengths, sal_head):
    batch = clips(lengths)
    torch.manual_seed(3)
    value, accuracy = sal(batch, sal_head, triples=8, shuffle_share=0.75)
    torch.manual_seed(3)
    real = torch.tensor(lengths).flatten()
    rows, real = batch.h.flatten(0, 1)[real >= 5], real[real >= 5]
    mask = None if batch.valid is None else torch.arange(8) < real[:, None]
    places, classes = draw_triples(len(rows), 8, mask, 8, 0.75)
    double = sal_head.double()
    total, right = 0.0, 0
    for h, threes, labels in zip(rows, places.tolist(), classes.tolist(), strict=True):
        for (i, j, k), label in zip(threes, labels, strict=True):
            logits = double(torch.cat([h[i], h[j], h[k]]).double())
            total -= (logits - logits.exp().sum().log())[label].item()
            right += int(logits[label] > logits[1 - label])
    sal_head.float()
    assert value.item() == pytest.approx(total / (8 * len(rows)), rel=1e-5)
    assert accuracy.item() == pytest.approx(right / (8 * len(rows)))


def test_sal_ignores_padding_and_clips_with_fewer_than_five_frames(sal_head):
    batch = clips([[8, 4], [6, 0]])
    batch.h.requires_grad_(True)
    sal(batch, sal_head, triples=64, shuffle_share=0.5)[0].backward()
    moved = batch.h.grad.abs().sum(-1) > 0
    assert moved[0, 0].all()  # 192 draws of 8 frames
    assert not moved[0, 1].any()
    assert moved[1, 0].tolist() == [True] * 6 + [False] * 2
    value, accuracy = sal(clips([[4, 3]]), sal_head, triples=8, shuffle_share=0.5)
    assert (value.item(), accuracy.item()) == (0, 0)
    value.backward()  # every rank needs a gradient, even with short clips alone
    assert all(p.grad is not None for p in sal_head.parameters())
    assert sal(clips([[3, 3]], t=3), sal_head, triples=2, shuffle_share=0.5)[0].item() == 0


@pytest.mark.parametrize("lengths", [[[8, 8], [8, 8]], [[8, 8], [3, 3], [1, 1], [0, 0]]])
def test_speed_is_the_mean_cross_entropy_of_the_mean_embeddings(lengths, speed_head):
    batch = clips(lengths)
    weight, bias = speed_head.weight.double()[0], speed_head.bias.double()[0]
    total, right, count = 0.0, 0, 0
    for two, real in zip(batch.h.double(), lengths, strict=True):
        for label, (h, n) in enumerate(zip(two, real, strict=True)):
            if n:
                logit = (h[:n].sum(0) / n @ weight + bias).item()
                chance = 1 / (1 + math.exp(-logit))
                total -= math.log(chance if label else 1 - chance)
                right += (chance > 0.5) == label
                count += 1
    value, accuracy = speed(batch, speed_head)
    assert value.item() == pytest.approx(total / count, rel=1e-5)
    assert accuracy.item() == pytest.approx(right / count)


@pytest.mark.parametrize(
    ("options", "count"),
    [([*SAL, "loss.sal.triples=3"], [9, 0]), (SPEEDS, [4, 1])],
)
def test_the_denominator_is_the_number_of_counted_predictions(options, count):
    cfg = load_config("recipes/carl.yaml", ["loss.scl.weight=0", *options])
    for lengths, expected in zip(([[8, 6], [4, 5]], [[3, 0]]), count, strict=True):
        batch = clips(lengths)
        assert Objective(cfg.loss, heads(*options)).counts({"valid": batch.valid}) == [expected]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.speed.weight=1"], "loss.speed needs data.sampling=speeds, got random"),
        ([*SPEEDS, "data.clips=videos"], "sampling=speeds .* data.clips must be views, got videos"),
        ([*SPEEDS, "model.layers=0"], "loss.speed .* model.layers must be at least 1, got 0"),
        ([*SPEEDS, "model.encoder=conv3d"], "loss.speed .* model.encoder must be fve, got conv3d"),
    ],
)
def test_combinations_without_a_meaning_are_errors(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("recipes/carl.yaml", ["loss.scl.weight=0", *overrides])


SMALL = ["model.backbone=small_cnn", "model.train_from=all", "augmentation.size=16"]
SMALL += ["data.num_frames=8", "data.cache_side=18", "data.workers=0", "data.batch_size=2"]
SMALL += ["data.engine=pyav", "model.conv3d_size=8", "model.fc_size=16", "model.hidden_size=16"]
SMALL += ["model.ff_size=32", "train.epochs=null", "train.steps=2", "train.log_every=1"]


@pytest.mark.parametrize(
    ("recipe", "accuracy"), [("sal", "order_accuracy"), ("speednet", "speed_accuracy")]
)
def test_recipes_train(video_folder, recipe, accuracy):
    folder = [f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([f"recipes/{recipe}.yaml", *folder, *SMALL]) == 0
    for line in read_log("run"):
        assert math.isfinite(line["loss"])
        assert 0 <= line[accuracy] <= 1
    trained, initial = load_run("run")[0], load_run("run", untrained=True)[0]
    before = dict(initial.named_parameters())
    moved = {k for k, p in trained.named_parameters() if not torch.equal(p, before[k])}
    for part in ("backbone", "embedding", "heads"):
        assert any(key.startswith(part) for key in moved)
    assert not any(key.startswith("projection") for key in moved)


def test_a_resumed_run_draws_the_same_triples(recipe):
    options = ["loss.sal.weight=1", "loss.scl.weight=0.1", "train.steps=4"]
    options += ["train.checkpoint_every=2", "train.log_every=1"]
    assert main([recipe, "train.run_dir=whole", *options]) == 0
    with stopped_at(3), pytest.raises(Killed):
        main([recipe, "train.run_dir=parts", *options])
    assert main([recipe, "train.run_dir=parts", *options, "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    assert np.isfinite(read_log("whole")[-1]["loss_sal"])


def test_sal_alone_refuses_positions():
    options = ["loss.sal.weight=1", "loss.scl.weight=0"]
    with pytest.raises(ConfigError, match="positions reveal the order of the frames"):
        load_config("recipes/carl.yaml", options)
    load_config("recipes/carl.yaml", [*options, "model.positions=none"])
    load_config("recipes/carl.yaml", ["loss.sal.weight=1", "loss.scl.weight=1"])
