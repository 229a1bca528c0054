"""Runs that are killed, at chosen and at random moments, against the uninterrupted one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from processes import ROOT, launch, said, train, wait
from runs import RECIPE, numbers, same, squares, weights

from training.loop.trainer import Trainer
from training.runs import checkpoint
from training.runs.checkpoint import list_checkpoints, load_latest, save_checkpoint
from training.runs.log import RunLog, read_log

pytestmark = pytest.mark.process

OPTIONS = ["tiny.yaml", "train.log_every=1", "train.checkpoint_every=3", "train.steps=20"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with these options that has gone through."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert wait(launch(train, squares, [*OPTIONS, "train.run_dir=whole"])) == [0]
    return folder


@pytest.fixture
def whole(finished, tmp_path, monkeypatch):
    """Options of another run, in a folder that has the finished one as `whole`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return [*OPTIONS, "train.run_dir=run"]


def check_same_as_whole() -> None:
    assert same(weights("run"), weights("whole"))
    assert numbers("run") == numbers("whole")
    assert [line["step"] for line in numbers("run")] == list(range(1, 21))


def die(*arguments, **options) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesAfter:
    """In place of a file: the process ends when so many bytes have gone through it."""

    def __init__(self, file, size: int) -> None:
        self.file, self.left = file, size

    def write(self, block) -> int:
        self.left -= len(block)
        if self.left < 0:
            self.file.flush()
            die()
        return self.file.write(block)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def dies_at(moment: str, arguments: list[str]) -> int:
    """A training that ends by SIGKILL at its second checkpoint (step 6), or near it."""
    times = iter(range(1000))
    owner, name, at = {
        "in a step": (torch.optim.Adam, "step", 7),
        "while the checkpoint is written": (torch, "save", 1),
        # config, environment; log, checkpoint, folder, manifest, folder; log, checkpoint
        "before it is durable": (os, "fsync", 8),
        "before it has its name": (
            os,
            "replace",
            4,
        ),  # config, environment; checkpoint, manifest; checkpoint
        "before the manifest": (checkpoint, "_write_manifest", 1),
        "before the old one is removed": (Path, "unlink", None),
        "after a log line": (RunLog, "sync", 1),
    }[moment]
    original = getattr(owner, name)

    def patched(*args, **options):
        count = next(times)
        if name == "unlink" and args[0].name == "step_00000003.pt":
            die()
        elif count == at and name == "save":
            return original(args[0], DiesAfter(args[1], 20_000))
        elif count == at:
            die()
        return original(*args, **options)

    setattr(owner, name, patched)
    return train(squares, arguments)


@pytest.mark.parametrize(
    "moment",
    [
        "in a step",
        "while the checkpoint is written",
        "before it is durable",
        "before it has its name",
        "before the manifest",
        "before the old one is removed",
        "after a log line",
    ],
)
def test_a_kill_at_this_moment_changes_nothing(whole, moment):
    keep = ["train.keep_checkpoints=1"]
    assert wait(launch(dies_at, moment, [*whole, *keep])) == [-signal.SIGKILL]
    step = load_latest("run/checkpoints")["step"]
    assert step in (3, 6)
    resumed = launch(train, squares, [*whole, *keep, "--resume"])
    assert wait(resumed) == [0]
    assert f"steps {step} to 20" in said(resumed[0])
    check_same_as_whole()
    assert [path.name for path in Path("run/checkpoints").iterdir() if path.suffix == ".part"] == []


def kill_at_random(start, count: int, seed: int) -> None:
    """Let a run begin and go on `count` times, each up to a random moment; then to its end."""
    draw = random.Random(seed)
    for _ in range(count):
        process = start(["--resume"] if Path("run/config.yaml").exists() else [])
        goal = len(read_log("run")) + draw.choice([0, 1, 2, 4])
        deadline = time.monotonic() + 60
        while len(read_log("run")) < goal and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        wait([process]) if hasattr(process, "join") else process.wait()
    process = start(["--resume"] if Path("run/config.yaml").exists() else [])
    assert (wait([process])[0] if hasattr(process, "join") else process.wait(300)) == 0


def test_kills_at_random_moments_change_nothing(whole):
    kill_at_random(lambda more: launch(train, squares, [*whole, *more])[0], count=4, seed=0)
    check_same_as_whole()


@pytest.mark.slow
def test_twenty_kills_of_the_command_change_nothing(video_folder):
    """As in life: files, decoding processes, the command."""
    options = ["tiny.yaml", "train.log_every=1", "train.checkpoint_every=3", "train.steps=60"]
    options += ["data.batch_size=3", "data.workers=1"]

    def start(more: list[str], run: str = "run") -> subprocess.Popen:
        command = [sys.executable, "-m", "training.train", *options, f"train.run_dir={run}", *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start([], "whole").wait(300) == 0
    kill_at_random(start, count=20, seed=1)
    assert same(weights("run"), weights("whole"))
    assert numbers("run") == numbers("whole")
    assert len(numbers("run")) == 60


def write_forever(folder: Path) -> None:
    state = load_latest(folder)
    for step in range(1 if state is None else state["step"] + 1, 10**6):
        save_checkpoint(folder, step, {"step": step, "weights": torch.full((500_000,), step)})


def newest_step(folder: Path) -> int:
    return max((int(path.stem.split("_")[1]) for path in list_checkpoints(folder)), default=0)


def kill_writers(folder: Path, count: int) -> None:
    draw = random.Random(2)
    last = 0
    for _ in range(count):
        (process,) = launch(write_forever, folder)
        while newest_step(folder) <= last and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert wait([process]) == [-signal.SIGKILL], said(process)
        state = load_latest(folder, keys=["step", "weights"])
        assert state["step"] >= last
        assert torch.equal(state["weights"], torch.full((500_000,), state["step"]))
        last = state["step"]
    assert last >= count


def test_kills_while_checkpoints_are_written_leave_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kill_writers(tmp_path / "checkpoints", 5)


@pytest.mark.slow
def test_fifty_kills_while_checkpoints_are_written_leave_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kill_writers(tmp_path / "checkpoints", 50)


def test_what_a_checkpoint_holds(whole):
    for path in list_checkpoints("whole/checkpoints"):
        state = torch.load(path, weights_only=True)
    assert (state["step"], state["epoch"], state["learning_rate"]) == (20, 10, 0)
    config = OmegaConf.to_container(OmegaConf.load("whole/config.yaml"))
    config["augmentation"]["scale"] = state["config"]["augmentation"]["scale"]  # a tuple there
    assert state["config"]["train"] == config["train"]
    assert state["config"].keys() == config.keys()
    assert state["environment"]["torch"] == torch.__version__
    assert state["environment"]["threads"] == 1
    (rank,) = state["ranks"]
    assert rank["loader"]["position"] == 20
    assert set(rank["random"]) == {"python", "numpy", "torch", "cuda"}
    assert state["optimizer"]["state"][0]["step"] == 20


def with_two_threads(arguments: list[str]) -> int:
    torch.set_num_threads(2)
    return train(squares, arguments)


def test_another_number_of_threads_is_said(whole):
    short = [*whole, "train.steps=3"]
    assert wait(launch(train, squares, short)) == [0]
    (process,) = launch(with_two_threads, [*short, "--resume"])
    assert wait([process]) == [0]
    expected = "the run was saved with threads 1 (now 2): it continues, but not bit for bit"
    assert expected in said(process)
    (process,) = launch(train, squares, [*short, "--resume"])
    assert wait([process]) == [0]
    assert "not bit for bit" not in said(process)


def test_what_torchrun_starts_again_continues(whole):
    launched = {"TORCHELASTIC_RUN_ID": "one"}
    first = launch(train, squares, whole, STOP_AT="SIGKILL:8", **launched)
    assert wait(first) == [-signal.SIGKILL]
    launched["TORCHELASTIC_RESTART_COUNT"] = "1"
    again = launch(train, squares, [*whole, "--overwrite"], **launched)
    assert wait(again) == [0]
    assert "steps 6 to 20" in said(again[0])
    check_same_as_whole()
    # Another launch that fails before it has begun still means to overwrite.
    launched["TORCHELASTIC_RUN_ID"] = "two"
    other = launch(train, squares, [*whole, "--overwrite"], **launched)
    assert wait(other) == [0]
    assert "steps 0 to 20" in said(other[0])


def disk_full(arguments: list[str]) -> int:
    """From step 9 on."""
    original, step = os.replace, Trainer._train_step
    steps = iter(range(1000))

    def replace(source, target):
        raise OSError(28, "No space left on device")

    def train_step(self, batches, rate):
        os.replace = replace if next(steps) >= 8 else original
        return step(self, batches, rate)

    Trainer._train_step = train_step
    return train(squares, arguments)


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_from_there(whole):
    (process,) = launch(disk_full, whole)
    assert wait([process]) == [1]
    errors = [line for line in said(process).splitlines() if line.startswith("error")]
    assert errors == [
        "error: run/checkpoints/step_00000009.pt cannot be written (No space left on device); "
        "step_00000006.pt is intact. Free some space or grant write permission, then continue "
        "with --resume"
    ]
    assert "Traceback" not in said(process)
    assert wait(launch(train, squares, [*whole, "--resume"])) == [0]
    check_same_as_whole()
