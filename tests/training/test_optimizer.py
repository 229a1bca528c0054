"""Optimizers compared with torch's, groups of parameters, and the schedule of the rate."""

import copy
from types import SimpleNamespace

import pytest
import torch
from runs import numbers
from steps import batches, make_trainer

from training.loop.dry_run import describe
from training.loop.schedule import learning_rate, milestone_shares, total_steps, warmup_share
from training.runs.log import read_log
from training.support.command import UserError
from training.train import main

DECAY = 0.3  # large, so that coupled and decoupled decay differ visibly


def torch_optimizer(name, groups):
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.8, weight_decay=DECAY)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(groups, betas=(0.8, 0.99), weight_decay=DECAY)


@pytest.mark.parametrize("backbone_lr", [None, 2e-4])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_steps_are_those_of_torch(tmp_path, name, backbone_lr):
    trainer = make_trainer(
        tmp_path,
        f"optim.name={name}",
        f"optim.weight_decay={DECAY}",
        "optim.momentum=0.8",
        "optim.betas=[0.8,0.99]",
        f"optim.backbone_lr={'null' if backbone_lr is None else backbone_lr}",
    )
    model, step = trainer.model, trainer.gradient_step
    other = copy.deepcopy(model)
    in_backbone = [key for key, _ in other.named_parameters() if key.startswith("backbone.")]
    assert in_backbone
    named = dict(other.named_parameters())
    groups = [
        {"params": [p for key, p in named.items() if key not in in_backbone], "lr": 1e-3},
        {"params": [named[key] for key in in_backbone], "lr": backbone_lr or 1e-3},
    ]
    optimizer = torch_optimizer(name, groups)
    for number, batch in enumerate(batches(trainer, 3)):
        assert step([batch], 1e-3 / 2**number, list).finite
        for key, p in model.named_parameters():
            named[key].grad = None if p.grad is None else p.grad.clone()
        for group, rate in zip(groups, (1e-3, backbone_lr or 1e-3), strict=True):
            group["lr"] = rate / 2**number
        for group, rate in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate["lr"]
        optimizer.step()
    start = make_trainer(tmp_path).model.state_dict()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p, named[key], rtol=1e-6, atol=1e-8, msg=key)
        if p.grad is not None:
            assert not torch.equal(p, start[key]), key


def test_a_frozen_part_is_in_no_group(tmp_path):
    vclr = make_trainer(tmp_path, "optim.backbone_lr=0.01", vclr=True)
    rest, backbone = vclr.optimizer.param_groups
    assert {id(p) for p in backbone["params"]} == {id(p) for p in vclr.model.backbone.parameters()}
    every = [*rest["params"], *backbone["params"]]
    assert len(every) == len({id(p) for p in every})
    assert {id(p) for p in every} == {id(p) for p in vclr.model.parameters() if p.requires_grad}
    frozen = ["model.train_from=batch_norm", "model.random_frozen=true", "optim.backbone_lr=0.01"]
    own = make_trainer(tmp_path, *frozen)
    trained = {id(p) for p in own.model.backbone.parameters() if p.requires_grad}
    assert 0 < len(trained) < len(list(own.model.backbone.parameters()))
    assert {id(p) for p in own.optimizer.param_groups[1]["params"]} == trained
    with pytest.raises(UserError, match=r"optim.backbone_lr: 0.01 .* model.train_from=none trains"):
        make_trainer(tmp_path, "model.train_from=none", *frozen[1:])


def schedule(**values):
    optim = {"lr": 1.0, "min_lr": 0.0, "schedule": "step", "gamma": 0.1, "milestones": []}
    optim |= {"warmup_steps": 0, "warmup_epochs": 0.0}
    train = {"accumulate": 1, "steps": None, "epochs": None}
    for key, value in values.items():
        (train if key in train else optim)[key] = value
    return SimpleNamespace(optim=SimpleNamespace(**optim), train=SimpleNamespace(**train))


def rates(cfg, epoch_batches):
    steps = total_steps(cfg, epoch_batches)
    warmup = warmup_share(cfg, steps, epoch_batches)
    milestones = milestone_shares(cfg, steps, epoch_batches)
    return [learning_rate(cfg, step / steps, warmup, milestones) for step in range(steps)]


def test_the_rate_falls_at_the_first_step_of_each_milestone():
    found = rates(schedule(milestones=[1, 3], epochs=4), 7)
    assert found == pytest.approx([1.0] * 7 + [0.1] * 14 + [0.01] * 7)
    # The same epochs in a run that is given in steps and ends within an epoch.
    found = rates(schedule(milestones=[1, 3], steps=25, gamma=0.5), 7)
    assert found == pytest.approx([1.0] * 7 + [0.5] * 14 + [0.25] * 4)
    # Two batches in a step: an epoch has 5 steps. A milestone after the end has no effect.
    found = rates(schedule(milestones=[1, 2.4, 9], epochs=3, accumulate=2), 10)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 7 + [0.01] * 3)


@pytest.mark.parametrize("epoch", [1.1, 2.2, 4.9])  # 1.1 * 100 is a little more than 110
def test_a_fraction_of_an_epoch_that_is_a_step_is_that_step(epoch):
    found = rates(schedule(milestones=[epoch], epochs=6), 100)
    assert found.index(0.1) == round(100 * epoch)


def test_milestones_count_from_the_start_of_the_warmup():
    found = rates(schedule(milestones=[1, 2], epochs=3, warmup_steps=4), 6)
    assert found[:4] == pytest.approx([0.01, 0.2575, 0.505, 0.7525])
    assert found[4:] == pytest.approx([1.0] * 2 + [0.1] * 6 + [0.01] * 6)


def test_a_run_logs_the_rate_of_each_group(recipe):
    options = ["optim.schedule=step", "optim.milestones=[2,3.5]", "optim.gamma=0.5"]
    options += ["train.log_every=1", "optim.backbone_lr=1e-4", "train.run_dir=run"]
    assert main([recipe, *options]) == 0  # 2 steps in an epoch
    expected = [1e-3] * 4 + [5e-4] * 3 + [2.5e-4] * 5
    assert [line["lr"] for line in read_log("run")] == pytest.approx(expected)
    assert [line["lr_backbone"] for line in read_log("run")] == pytest.approx(
        [rate / 10 for rate in expected]
    )


def test_the_rate_of_all_parameters_may_be_given_twice(recipe):
    main([recipe, "train.run_dir=one", "train.steps=3", "train.log_every=1"])
    main([recipe, "train.run_dir=two", "train.steps=3", "train.log_every=1"])
    main(
        [
            recipe,
            "train.run_dir=set",
            "train.steps=3",
            "train.log_every=1",
            "optim.backbone_lr=1e-3",
        ]
    )
    one, two = numbers("one"), numbers("set")
    assert one == numbers("two")
    for line in two:
        assert line.pop("lr_backbone") == line["lr"]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optim.schedule=step"], "optim.milestones: empty, and optim.schedule=step needs"),
        (
            ["optim.milestones=[3]"],
            "optim.milestones works only with optim.schedule=step, got [3] with "
            "optim.schedule=cosine; set optim.milestones=[]",
        ),
        (
            ["optim.schedule=step", "optim.milestones=[3,2]"],
            "optim.milestones: expected rising numbers of epochs above 0, got [3, 2]",
        ),
        (["optim.schedule=step", "optim.milestones=[0]"], "above 0, got [0]"),
        (["optim.schedule=step", "optim.milestones=[1]", "optim.gamma=0"], "more than 0, got 0.0"),
        (["optim.lr=0", "optim.backbone_lr=0.1"], "optim.backbone_lr: 0.1 needs optim.lr above 0"),
        (["optim.backbone_lr=0"], "optim.backbone_lr: expected more than 0, got 0.0"),
        (["optim.ema=1"], "optim.ema: expected at most 0.999999, got 1.0"),
        (["optim.name=lion"], "optim.name: expected one of adam, adamw, sgd, got 'lion'"),
    ],
)
def test_contradicting_options_are_refused(recipe, tmp_path, capsys, options, message):
    assert main([recipe, "train.run_dir=run", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_optimizer(recipe, capsys):
    options = [recipe, "train.run_dir=run", "train.steps=2"]
    assert main([*options, "optim.name=adamw", "optim.backbone_lr=1e-4"]) == 0
    assert main([*options, "--resume"]) == 2
    message = capsys.readouterr().err
    assert "optim.backbone_lr = 0.0001 (now None), optim.name = adamw (now adam)" in message


def test_the_plan_names_optimizer_schedule_and_average(tmp_path):
    options = ["optim.name=adamw", "optim.backbone_lr=1e-4", "optim.schedule=step"]
    options += [
        "optim.milestones=[2,3,50]",
        "optim.ema=0.9",
        "train.precision=fp16",
        "model.ff_size=20000",
    ]
    trainer = make_trainer(tmp_path, *options)
    count = sum(p.numel() for p in trainer.model.parameters())
    text = describe(trainer)
    assert (
        "AdamW, lr 0.001, lr_backbone 0.0001, times 0.1 at steps 4, 6 (1 of 3 milestones after the "
        "end), average with decay 0.9 (initial weights: 28.24 % of it)" in text
    )
    # Weights, gradients, two moments and the average: 5 times 4 bytes.
    size = f"{20 * count / 1e6:.0f} MB"
    assert f"{size} for weights, gradients, AdamW and the average" in text
    assert "cpu, fp16" in text
