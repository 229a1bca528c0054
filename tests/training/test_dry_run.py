"""The time estimate of --dry-run, and runs that are refused because they would learn nothing."""

import math
import os
import re
from types import SimpleNamespace

import pytest
import torch
from narrow import NARROW_RESNET
from runs import RECIPE
from test_stored_features import stored
from vclr_cases import RECIPE as VCLR_RECIPE
from vclr_cases import tuples

import training.train
from training.loop import step_time
from training.loop.dry_run import saved_bytes
from training.loop.step_time import in_words, running_time
from training.loop.trainer import Trainer
from training.models import resnet
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.train import main


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0291, "0.029 s"),
        (45, "45 s"),
        (89, "89 s"),
        (91, "2 minutes"),
        (600, "10 minutes"),
        (7200, "2 hours"),
        (100_000, "28 hours"),
        (200_000, "2 days"),
        (1_900_000, "3 weeks"),
    ],
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


class FakeStep:
    """A step that takes a + b times its frames, on a simulated clock."""

    def __init__(self, a, b, sizes, read):
        self.a, self.b, self.sizes, self.read, self.now, self.ran = a, b, sizes, read, 0.0, []

    def examples(self, items):
        for frames in self.sizes:
            yield {"valid": torch.ones(1, 2, frames // 2)}

    def describe(self, cfg):
        return SimpleNamespace(read=self.read)

    def __call__(self, batches, rate, requests):
        frames = batches[0]["valid"].numel()
        self.ran.append(frames)
        self.now += self.a + self.b * frames


def fake_trainer(step, monkeypatch, **train):
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: step.now)
    return SimpleNamespace(
        cfg=SimpleNamespace(
            train=SimpleNamespace(**{"accumulate": 1, "max_minutes": None} | train),
            data=SimpleNamespace(num_context=1, cache="none", split_time=1),
        ),
        model=SimpleNamespace(chunk_frames=None, chunk_size=lambda: 80),
        gradient_step=step,
        loader=SimpleNamespace(batch_size=4, items=range(9)),
        steps=1800,
        device=torch.device("cpu"),
    )


def test_a_long_step_is_taken_to_grow_with_its_frames(monkeypatch):
    step = FakeStep(0.02, 0.1, [4, 8, 16, 1920], read=480)
    words = running_time(fake_trainer(step, monkeypatch))
    assert step.ran == [4, 4, 8]  # 0.42 s, then 0.82 s: long enough
    assert words == (
        "about 4 days: 192 s per step (measured on 8 frames, without reading videos)"
    )  # 0.02 + 0.1 x 1920
    words = running_time(fake_trainer(step, monkeypatch, accumulate=2, max_minutes=60))
    assert words.startswith("about 60 minutes, ended by train.max_minutes: 384 s per step")


def test_a_short_step_is_measured_whole(monkeypatch):
    step = FakeStep(0.02, 1e-4, [4, 8, 16], read=4)
    words = running_time(fake_trainer(step, monkeypatch))
    assert step.ran == [4, 4, 8, 16]
    assert words == "about 39 s: 0.022 s per step (measured, without reading videos)"


def test_what_does_not_fit_in_memory_is_not_measured(monkeypatch):
    class Step(FakeStep):
        def __call__(self, batches, rate, requests):
            if batches[0]["valid"].numel() > 8:
                raise torch.OutOfMemoryError
            super().__call__(batches, rate, requests)

    step = Step(0.02, 1e-4, [4, 8, 16], read=4)
    assert "measured on 8 frames" in running_time(fake_trainer(step, monkeypatch))


def line(out):
    return re.search(r"^time +(.*)$", out, re.MULTILINE)[1]


def test_a_dry_run_says_how_long_it_takes(recipe, capsys):
    assert main([recipe, "--dry-run"]) == 0
    pattern = r"about [\d.]+ s: [\d.]+ s per step \(measured, without reading videos\)"
    assert re.fullmatch(pattern, line(capsys.readouterr().out))
    assert os.listdir() == ["tiny.yaml"]


def test_of_vclr_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(VCLR_RECIPE)
    monkeypatch.setattr(training.train, "training_loader", tuples)
    assert main(["tiny.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "per step (measured, without reading videos)" in line(out)


def test_storing_features_takes_time_once(recipe, monkeypatch, capsys):
    options = ["model.train_from=none", "model.random_frozen=true", "--dry-run"]
    monkeypatch.setattr(training.train, "training_loader", stored)
    assert main([recipe, *options, "data.cache=features"]) == 0
    out = capsys.readouterr().out
    pattern = (
        r"about .* s: [\d.]+ s per step \(measured\), after at most [\d.]+ s for the features "
    )
    assert re.fullmatch(pattern + "of 200 frames", line(out))


def test_memory_of_stored_features_has_no_frames_in_it(recipe):
    model = initial_model(load_config(recipe, ["model.train_from=none"]))
    kept = saved_bytes(model, 100, 16, torch.float32)
    stored = saved_bytes(model, 100, 0, torch.float32, stored=True)  # for frames of any size
    assert 0 < stored <= kept


def test_steps_are_timed_as_they_are_run(recipe, monkeypatch):
    """Batches from small to whole, several chunks where the whole has several; no weight
    changes.
    """
    cfg = load_config(recipe, ["train.chunk_frames=20", "data.num_frames=8"])
    monkeypatch.setattr(step_time, "ENOUGH", math.inf)
    trainer = Trainer(cfg, initial_model(cfg), training.train.training_loader(cfg), None)
    seen = []
    encode = trainer.model.encode

    def watched(frames, valid):
        seen.append((tuple(frames.shape[:2]), trainer.model.chunk_frames))
        return encode(frames, valid)

    monkeypatch.setattr(trainer.model, "encode", watched)
    before = [p.clone() for p in trainer.model.parameters()]
    running_time(trainer)
    assert seen == [((2, 2), 2), ((2, 2), 2), ((2, 4), 4), ((2, 8), 8), ((4, 8), 20)]
    assert trainer.model.chunk_frames == 20
    assert all(map(torch.equal, before, trainer.model.parameters()))


FROZEN = ["model.backbone=resnet18", "train.steps=1"]


@pytest.mark.parametrize("train_from", ["layer4", "none", "batch_norm"])
def test_a_random_frozen_backbone_is_refused_unless_meant(recipe, train_from, monkeypatch, capsys):
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    options = [recipe, "train.run_dir=run", *FROZEN, f"model.train_from={train_from}"]
    for dry in ([], ["--dry-run"]):
        assert main([*options, *dry]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: model.train_from={train_from} freezes part of resnet18,")
        for way in ("model.weights=package", "model.train_from=all", "model.random_frozen=true"):
            assert way in error
        assert len(error.splitlines()) == 1
        assert os.listdir() == ["tiny.yaml"]
    assert main([*options, "model.random_frozen=true", "--dry-run"]) == 0
    whole = [recipe, *FROZEN, "model.train_from=all", "--dry-run"]
    assert main(whole) == 0


def test_a_random_frozen_vclr_backbone_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(VCLR_RECIPE)
    monkeypatch.setattr(training.train, "training_loader", tuples)
    assert main(["tiny.yaml", "model.train_from=none"]) == 2
    assert "freezes part of small_cnn, which is random" in capsys.readouterr().err


def test_the_model_of_such_a_recipe_can_still_be_measured(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    assert initial_model(load_config(tmp_path / "tiny.yaml", ["model.train_from=none"]))
