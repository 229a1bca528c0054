"""A rank that is killed, stopped, stuck or failing ends all ranks soon, with one message."""

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import launch, said, train, wait
from runs import RECIPE
from test_nodes import free_port
from test_troubleshooting import SHOWN
from two_ranks import squares

import training.train
from training.loop.pair_step import PairStep
from training.loop.trainer import Trainer, check_loss
from training.recipe.load import ConfigError, load_config
from training.runs.checkpoint import load_latest
from training.support import distributed, lost, signals
from training.support.command import START_SPREAD

pytestmark = pytest.mark.process

LIMIT = 60  # seconds for all ranks to end, on a busy machine
RESUME = "torchrun --nproc-per-node {} -m training.train tiny.yaml train.run_dir=run"


def quickly(arguments: list[str], ending: str = "") -> int:
    """Train with short waiting times; ``ending``: what the last rank does in step 6."""
    lost.ANSWER, lost.GRACE = 2, 5
    step = Trainer._train_step

    def train_step(self, batches, rate):
        if ending and self.step == 6 and distributed.rank() == distributed.world_size() - 1:
            if ending == "sleeps":
                time.sleep(600)
            raise AssertionError("a mistake")
        return step(self, batches, rate)

    Trainer._train_step = train_step
    return train(squares, arguments)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts ranks that train the recipe `tiny.yaml` to the end; they wait at most 8 s."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE.replace("batch_size: 2", "batch_size: 6"))
    arguments = ["tiny.yaml", "train.run_dir=run", "train.log_every=1", "train.timeout=8"]

    def started(*more: str, num: int = 2, **environment: str) -> list:
        return launch(quickly, arguments, *more, num=num, **environment)

    return started


def errors(processes: list) -> list[str]:
    """The lines about errors of all ranks, in order of rank."""
    text = "\n".join(map(said, processes))
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error")]


def check_page(processes: list) -> None:
    """docs/troubleshooting.md shows the message that a rank printed."""
    text = " ".join("\n".join(map(said, processes)).replace("within 2 s", "within 5 s").split())
    assert any(pattern.search(text) for pattern in SHOWN.values())


def test_a_killed_rank_ends_all_after_the_last_checkpoint(start):
    processes = start(num=3, STOP_AT="SIGKILL:6")
    assert wait(processes, LIMIT) == [1, 1, -signal.SIGKILL]
    (line,) = errors(processes)
    assert line == (
        "error: rank 2 was lost (killed, stopped or cut off): no answer within 2 s; "
        "all ranks end; continue from the last checkpoint with"
    )
    check_page(processes[:2])
    assert f"\n  {RESUME.format(3)} train.log_every=1 train.timeout=8 --resume\n" in "".join(
        map(said, processes)
    )
    assert load_latest("run/checkpoints")["step"] == 5


def test_a_stopped_rank_is_found_after_the_timeout(start):
    processes = start(STOP_AT="SIGSTOP:6")
    try:
        assert wait(processes[:1], LIMIT) == [1]
        (line,) = errors(processes)
        assert line.startswith("error: rank 1 was lost (killed, stopped or cut off)")
        # Once it runs again, it finds that the others have ended.
        os.kill(processes[1].pid, signal.SIGCONT)
        assert wait(processes[1:], LIMIT) == [1]
        assert errors(processes) == [line]
    finally:
        processes[1].kill()


def test_a_rank_that_hangs_answers_and_is_ended(start):
    processes = start("sleeps")
    assert wait(processes, LIMIT) == [1, 1]
    (line,) = errors(processes)
    assert line.startswith(
        "error: one rank did not reach an operation of all ranks in time, although all ranks answer"
    )
    check_page(processes)


def test_a_mistake_on_one_rank_is_the_only_message(start):
    processes = start("fails")
    assert wait(processes, LIMIT) == [1, 1]
    assert "error" not in said(processes[0])
    assert said(processes[1]).count("Traceback") == 1
    assert said(processes[1]).endswith("AssertionError: a mistake\n")


def test_errors_of_other_ranks_are_told_from_those_of_this_one():
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    assert lost.is_communication(RuntimeError(gloo))
    assert lost.is_communication(dist.DistBackendError("NCCL error in: ..."))
    ring = RuntimeError("scl_loss: another rank failed")
    assert not lost.is_communication(ring)
    ring.__cause__ = dist.DistNetworkError("the socket was closed")
    assert lost.is_communication(ring)
    for own in (ValueError(gloo), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no")):
        assert not lost.is_communication(own)
    assert not lost.ends(RuntimeError(gloo), "")  # a single process has no other ranks


def test_a_rank_answers_although_the_store_was_late(monkeypatch):
    port, ended = free_port(), []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    brief = timedelta(seconds=0.2)
    shorter = {"_run": "a run", "GRACE": 0, "LAST": 0, "CONNECT": brief, "leave": ended.append}
    for name, value in shorter.items():
        monkeypatch.setattr(lost, name, value)
    listens = threading.Thread(target=lost._listen, daemon=True)
    listens.start()
    time.sleep(3)
    monkeypatch.setattr(lost, "CONNECT", 50 * brief)
    late = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    lost._store().set(lost.ENDS, "1")
    listens.join(20)
    assert ended == [1]
    assert lost._store().check([lost._answer(0)])
    del late  # a store that ends while the rank asks
    monkeypatch.setattr(lost, "CONNECT", brief)
    assert "and so was the store of all ranks at 127.0.0.1" in lost._reason(RuntimeError(), True)


def test_the_message_has_the_cause_that_nccl_names_last(monkeypatch):
    said = (
        "NCCL error in: ProcessGroupNCCL.cpp:1333, unhandled system error (run with NCCL_DEBUG="
        "INFO for details), NCCL version 2.27.5\nncclSystemError: System call or external library "
        "call failed or device error.\nLast error:\nError while creating shared memory segment"
    )
    monkeypatch.setattr(lost, "_run", "a run")
    monkeypatch.setattr(lost, "_silent", list)
    reason = lost._reason(dist.DistBackendError(said), True)
    assert any(pattern.search(f"error: {reason}; all ranks end") for pattern in SHOWN.values())
    assert reason == (
        "the connection between two ranks broke, and all ranks answer (Error while creating shared "
        "memory segment)"
    )


def test_a_rank_lost_during_the_check_of_the_losses_is_no_error_of_the_recipe(monkeypatch):
    cfg = load_config("recipes/carl.yaml", ["data.folder=videos"])
    for error, expected in (
        (dist.DistNetworkError("Connection reset"), dist.DistNetworkError),
        (RuntimeError("scl_loss: got D = 0"), ConfigError),
    ):

        def check(*_, error=error):
            raise error

        monkeypatch.setattr(PairStep, "check", check)
        with pytest.raises(expected):
            check_loss(cfg, torch.device("cpu"))


def test_a_restart_that_would_fail_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    distributed.check_restarts()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for every torchrun"):
        distributed.check_restarts()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    distributed.check_restarts()


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0), (2, 1), (3, 0)])
def test_it_is_refused_on_every_machine_before_the_ranks_meet(monkeypatch, capsys, rank, lines):
    """The ranks of one machine would otherwise report that those of the other have ended."""

    def meet(timeout):
        raise AssertionError("the ranks met")

    waits = []
    monkeypatch.setattr(distributed, "start", meet)
    monkeypatch.setattr(training.train.time, "sleep", waits.append)
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    environment |= {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
    for name, value in (environment | {"RANK": str(rank), "LOCAL_RANK": str(rank % 2)}).items():
        monkeypatch.setenv(name, value)
    assert training.train.main(["recipes/carl.yaml", "data.folder=videos"]) == 2
    assert waits == [START_SPREAD]  # torchrun ends all ranks when the first one has ended
    error = capsys.readouterr().err.splitlines()
    assert len(error) == lines
    assert all(line.startswith("error: torchrun --max-restarts 3 on several") for line in error)


def test_after_an_error_sigterm_does_not_cut_off_the_message(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    for ranks, expected in ((1, before), (2, signal.SIG_IGN)):
        monkeypatch.setattr(signals, "world_size", lambda ranks=ranks: ranks)
        try:
            with pytest.raises(RuntimeError), signals.Signals():
                raise RuntimeError("Connection closed by peer")
            assert signal.getsignal(signal.SIGTERM) == expected
        finally:
            signal.signal(signal.SIGTERM, before)


def in_own_store(port: int, rank: int, ending: str, arguments: list[str]) -> int:
    """`quickly`, with the store in rank 0, as torchrun on several machines has it.

    ``ending``: what happens to ``rank`` in step 6.
    """
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    step = Trainer._train_step

    def train_step(self, batches, rate):
        if self.step == 6 and distributed.rank() == rank:
            if ending == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is full")
        return step(self, batches, rate)

    Trainer._train_step = train_step
    return quickly(arguments)


# Rank 1, which is next to rank 2, notices the loss first; rank 0 then too.
@pytest.mark.parametrize(("rank", "ending"), [(2, "killed"), (0, "fails")])
def test_rank_0_keeps_its_store_until_the_others_have_ended(start, rank, ending):
    arguments = ["tiny.yaml", "train.run_dir=run", "train.timeout=8"]
    processes = launch(in_own_store, free_port(), rank, ending, arguments, num=3)
    assert wait(processes, LIMIT) == [1, 1, -signal.SIGKILL if ending == "killed" else 1]
    (line,) = errors(processes)
    if ending == "killed":
        assert line.startswith("error: rank 2 was lost (killed, stopped or cut off)")
    else:
        assert line == "error: the disk is full"


def with_other_videos(arguments: list[str]) -> int:
    """Resume on two machines. The second one has other videos."""
    resume = Trainer.resume

    def resumed(self):
        found = resume(self)
        if distributed.rank() == 1:
            raise ValueError("the saved loader had other videos")
        return found

    Trainer.resume = resumed
    return quickly(arguments)


def test_an_error_of_one_rank_at_the_start_is_the_only_message(start):
    arguments = ["tiny.yaml", "train.run_dir=run", "train.timeout=8", "train.steps=1"]
    assert wait(launch(quickly, arguments, num=2), LIMIT) == [0, 0]
    processes = launch(with_other_videos, [*arguments, "--resume"], num=2)
    assert wait(processes, LIMIT) == [1, 2]
    assert errors(processes) == ["error: rank 1: the saved loader had other videos"]
