import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import numbers, same, squares, weights
from steps import Killed, stopped_at

import training.loop.meter
import training.loop.trainer
import training.train
from training.loop.dry_run import saved_bytes_per_frame
from training.models import small_cnn
from training.recipe.load import load_config
from training.runs.checkpoint import list_checkpoints, load_latest
from training.runs.log import read_log
from training.runs.model import initial_model, load_run
from training.train import main

ROOT = Path(__file__).parents[2]
WIDTHS = small_cnn.WIDTHS  # the real ones; the fixture `recipe` changes them


def test_a_run_writes_everything(recipe):
    assert main([recipe, "train.run_dir=run"]) == 0
    assert [line["step"] for line in read_log("run")] == [4, 8, 12]
    last = read_log("run")[-1]
    assert last["frames_per_s"] > 0
    assert 0 <= last["data_wait"] <= 1
    assert last["epoch"] == 12 // (5 // 2)
    assert 0 < last["pairwise_distance"] <= 2
    assert 1 <= last["effective_rank"] <= 16
    assert [p.name for p in list_checkpoints("run/checkpoints")] == [
        "step_00000010.pt",
        "step_00000012.pt",
    ]
    assert list(Path("run/tensorboard").glob("events.*"))
    assert json.loads(Path("run/environment.json").read_text())["torch"] == torch.__version__
    for path in list_checkpoints("run/checkpoints"):
        torch.load(path, weights_only=True)


def test_the_rate_follows_half_a_cosine(recipe):
    main([recipe, "train.run_dir=run", "train.log_every=1"])
    rates = [line["lr"] for line in read_log("run")]
    expected = [0.5e-3 * (1 + np.cos(np.pi * step / 12)) for step in range(12)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_first_step_is_that_of_plain_adam(recipe):
    main([recipe, "train.run_dir=run", "train.steps=1", "model.dropout=0", "model.fc_dropout=0"])
    model, cfg = load_run("run", untrained=True)
    model.train()
    batch = next(squares(cfg).stream(1))
    frames, steps, valid = (batch[key] for key in ("frames", "steps", "valid"))
    z = model(frames.flatten(0, 1), valid.flatten(0, 1)).view(2, 2, 8, -1)
    z = torch.nn.functional.normalize(z, dim=-1)
    rows = []
    for n in range(2):  # the loss from its definition
        for a, b in ((0, 1), (1, 0)):
            za, zb = z[n, a][valid[n, a]], z[n, b][valid[n, b]]
            gap = (steps[n, a][valid[n, a], None] - steps[n, b][valid[n, b]]).double()
            target = (-(gap**2) / 20).exp()
            target = target / target.sum(1, keepdim=True)
            log_p = (za @ zb.T / 0.1).log_softmax(1)
            rows.append((torch.special.xlogy(target, target) - target * log_p).sum(1))
    loss = torch.cat(rows).mean()
    assert read_log("run")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    before = {k: v.clone() for k, v in model.named_parameters()}
    after = weights("run")
    # Adam's first step is lr * sign(g) almost everywhere, so signs are compared where g is clear.
    optimizer.step()
    moved = agreed = 0
    for key, p in model.named_parameters():
        clear = p.grad.abs() > 1e-4
        moved += clear.sum().item()
        agreed += ((after[key] - before[key])[clear] * (p.detach() - before[key])[clear] > 0).sum()
    assert moved > 1000
    assert agreed == moved


def test_resumed_run_equals_the_uninterrupted_one(recipe, whole):
    # Killed after step 9, with a checkpoint of step 5 and a log line of step 8; then after step 11.
    arguments = [recipe, "train.run_dir=parts"]
    for step, resume in ((9, []), (11, ["--resume"])):
        with stopped_at(step), pytest.raises(Killed):
            main([*arguments, *resume])
    torch.rand(7)  # the resuming process has another random state
    assert main([*arguments, "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    assert main([*arguments, "--resume"]) == 0  # a finished run does not change
    assert numbers("whole") == numbers("parts")


def test_dry_run_describes_and_writes_nothing(recipe, capsys):
    assert main([recipe, "train.steps=null", "train.epochs=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "5 videos in split 'train', 2 steps per epoch, 6 steps in total" in out
    assert "2 videos x 2 views x 8 frames = 32 frames of 16 px" in out
    model = initial_model(load_config(recipe))
    parameters = sum(p.numel() for p in model.parameters())
    assert f"{parameters:,} parameters, {parameters:,} trained" in out
    assert os.listdir() == ["tiny.yaml"]


def test_memory_per_frame_is_what_autograd_keeps():
    class Square(torch.nn.Module):
        backbone = SimpleNamespace(clips=False)

        def forward(self, frames):
            x = frames.float().requires_grad_()
            return x * x  # keeps x: 4 bytes for each of 3 * 16 * 16 values

    assert saved_bytes_per_frame(Square(), 16, torch.float32) == 4 * 3 * 16 * 16


def test_a_time_budget_ends_the_run_and_the_cosine(recipe, monkeypatch):
    clock = iter(range(0, 10**6, 1))  # each read of the clock takes a second
    monkeypatch.setattr(training.loop.meter.time, "perf_counter", lambda: float(next(clock)))
    arguments = [recipe, "train.run_dir=run", "train.steps=1000", "train.log_every=1"]
    assert main([*arguments, "train.max_minutes=0.5"]) == 0
    lines = read_log("run")
    assert lines[-1]["seconds"] >= 30 > lines[-2]["seconds"]
    assert lines[-1]["lr"] < 0.1 * lines[0]["lr"]


def test_initial_weights_are_rebuilt(recipe):
    main([recipe, "train.run_dir=a", "train.steps=1", "optim.lr=0"])
    torch.rand(3)
    rebuilt = dict(load_run("a", untrained=True)[0].named_parameters())
    trained = weights("a")
    assert all(torch.equal(trained[key], value) for key, value in rebuilt.items())
    state = torch.get_rng_state()
    load_run("a", untrained=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not load_run("a")[0].training


def test_bf16_trains_like_fp32(recipe, monkeypatch):
    # Few steps, since rounding errors grow from step to step, and faster in a smaller network.
    monkeypatch.setattr(small_cnn, "WIDTHS", WIDTHS)
    options = ["train.steps=2", "train.log_every=2", "train.chunk_frames=20"]
    main([recipe, "train.run_dir=fp32", *options])
    main([recipe, "train.run_dir=bf16", *options, "train.precision=bf16"])
    loss32, loss16 = read_log("fp32")[0]["loss"], read_log("bf16")[0]["loss"]
    assert loss16 != loss32
    assert loss16 == pytest.approx(loss32, rel=0.03)
    assert all(value.dtype != torch.bfloat16 for value in weights("bf16").values())


def test_loss_falls_on_a_small_set(recipe, monkeypatch):
    monkeypatch.setattr(training.train, "training_loader", partial(squares, videos=4, padded=False))
    steps = ["train.steps=60", "train.log_every=10", "model.dropout=0", "model.fc_dropout=0"]
    steps += ["train.checkpoint_every=100"]
    main([recipe, "train.run_dir=run", "model.positions=none", *steps, "optim.lr=3e-3"])
    lines = read_log("run")
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["pairwise_distance"] > 0.2


def test_a_step_takes_several_batches(recipe):
    options = ["train.accumulate=2", "train.log_every=1"]
    assert main([recipe, "train.run_dir=run", "train.steps=6", *options]) == 0
    lines = read_log("run")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]  # 2 batches an epoch
    cfg = load_run("run")[1]
    assert (cfg.data.batch_size, cfg.train.accumulate) == (2, 2)
    state = load_latest("run/checkpoints")
    assert state["ranks"][0]["loader"]["position"] == 12
    # 5 epochs have 10 batches: 3 steps of three batches, and one batch is left over.
    epochs = ["train.steps=null", "train.epochs=5", "train.accumulate=3"]
    assert main([recipe, "train.run_dir=epochs", *epochs]) == 0
    assert load_latest("epochs/checkpoints")["step"] == 3


def test_deterministic_gives_the_same_run(recipe, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    main([recipe, "train.run_dir=as_ever", "train.steps=3"])
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        assert main([recipe, "train.run_dir=run", "train.steps=3", "train.deterministic=true"]) == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert same(weights("run"), weights("as_ever"))


def test_workers_give_the_same_run(recipe):
    main([recipe, "train.run_dir=one", "train.steps=4"])
    main([recipe, "train.run_dir=two", "train.steps=4", "data.workers=2"])
    assert same(weights("one"), weights("two"))


@pytest.mark.process
def test_help_does_not_wait_for_torch():
    code = (
        "import sys, training.train\n"
        "try: training.train.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_dry_run_fills_no_cache_but_wants_an_engine_that_reads_it(
    video_folder, capsys, monkeypatch
):
    monkeypatch.setattr("training.data.dataset.FrameCache", None)
    arguments = ["tiny.yaml", "--dry-run", "data.cache=ram"]
    assert main([*arguments, "data.engine=dali-cpu"]) == 2
    assert "'dali-cpu' cannot read from the cache" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "memory       about" in capsys.readouterr().out


def test_training_on_video_files(video_folder):
    arguments = ["tiny.yaml", "train.steps=4", "train.log_every=1", "data.batch_size=3"]
    arguments.append("data.cache_side=32")  # the size of the files: the cache does not scale
    assert main([*arguments, "train.run_dir=decoded"]) == 0
    assert main([*arguments, "train.run_dir=cached", "data.cache=ram"]) == 0
    assert same(weights("decoded"), weights("cached"))
    cfg = load_run("decoded")[1]
    assert cfg.data.folder == str(video_folder)  # works in any current folder
    assert all(line["loss"] > 0 for line in read_log("decoded"))
