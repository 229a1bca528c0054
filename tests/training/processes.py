"""Child processes that start quickly: forked from a server that has imported everything."""

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

import training.train
from training.loop.trainer import Trainer
from training.memory import MALLOC
from training.studies import memory_step
from training.support import distributed

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
_CONTEXT = multiprocessing.get_context("forkserver")
# torch imports torch._dynamo at the first step; evaluations need scikit-learn.
_CONTEXT.set_forkserver_preload(
    ["two_ranks", "torch.utils.tensorboard", "torch._dynamo", "sklearn.linear_model"]
)


def server() -> BaseContext:
    """Starts processes as copies of one that has imported everything."""
    before = dict(os.environ)
    os.environ.update(MALLOC, PYTHONPATH=PATH, OMP_NUM_THREADS="1")
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return _CONTEXT


def launch(
    function: Callable[..., Any], *arguments: Any, num: int = 1, **environment: str
) -> list[BaseProcess]:
    """Run ``function(*arguments)`` in ``num`` processes that find each other as torchrun's do.

    They run in the current folder; their output goes to `said`, and their return value is their
    exit status.
    """
    context = server()
    # They meet in this process, as torchrun's do in torchrun: a port that is free now may be in use
    # when a rank opens it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = []
    for rank in range(num):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_child, args=(os.getcwd(), own, function, arguments))
        process.start()
        process.said = Path(f"said_{process.pid}.txt").resolve()
        process.store = store  # open as long as the process object exists
        processes.append(process)
    return processes


def wait(processes: list[BaseProcess], seconds: float = 240) -> list[int | None]:
    """Their exit statuses: -9 for a process that was killed, None for one that has not ended by
    then.
    """
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(process: BaseProcess) -> str:
    return process.said.read_text()


def _child(folder: str, environment: dict[str, str], function, arguments) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(f"said_{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(200)  # prints where a rank waits, before `wait` kills it
    try:
        status = function(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def train(open_loader: Callable, arguments: list[str]) -> int:
    """training.train with a different loader.

    STOP_AT=SIGNAL:STEP sends the signal to the last rank only, in that step.
    """
    training.train.training_loader = open_loader
    number, _, at = os.environ.get("STOP_AT", "").partition(":")
    step = Trainer._train_step

    def train_step(self, batches, rate):
        last = distributed.rank() == distributed.world_size() - 1
        if last and str(self.step) == at:
            os.kill(os.getpid(), signal.Signals[number])
        return step(self, batches, rate)

    Trainer._train_step = train_step
    return training.train.main(arguments)


def measure(asked: str) -> None:
    """training.studies.memory_step, with its request on standard input."""
    sys.stdin = io.StringIO(asked)
    memory_step.main()
