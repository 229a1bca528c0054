"""Losses of a recipe compared with loops over frames, and their use in a run."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops.tcc.cases import cycle
from runs import numbers, same, squares, weights
from steps import Killed, stopped_at

import fastseq
import training.train
from training.loop.objectives import Clips, Objective
from training.recipe.load import ConfigError, load_config, loss_terms
from training.runs.log import read_log
from training.train import main

NEW_OF_PAIRS = ("gta", "ae2", "vava", "drop_dtw", "lrprop")


def clips(seed=0, n=3, t=8, padded=True) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 2, t, 5, generator=generator)
    z = torch.randn(n, 2, t, 4, generator=generator)
    steps = torch.sort(torch.rand(n, 2, 30, generator=generator).argsort(-1)[..., :t], -1).values
    valid = None
    if padded:
        valid = torch.ones(n, 2, t, dtype=torch.bool)
        valid[1, 0, 6:] = False
        valid[2, 1, 4:] = False
    return Clips(h, z, steps, valid, torch.tensor([[30, 40], [50, 30], [31, 37]])[:n])


def objective(**losses) -> Objective:
    of_pairs = {"soft_dtw", "lav", "contrastive_idm", "tcc", *NEW_OF_PAIRS}
    clips_of = "videos" if of_pairs & losses.keys() else "views"
    sampling = "anchors" if "tcn" in losses else "random"
    overrides = [f"data.clips={clips_of}", f"data.sampling={sampling}", "loss.scl.weight=0"]
    for name, options in losses.items():
        overrides += [f"loss.{name}.{key}={value}" for key, value in options.items()]
    return Objective(load_config("recipes/carl.yaml", overrides).loss)


def real(batch: Clips, n: int, clip: int) -> slice:
    return slice(None if batch.valid is None else int(batch.valid[n, clip].sum()))


@pytest.mark.parametrize("padded", [False, True])
def test_nearest_is_cross_entropy_with_the_nearest_frame(padded):
    batch = clips(padded=padded)
    total, count = 0.0, 0
    for n in range(3):
        for a, b in ((0, 1), (1, 0)):
            za = F.normalize(batch.z[n, a, real(batch, n, a)].double(), dim=-1)
            zb = F.normalize(batch.z[n, b, real(batch, n, b)].double(), dim=-1)
            ta = batch.steps[n, a, real(batch, n, a)].tolist()
            tb = batch.steps[n, b, real(batch, n, b)].tolist()
            for row, step in zip(za, ta, strict=True):
                count += 1
                gaps = [abs(step - other) for other in tb]
                if min(gaps) <= 3:
                    logits = zb @ row / 0.2
                    total -= logits.log_softmax(0)[int(np.argmin(gaps))].item()
    value, parts = objective(nearest={"weight": 1, "temperature": 0.2, "reach": 3})(batch)
    assert value.item() == pytest.approx(total / count, rel=1e-5)
    assert parts.keys() == {"nearest"}


def test_nearest_is_scl_with_a_narrow_gaussian():
    # Each frame has exactly one frame at distance 0: both targets are the same one-hot rows.
    batch = clips(padded=False)
    batch.steps[:, 1] = batch.steps[:, 0]
    nearest = objective(nearest={"weight": 1})(batch)[0]
    scl = objective(scl={"weight": 1, "variance": 1e-3})(batch)[0]
    assert nearest.item() == pytest.approx(scl.item(), rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_pairs_alone_equal_pairs_in_a_batch(padded):
    batch = clips(padded=padded)
    for name in ("soft_dtw", "lav", "tcc"):
        together = objective(**{name: {"weight": 1}})(batch)[0].item()
        alone = []
        for n in range(3):
            x, y = (batch.h[n, clip, real(batch, n, clip)] for clip in (0, 1))
            tx, ty = (batch.steps[n, clip, real(batch, n, clip)] for clip in (0, 1))
            if name == "tcc":
                dx, dy = batch.num_frames[n].tolist()
                cycles = fastseq.tcc_loss(
                    x, y, tx, ty, duration_x=dx, duration_y=dy, reduction="sum"
                )
                alone.append((cycles.item(), len(x) + len(y)))
                continue
            x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
            value = fastseq.soft_dtw(x, y, gamma=0.1, backend="reference")
            if name == "lav":
                for z, t, num in ((x, tx, batch.num_frames[n, 0]), (y, ty, batch.num_frames[n, 1])):
                    u = t.double() / num
                    gap = (u[:, None] - u).abs()
                    distance = torch.cdist(z.double(), z.double()) ** 2
                    far = (t[:, None] - t).abs() > 10
                    near_sum = distance[~far].sum()
                    far_sum = ((1 + gap**2) * (2 - distance).clamp(min=0))[far].sum()
                    value = value + 0.5 * (near_sum + far_sum)
            alone.append((value.item(), 1))
        total = sum(value for value, _ in alone) / sum(weight for _, weight in alone)
        if name == "soft_dtw":
            total /= 8
        if name == "lav":  # the released code divides by the number of frames
            lengths = [[len(batch.h[n, c, real(batch, n, c)]) for c in (0, 1)] for n in range(3)]
            total = np.mean(
                [value / np.mean(n) for (value, _), n in zip(alone, lengths, strict=True)]
            )
        assert together == pytest.approx(total, rel=1e-4), name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("actions", [None, ("pour",) * 3, ("pour", "cut", "pour")])
def test_tcc_of_all_pairs_equals_loops_over_the_pairs_of_an_action(padded, actions):
    batch = dataclasses.replace(clips(padded=padded), actions=actions)
    every = [(n, clip) for n in range(3) for clip in (0, 1)]
    total = count = 0
    for n, clip in every:
        for m, other in every:
            if (n, clip) == (m, other) or (actions and actions[n] != actions[m]):
                continue
            u = batch.h[n, clip, real(batch, n, clip)].double()
            v = batch.h[m, other, real(batch, m, other)].double()
            t = batch.steps[n, clip, real(batch, n, clip)].tolist()
            total += sum(cycle(u, v, t, float(batch.num_frames[n, clip]), temperature=0.3))
            count += len(u)
    value, _ = objective(tcc={"weight": 1, "pairs": "all", "temperature": 0.3})(batch)
    assert value.item() == pytest.approx(total / count, rel=1e-5)
    # Three pairs of one action are not the fifteen combinations of their videos.
    given, _ = objective(tcc={"weight": 1, "temperature": 0.3})(batch)
    assert given.item() != pytest.approx(value.item(), rel=1e-3)


def test_tcc_of_all_pairs_of_one_item_is_that_of_the_given_pair():
    for batch in (clips(n=1, padded=False), clips()):
        one = dataclasses.replace(batch, actions=("a", "b", "c")[: len(batch.h)])
        both = [objective(tcc={"weight": 1, "pairs": pairs})(one)[0] for pairs in ("given", "all")]
        torch.testing.assert_close(*both)  # a different action for each item


def test_actions_that_do_not_fit_the_batch_are_refused():
    batch = dataclasses.replace(clips(), actions=("pour", "cut"))
    with pytest.raises(ValueError, match="2 actions for 3 items"):
        objective(tcc={"weight": 1, "pairs": "all"})(batch)


def test_lav_is_soft_dtw_and_contrastive_idm_by_their_weights():
    batch = clips(padded=False)
    lav = objective(lav={"weight": 1, "alpha": 0.7, "window": 6, "margin": 1.5})(batch)[0]
    idm = {"weight": 0.7, "window": 6, "margin": 1.5}
    parts = objective(soft_dtw={"weight": 1}, contrastive_idm=idm)(batch)[0]
    torch.testing.assert_close(parts, lav)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", ["contrastive", "idm", "sfa"])
@pytest.mark.parametrize("weights", ["code", "paper"])
def test_contrastive_idm_equals_loops(padded, form, weights):
    batch = clips(padded=padded)
    total = 0.0
    for n in range(3):
        for clip in (0, 1):
            z = F.normalize(batch.h[n, clip, real(batch, n, clip)].double(), dim=-1)
            t = batch.steps[n, clip, real(batch, n, clip)].tolist()
            duration = batch.num_frames[n, clip].item() if weights == "code" else 1
            for i in range(len(z)):
                for j in range(len(z)):
                    distance = (z[i] - z[j]).square().sum().item()
                    far, weight = abs(t[i] - t[j]) > 7.5, 1 + ((t[i] - t[j]) / duration) ** 2
                    if form == "idm":
                        total -= weight * distance
                    elif far:
                        total += max(0, 1.5 - distance) * (weight if form == "contrastive" else 1)
                    else:
                        drawn = form == "contrastive" and weights == "paper"
                        total += distance / (weight if drawn else 1)
    options = {"weight": 1, "window": 7.5, "margin": 1.5, "form": form, "weights": weights}
    value = objective(contrastive_idm=options)(batch)[0]
    assert value.item() == pytest.approx(total / (3 * 8), rel=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["gta", "ae2", "vava"])
def test_alignment_losses_are_the_functions(name, padded):
    batch = clips(padded=padded)
    function = getattr(fastseq, f"{name}_loss")
    pairs = [[batch.h[n, c, real(batch, n, c)].double() for c in (0, 1)] for n in range(3)]
    if name == "vava":
        pairs = [[F.normalize(z, dim=-1) for z in one] for one in pairs]
    alone = [function(x, y).item() for x, y in pairs]
    assert objective(**{name: {"weight": 1}})(batch)[0].item() == pytest.approx(
        np.mean(alone), rel=1e-4
    )


@pytest.mark.parametrize("padded", [False, True])
def test_drop_dtw_equals_loops(padded):
    """Each clip's frames may be dropped in turn; the costs are those of the released code."""
    batch, total = clips(padded=padded), 0.0
    for n in range(3):
        for one, other in ((0, 1), (1, 0)):
            x, y = (
                F.normalize(batch.h[n, c, real(batch, n, c)].double(), dim=-1) for c in (one, other)
            )
            scores = x @ y.T
            rank = max(1, int(scores.numel() * 0.4))
            baseline = scores.flatten().sort(descending=True).values[rank - 1]
            logits = torch.cat([scores, baseline.expand(1, len(y))]) / 0.2
            cost = -logits.log_softmax(0)
            total += drop_dtw_by_loops(cost[:-1].tolist(), cost[-1].tolist(), 0.5)
    options = {"weight": 1, "keep": 0.4, "temperature": 0.2, "gamma": 0.5, "softmin": "logsumexp"}
    value = objective(drop_dtw=options)(batch)[0].item()
    assert value == pytest.approx(total / (3 * 2 * 8), rel=1e-4)


def drop_dtw_by_loops(cost, drop_cost, gamma):
    """Columns may be dropped; a column may match several rows, and a row several columns."""

    def softmin(*values):
        least = min(values)
        if least == math.inf:
            return math.inf
        return least - gamma * math.log(sum(math.exp((least - v) / gamma) for v in values))

    k, n = len(cost), len(drop_cost)
    final, matched = {(0, 0): 0.0}, {}
    for j in range(n):
        final[0, j + 1] = final[0, j] + drop_cost[j]
    for i in range(k):
        final[i + 1, 0] = math.inf
        for j in range(n):
            before = final[i, j], matched.get((i, j - 1), math.inf)
            matched[i, j] = cost[i][j] + softmin(*before, matched.get((i - 1, j), math.inf))
            final[i + 1, j + 1] = softmin(matched[i, j], final[i + 1, j] + drop_cost[j])
    return final[k, n]


@pytest.mark.parametrize("padded", [False, True])
def test_lrprop_counts_the_frames_of_its_pairs(padded):
    batch = clips(padded=padded)
    loss = objective(lrprop={"weight": 1, "variance": 2.0})
    alone = [
        fastseq.lrprop_loss(
            *(batch.h[n, clip, real(batch, n, clip)] for clip in (0, 1)),
            variance=2.0,
            reduction="sum",
        ).item()
        for n in range(3)
    ]
    valid = torch.ones(3, 2, 8, dtype=torch.bool) if batch.valid is None else batch.valid
    (frames,) = loss.counts({"valid": valid, "actions": None})
    assert frames == sum(
        len(batch.h[n, clip, real(batch, n, clip)]) for n in range(3) for clip in (0, 1)
    )
    assert loss(batch)[0].item() == pytest.approx(sum(alone) / frames, rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_tcn_takes_every_other_frame(padded):
    batch = clips(padded=padded)
    total = count = 0
    for n in range(3):
        for clip in (0, 1):
            h = batch.h[n, clip, real(batch, n, clip)].double()
            anchors, positives = h[0::2], h[1::2]
            for i, anchor in enumerate(anchors):
                total -= (positives @ anchor).log_softmax(0)[i].item()
                total += 0.1 / 4 * (anchor.square().sum() + positives[i].square().sum()).item()
                count += 1
    value = objective(tcn={"weight": 1, "reg_lambda": 0.1})(batch)[0]
    assert value.item() == pytest.approx(total / count, rel=1e-5)


def test_padding_does_not_matter():
    names = ("soft_dtw", "lav", "contrastive_idm", "tcc", "tcn", "nearest", "scl", *NEW_OF_PAIRS)
    others = [("tcc", {"pairs": "all"}), ("soft_dtw", {"cost": "softmax", "softmin": "prob"})]
    for name, more in [(name, {}) for name in names] + others:
        batch = clips()
        loss = objective(**{name: {"weight": 1} | more})
        before = loss(batch)[0]
        batch.h[~batch.valid] = math.nan if name not in ("scl", "nearest") else 0
        batch.z[~batch.valid] = 1e6
        batch.steps[~batch.valid] = 999
        assert torch.equal(loss(batch)[0], before), name


def test_weights_combine():
    batch = clips()
    lav, tcc = (objective(**{name: {"weight": 1}})(batch)[0] for name in ("lav", "tcc"))
    both = objective(lav={"weight": 2}, tcc={"weight": 0.5})
    total, parts = both(batch)
    assert total.item() == pytest.approx(2 * lav.item() + 0.5 * tcc.item(), rel=1e-6)
    assert parts["tcc"].item() == pytest.approx(tcc.item())
    assert not both.needs_projection
    assert objective(scl={"weight": 1}).needs_projection


def test_without_a_weight_it_is_scl(recipe):
    assert [(name, weight) for name, weight, _ in loss_terms(load_config(recipe).loss)] == [
        ("scl", 1.0)
    ]
    cfg = load_config(recipe, ["loss.scl.weight=0", "loss.nearest.weight=0.5"])
    assert [(name, weight) for name, weight, _ in loss_terms(cfg.loss)] == [("nearest", 0.5)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["loss.scl.weight=0"],
            "every weight is 0; set the weight of at least one of loss.scl.weight, loss.nearest",
        ),
        (["data.clips=videos"], "data.clips must be views or synchronised, got videos"),
        (["loss.tcn.weight=1"], "data.sampling must be anchors, got random"),
        (["data.sampling=anchors", "data.num_frames=9"], "expected an even number"),
        (["loss.lav.weight=-1"], "loss.lav.weight: expected at least 0"),
        (["loss.lav.weight=inf"], "loss.lav.weight: expected at most"),
        (["loss.lav.weight=nan"], "loss.lav.weight: expected at least 0, got nan"),
        (["loss.contrastive_idm.window=-3"], "loss.contrastive_idm.window: expected at least 0"),
        (["loss.moco.weight=1"], "unknown key 'loss.moco.weight'"),
        (["loss.temperature=0.1"], "Did you mean 'loss.scl.temperature'"),
        (["loss.tcc.pairs=some"], "loss.tcc.pairs: expected one of given, all, got 'some'"),
        (["loss.contrastive_idm.form=cidm"], "expected one of contrastive, idm, sfa, got 'cidm'"),
        (["loss.lav=1"], "loss.lav is a section"),
        (["data.num_context=2"], "model.encoder=fve encodes single frames"),
        (
            ["model.backbone=resnet50", "model.backbone_to=layer5"],
            "model.backbone_to: resnet50 has stages stem, layer1, layer2, layer3, layer4, conv4c; "
            "expected last, stride8, stride16 or one of them, got 'layer5'",
        ),
    ],
)
def test_losses_and_data_that_do_not_fit(recipe, overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    assert message in str(error.value)


def test_wrong_options_show_before_the_run(recipe, capsys):
    wrong = {
        "soft_dtw": ("gamma=0", "gamma"),
        "lav": ("margin=-1", "margin"),
        "tcc": ("temperature=0", "temperature"),
        "contrastive_idm": ("margin=0", "margin"),
    }
    for name, (option, message) in wrong.items():
        options = ["data.clips=videos", f"loss.{name}.weight=1", f"loss.{name}.{option}"]
        assert main([recipe, "train.run_dir=run", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: loss: ")
        assert message in error


@pytest.mark.parametrize(
    "options",
    [
        ["loss.lav.weight=1", "loss.tcc.weight=0.1", "data.clips=videos"],
        ["loss.tcc.weight=1", "loss.tcc.pairs=all", "data.clips=videos", "data.batch_size=3"],
        ["loss.tcn.weight=1", "data.sampling=anchors"],
        ["loss.nearest.weight=1"],
        ["loss.soft_dtw.weight=1", "data.clips=videos", "train.chunk_frames=20"],
    ],
)
def test_runs_with_other_losses_resume(recipe, options):
    options = [*options, "train.steps=4", "train.checkpoint_every=2"]
    main([recipe, "train.run_dir=whole", *options])
    with stopped_at(3), pytest.raises(Killed):
        main([recipe, "train.run_dir=parts", *options])
    assert main([recipe, "train.run_dir=parts", *options, "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    line = read_log("whole")[-1]
    if "loss.lav.weight=1" in options:
        assert line["loss_lav"] > 0
        assert math.isfinite(line["loss_tcc"])
    else:
        assert "loss_tcn" not in line
    backend = [] if "tcn" in options[0] or "nearest" in options[0] else ["lav", "soft_dtw", "tcc"]
    moved = [f"loss.{name}.backend=reference" for name in backend]
    assert main([recipe, "train.run_dir=parts", *options, *moved, "--resume"]) == 0


def test_soft_dtw_alone_collapses_and_lav_does_not(recipe, monkeypatch):
    monkeypatch.setattr(training.train, "training_loader", partial(squares, videos=4, padded=False))
    shared = ["data.clips=videos", "train.steps=40", "train.log_every=20", "optim.lr=3e-3"]
    shared += ["model.layers=0", "model.positions=none", "model.fc_dropout=0", "model.dropout=0"]
    shared += ["train.checkpoint_every=100"]
    spread = {}
    for name in ("soft_dtw", "lav"):
        main([recipe, f"train.run_dir={name}", f"loss.{name}.weight=1", *shared])
        spread[name] = read_log(name)[-1]["pairwise_distance"]
    assert spread["soft_dtw"] < 0.25 * spread["lav"]
