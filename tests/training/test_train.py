import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import training.train
import training.trainer
from fastseq.video import write_video
from training.checkpoint import list_checkpoints
from training.config import load_config
from training.data.dataset import collate
from training.data.index import build_index
from training.run import initial_model, load_run
from training.runlog import collapse_measures, read_log
from training.train import main
from training.trainer import StepBatches, steps_per_epoch

ROOT = Path(__file__).parents[2]

RECIPE = """
data: {folder: videos, num_frames: 8, batch_size: 2, workers: 0}
augmentation: {size: 16}
model:
  backbone: small_cnn
  train_from: all
  frames_per_chunk: 20
  fc_size: 16
  hidden_size: 16
  heads: 2
  ff_size: 32
  layers: 1
  embedding_size: 16
  projection_hidden: 16
  projection_size: 16
optim: {lr: 1.0e-3}
train: {steps: 12, log_every: 4, checkpoint_every: 5, device: cpu}
"""


class MovingSquares:
    """Stands in for videos: a bright square that moves, a pure function of (epoch, index)."""

    collate = staticmethod(collate)

    def __init__(self, videos: int = 5, padded: bool = True) -> None:
        self.videos, self.padded, self.epoch = videos, padded, 0
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.videos

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        self.asked.append((self.epoch, index))
        rng = np.random.default_rng([self.epoch, index])
        steps = np.stack([np.sort(rng.choice(40, 8, replace=False)) for _ in range(2)])
        frames = np.full((2, 8, 3, 16, 16), 20 * index, dtype=np.uint8)
        for view in range(2):
            for t, step in enumerate(steps[view]):
                frames[view, t, :, 12 * step // 40 :, : 4 + step // 10] = 255
        valid = np.ones((2, 8), dtype=bool)
        if self.padded and index != 2:
            valid[1, 6:] = False
        return {
            "frames": torch.from_numpy(frames),
            "steps": torch.from_numpy(steps),
            "valid": torch.from_numpy(valid),
            "num_frames": 40,
            "id": f"video{index}",
        }


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "open_dataset", lambda cfg, dry_run=False: MovingSquares())
    return "tiny.yaml"


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_run(run)[0].state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(run: str) -> list[dict]:
    """Log lines without what depends on the clock."""
    timed = ("frames_per_s", "data_wait", "seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(run)]


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
    (batch,) = StepBatches(5, 2, cfg.train.seed, 0, 1)
    items = [MovingSquares()[index] for _, index in batch]
    frames, steps, valid = (
        torch.stack([item[k] for item in items]) for k in ("frames", "steps", "valid")
    )
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


def test_resumed_run_equals_the_uninterrupted_one(recipe, monkeypatch):
    main([recipe, "train.run_dir=whole"])

    # Killed after step 9, with a checkpoint of step 5 and a log line of step 8; then after step 11.
    class Killed(BaseException):
        pass

    original = training.trainer.Trainer._train_step

    def killed_at(step):
        def train_step(self, batch, rate):
            if self.step == step:
                raise Killed
            return original(self, batch, rate)

        return train_step

    arguments = [recipe, "train.run_dir=parts"]
    for step, resume in ((9, []), (11, ["--resume"])):
        monkeypatch.setattr(training.trainer.Trainer, "_train_step", killed_at(step))
        with pytest.raises(Killed):
            main([*arguments, *resume])
    monkeypatch.setattr(training.trainer.Trainer, "_train_step", original)
    torch.rand(7)  # the process that resumes has another random state
    assert main([*arguments, "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    assert main([*arguments, "--resume"]) == 0  # a finished run stays as it is
    assert numbers("whole") == numbers("parts")


def test_resume_refuses_another_configuration(recipe, capsys):
    main([recipe, "train.run_dir=run", "train.steps=2"])
    assert main([recipe, "train.run_dir=run", "train.steps=2", "optim.lr=0.1", "--resume"]) == 2
    assert "other values: optim.lr = 0.001 (now 0.1)" in capsys.readouterr().err
    arguments = [recipe, "train.run_dir=run", "train.steps=2", "train.log_every=1", "--resume"]
    assert main(arguments) == 0
    assert main([recipe, "train.run_dir=nowhere", "--resume"]) == 2
    assert "no run in nowhere" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten_unasked(recipe, capsys):
    main([recipe, "train.run_dir=run", "train.steps=5"])
    Path("run/notes.txt").write_text("mine")
    before = Path("run/log.jsonl").read_text()
    assert main([recipe, "train.run_dir=run"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert Path("run/log.jsonl").read_text() == before
    assert main([recipe, "train.run_dir=run", "train.steps=4", "--overwrite"]) == 0
    assert [p.name for p in list_checkpoints("run/checkpoints")] == ["step_00000004.pt"]
    assert Path("run/notes.txt").read_text() == "mine"


def test_dry_run_describes_and_writes_nothing(recipe, capsys):
    assert main([recipe, "train.steps=null", "train.epochs=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "5 videos in split 'train', 2 steps an epoch, 6 steps in all" in out
    assert "2 videos x 2 views x 8 frames = 32 frames of 16 px" in out
    model = initial_model(load_config(recipe))
    parameters = sum(p.numel() for p in model.parameters())
    assert f"{parameters:,} parameters, {parameters:,} trained" in out
    assert os.listdir() == ["tiny.yaml"]


def test_memory_per_frame_is_what_autograd_keeps():
    class Square(torch.nn.Module):
        def forward(self, frames):
            x = frames.float().requires_grad_()
            return x * x  # keeps x: 4 bytes for each of 3 * 16 * 16 values

    assert training.train.saved_bytes_per_frame(Square(), 16, False) == 4 * 3 * 16 * 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml", "optm.lr=1"], "Did you mean 'optim.lr'"),
        (["missing.yaml"], "missing.yaml does not exist"),
        (["tiny.yaml", "data.folder="], "data.folder"),
        (["tiny.yaml", "model.weights=none.pt"], "none.pt does not exist"),
    ],
)
def test_wrong_requests_exit_with_2(recipe, capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir() == ["tiny.yaml"]


def broken_loss(bad_steps, monkeypatch):
    calls = iter(range(1000))
    original = training.trainer.scl_loss

    def loss(*args, **options):
        if not args[0].requires_grad:  # the check of the options before the run
            return original(*args, **options)
        factor = float("nan") if next(calls) in bad_steps else 1.0
        return original(*args, **options) * factor

    monkeypatch.setattr(training.trainer, "scl_loss", loss)


def test_steps_without_a_finite_loss_are_skipped(recipe, monkeypatch, capsys):
    broken_loss({2, 3, 6}, monkeypatch)
    assert main([recipe, "train.run_dir=run", "train.log_every=1", "train.max_nonfinite=3"]) == 0
    lines = read_log("run")
    assert [line["skipped"] for line in lines[:8]] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [line["loss"] is None for line in lines[:8]] == [i in (2, 3, 6) for i in range(8)]
    assert all(torch.isfinite(value).all() for value in weights("run").values())
    assert "step 3: loss nan" in capsys.readouterr().err


def test_a_skipped_step_leaves_the_weights(recipe, monkeypatch):
    broken_loss({0, 1}, monkeypatch)
    main([recipe, "train.run_dir=run", "train.steps=2"])
    trained, initial = weights("run"), load_run("run", untrained=True)[0].named_parameters()
    assert all(torch.equal(trained[key], value) for key, value in initial)


def test_training_stops_when_the_loss_stays_not_finite(recipe, monkeypatch, capsys):
    broken_loss(range(6, 1000), monkeypatch)
    assert main([recipe, "train.run_dir=run", "train.max_nonfinite=4"]) == 1
    assert "not finite in 4 steps in a row, up to step 10" in capsys.readouterr().err
    assert list_checkpoints("run/checkpoints")[-1].name == "step_00000005.pt"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(recipe, monkeypatch, number, status):
    original = training.trainer.Trainer._train_step

    def train_step(self, batch, rate):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return original(self, batch, rate)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(training.trainer.Trainer, "_train_step", train_step)
        assert main([recipe, "train.run_dir=run"]) == status
    assert list_checkpoints("run/checkpoints")[-1].name == "step_00000003.pt"
    assert signal.getsignal(number) == handler
    main([recipe, "train.run_dir=whole"])
    assert main([recipe, "train.run_dir=run", "--resume"]) == 0
    assert same(weights("run"), weights("whole"))


def test_a_time_budget_ends_the_run_and_the_cosine(recipe, monkeypatch):
    clock = iter(range(0, 10**6, 1))  # each look at the clock takes a second
    monkeypatch.setattr(training.trainer.time, "perf_counter", lambda: float(next(clock)))
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


def test_load_run_says_what_is_missing(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run"):
        load_run(tmp_path)
    main([recipe, "train.run_dir=run", "train.steps=1"])
    for path in list_checkpoints("run/checkpoints"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        load_run("run")


def test_bf16_trains_like_fp32(recipe):
    # Few steps: rounding is amplified from step to step, and more so the smaller the network.
    options = ["train.steps=2", "train.log_every=2"]
    main([recipe, "train.run_dir=fp32", *options])
    main([recipe, "train.run_dir=bf16", *options, "train.precision=bf16"])
    loss32, loss16 = read_log("fp32")[0]["loss"], read_log("bf16")[0]["loss"]
    assert loss16 != loss32
    assert loss16 == pytest.approx(loss32, rel=0.03)
    assert all(value.dtype != torch.bfloat16 for value in weights("bf16").values())


def test_loss_falls_on_a_small_set(recipe, monkeypatch):
    monkeypatch.setattr(
        training.train, "open_dataset", lambda cfg, **_: MovingSquares(4, padded=False)
    )
    steps = ["train.steps=150", "train.log_every=10", "model.dropout=0", "model.fc_dropout=0"]
    main([recipe, "train.run_dir=run", "model.positions=none", *steps, "optim.lr=3e-3"])
    lines = read_log("run")
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["pairwise_distance"] > 0.2


def test_each_epoch_visits_full_batches_of_different_videos():
    batches = [*StepBatches(videos=7, batch_size=3, seed=1, start=0, stop=10)]
    assert steps_per_epoch(7, 3) == 2
    assert [epoch for batch in batches for epoch, _ in batch[:1]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len({video for _, video in first + second}) == 6
    assert [*StepBatches(7, 3, 1, 5, 10)] == batches[5:]
    assert [*StepBatches(7, 3, 2, 0, 10)] != batches
    assert [len(batch) for batch in StepBatches(2, 3, 1, 0, 3)] == [2, 2, 2]


def test_workers_give_the_same_run(recipe):
    main([recipe, "train.run_dir=one", "train.steps=4"])
    main([recipe, "train.run_dir=two", "train.steps=4", "data.workers=2"])
    assert same(weights("one"), weights("two"))


def test_collapse_measures():
    torch.manual_seed(0)
    same_everywhere = collapse_measures(torch.ones(10, 8) + 1e-7 * torch.randn(10, 8))
    assert same_everywhere["pairwise_distance"] < 1e-5
    opposite = torch.tensor([[1.0, 0], [-1, 0]]).repeat(5, 1)
    measures = collapse_measures(opposite)
    assert measures["pairwise_distance"] == pytest.approx(2 * 25 / 45)
    assert measures["effective_rank"] == pytest.approx(1)
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert collapse_measures(5 * corners)["effective_rank"] == pytest.approx(6, rel=1e-5)


def test_log_continues_after_the_checkpoint(recipe):
    main([recipe, "train.run_dir=run"])
    path = Path("run/log.jsonl")
    path.write_text(path.read_text() + '{"step": 16, "lo')  # a line cut short
    assert [line["step"] for line in read_log("run")] == [4, 8, 12]


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, training.train\n"
        "try: training.train.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three real video files with an index, and a recipe to train on them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    for name, length in (("a", 30), ("b", 12), ("c", 6)):  # c is shorter than a view
        background = rng.integers(0, 200, (32, 48, 3), dtype=np.uint8)
        frames = np.repeat(background[None], length, 0)
        for t in range(length):
            frames[t, 4:20, t : t + 12] = 255
        (tmp_path / "videos").mkdir(exist_ok=True)
        write_video(tmp_path / "videos" / f"{name}.mp4", frames, 25)
    build_index(tmp_path / "videos")
    return tmp_path / "videos"


def test_training_on_video_files(folder):
    arguments = ["tiny.yaml", "train.steps=4", "train.log_every=1", "data.batch_size=3"]
    assert main([*arguments, "train.run_dir=decoded"]) == 0
    assert main([*arguments, "train.run_dir=cached", "data.cache=ram"]) == 0
    assert same(weights("decoded"), weights("cached"))
    cfg = load_run("decoded")[1]
    assert cfg.data.folder == str(folder)  # holds from any current folder
    assert all(line["loss"] > 0 for line in read_log("decoded"))


def test_a_folder_that_is_not_ready_exits_with_2(folder, capsys):
    assert main(["tiny.yaml", "data.train_split=dev"]) == 2
    assert "no video of split 'dev'" in capsys.readouterr().err
    (folder / "fastseq_index.json").unlink()
    assert main(["tiny.yaml"]) == 2
    assert "training.prepare" in capsys.readouterr().err
    assert not Path("runs").exists()
