"""fp16 with a scaled loss, on the CPU: gradients, overflow, resuming, several ranks."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import launch, said, train, wait
from runs import numbers, same
from steps import batches, last_state, make_trainer, train_in_two_parts
from two_ranks import squares as shared_squares
from vclr_cases import RECIPE, tuples

import training.loop.step
from training.loop.precision import precision_name, precision_of
from training.runs.log import read_log
from training.support.command import UserError
from training.train import main

FP16 = "train.precision=fp16"
CPU = torch.device("cpu")


def test_names(tmp_path):
    for name, dtype in {
        "auto": torch.float32,
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }.items():
        trainer = make_trainer(tmp_path, f"train.precision={name}")
        assert trainer.precision == precision_of(trainer.cfg, CPU) == dtype
        assert trainer.environment()["precision"] == precision_name(dtype)
    with pytest.raises(UserError, match=r"train.precision: fp16 needs .*cuda or cpu.*, got mps"):
        precision_of(trainer.cfg, torch.device("mps"))


@pytest.mark.parametrize("vclr", [False, True])
def test_the_gradient_is_that_of_fp32(tmp_path, vclr):
    results, gradients = [], []
    for precision in ("fp32", "fp16"):
        options = [f"train.precision={precision}", "optim.grad_clip=0.5", "train.accumulate=2"]
        trainer = make_trainer(tmp_path, *options, vclr=vclr)
        scaler = trainer.gradient_step.scaler
        if scaler.is_enabled():  # low enough for these gradients
            scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
        results.append(trainer.gradient_step(batches(trainer, 2), 1e-3, list))
        named = trainer.model.named_parameters()
        gradients.append({key: p.grad for key, p in named if p.grad is not None})
    full, half = results
    assert half.finite
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert half.norm == pytest.approx(full.norm, rel=0.05)  # divided by the scale
    assert half.norm > 0.5
    total = sum(g.square().sum() for g in gradients[1].values()).sqrt()
    assert total.item() == pytest.approx(0.5, rel=1e-4)  # clipped after the division
    assert all(g.dtype == torch.float32 for g in gradients[1].values())
    apart = sum((gradients[1][key] - g).square().sum() for key, g in gradients[0].items()).sqrt()
    assert 0 < apart < 0.05  # fp16 was in use, and is close


@pytest.mark.parametrize("loss", ["scl", "nearest", "soft_dtw", "tcc", "lav", "contrastive_idm"])
def test_losses_are_those_of_fp32(tmp_path, loss):
    options = [f"loss.{loss}.weight=1", "data.clips=videos"]
    if loss in ("scl", "nearest"):
        options = [f"loss.{loss}.weight=1"]
    if loss != "scl":
        options.append("loss.scl.weight=0")
    values = []
    for precision in ("fp32", "fp16"):
        trainer = make_trainer(tmp_path, f"train.precision={precision}", *options)
        result = trainer.gradient_step(batches(trainer, 1), 1e-3, list)
        assert result.finite or result.overflow
        values.append(result.loss)
    assert values[1] == pytest.approx(values[0], rel=0.05, abs=1e-4)


@pytest.fixture
def high_scale(monkeypatch):
    """The scale starts so high that the first gradients overflow."""
    monkeypatch.setattr(training.loop.step, "make_scaler", too_high)


def too_high(device, precision):
    enabled = precision == torch.float16
    return torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=enabled)


def test_an_overflow_halves_the_scale_and_changes_nothing_else(tmp_path, high_scale):
    trainer = make_trainer(tmp_path, FP16, "optim.ema=0.5")
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    (batch,) = batches(trainer, 1)
    result = trainer.gradient_step([batch], 1e-3, list)
    assert result.overflow
    assert not result.finite
    assert math.isfinite(result.loss)
    assert same(trainer.model.state_dict(), before)
    assert same(trainer.gradient_step.average.state_dict(), before)
    assert trainer.gradient_step.log_values(1e-3)["loss_scale"] == 2.0**19


def test_a_run_goes_on_while_the_scale_falls(recipe, high_scale, capsys):
    options = [recipe, "train.run_dir=run", "train.log_every=1", "train.steps=20", FP16]
    assert main([*options, "train.max_nonfinite=2"]) == 0
    lines = read_log("run")
    skipped = lines[-1]["skipped"]
    assert 2 < skipped < 15
    assert lines[-1]["loss_scale"] == 2.0 ** (20 - skipped)
    assert [line["skipped"] for line in lines] == [*range(1, skipped + 1)] + [skipped] * (
        20 - skipped
    )
    assert "step 1: the gradient overflowed in fp16; step skipped" in capsys.readouterr().err
    assert lines[skipped]["loss"] > 0


def test_a_loss_that_is_not_finite_is_no_overflow(tmp_path):
    trainer = make_trainer(tmp_path, FP16)
    trainer.model.state_dict()["projection.0.bias"].fill_(torch.nan)
    result = trainer.gradient_step(batches(trainer, 1), 1e-3, list)
    assert (result.finite, result.overflow) == (False, False)


def test_an_overflow_without_a_scale_counts(tmp_path, high_scale):
    trainer = make_trainer(tmp_path, FP16)
    (batch,) = batches(trainer, 1)
    scaler = trainer.gradient_step.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1.0})
    trainer.model.projection.register_full_backward_hook(
        lambda module, into, out: tuple(None if g is None else g * torch.inf for g in into)
    )
    result = trainer.gradient_step([batch], 1e-3, list)
    assert (result.finite, result.overflow) == (False, False)
    assert math.isfinite(result.loss)


@pytest.mark.parametrize("vclr", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one(recipe, high_scale, vclr, monkeypatch):
    options = [recipe, "train.log_every=1", "train.checkpoint_every=5", FP16, "optim.ema=0.9"]
    options += ["optim.name=adamw", "optim.backbone_lr=3e-4", "optim.schedule=step"]
    options += ["optim.milestones=[4]", "optim.lr=0.01", "train.steps=14"]
    if vclr:
        Path(recipe).write_text(RECIPE)
        monkeypatch.setattr(training.train, "training_loader", tuples)
    assert main([*options, "train.run_dir=whole"]) == 0
    train_in_two_parts([*options, "train.run_dir=run"], stop_at=12)
    whole, run = last_state("whole"), last_state("run")
    assert 0 < whole["skipped"] < 9
    for name in ("model", "ema"):
        assert same(whole[name], run[name]), name
    assert not same(whole["model"], whole["ema"])
    assert whole["scaler"] == run["scaler"]
    assert whole["optimizer"]["param_groups"] == run["optimizer"]["param_groups"]
    for key, state in whole["optimizer"]["state"].items():
        assert same(state, run["optimizer"]["state"][key])
    assert numbers("whole") == numbers("run")


def train_high(arguments):
    training.loop.step.make_scaler = too_high
    return train(partial(shared_squares, videos=8), arguments)


@pytest.mark.process
def test_two_ranks_skip_the_same_steps(recipe):
    options = [recipe, "train.log_every=1", "train.run_dir=run", "train.steps=14", FP16]
    options += ["optim.ema=0.9", "data.batch_size=4", "optim.backbone_lr=3e-4"]
    processes = launch(train_high, options, num=2)
    assert wait(processes) == [0, 0], said(processes[0])
    lines = read_log("run")
    assert 0 < lines[-1]["skipped"] < 12
    assert lines[-1]["loss_scale"] == 2.0 ** (20 - lines[-1]["skipped"])
    assert all(torch.isfinite(value).all() for value in last_state("run")["ema"].values())
