"""How a run with several ranks ends when one rank is killed, hangs or fails.

A rank that fails in a collective operation does not know which rank is lost. It therefore asks all
ranks, through the store in which they found each other at the start. Every rank has a thread that
answers, and that ends its rank if the main thread keeps waiting. So all ranks end within a bounded
time, and only the first one that failed prints the reason. Where rank 0 has the store, as with
torchrun on several machines, it ends last.
"""

import contextlib
import os
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
import uuid
from datetime import timedelta

import torch.distributed as dist
from tqdm import tqdm

from training.support.distributed import (
    broadcast_from_main,
    is_main,
    launched_by_torchrun,
    leave,
    local_rank,
    rank,
    world_size,
)

ANSWER = 5  # seconds that a rank has to answer
GRACE = 10  # seconds after which a rank that still waits for a lost one is ended
OTHERS = 2  # seconds in which rank 0 has the same error, if it does
LAST = 2  # seconds by which the rank with the store ends later
CONNECT = timedelta(seconds=5)
START = timedelta(seconds=300)  # torch's; many ranks connect at once at the start
FOREVER = timedelta(days=20)  # torch counts milliseconds in 32 bits
ENDS = "ends"  # key of the store: the rank that failed first

# Errors of torch.distributed; gloo's are plain RuntimeErrors.
COMMUNICATION = re.compile(r"\bgloo\b|\bNCCL\b|Connection (closed|reset)|Timed out waiting", re.I)
TIMED_OUT = re.compile(r"time[ds]?[- ]?out", re.I)

_run: str | None = None  # prefix of this run's keys; the store may outlive a restart


def listen() -> None:
    """Answer other ranks from now on. Every rank calls it once, after `distributed.start`."""
    global _run
    if world_size() > 1:
        _run = broadcast_from_main(uuid.uuid4().hex)
        threading.Thread(target=_listen, daemon=True).start()


def _listen() -> None:
    try:
        store = _store(START)
        store.wait([ENDS], FOREVER)
        store.set(_answer(rank()), "")
    except RuntimeError:  # the store ended first
        return
    time.sleep(GRACE + (LAST if _has_store() else 0))
    leave(1)


def announce() -> bool | None:
    """Tell all ranks that this one ends, so that none reports it as lost.

    Returns whether it is the first one, or None if the store is gone or the ranks have not met.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would cut off the message
    try:
        return _store().compare_set(ENDS, "", str(rank())) == str(rank()).encode()
    except (RuntimeError, ValueError):
        return None


def speaks() -> bool:
    """Whether this rank prints an error that other ranks may have, too: rank 0 if it is one."""
    if world_size() == 1:
        return True
    if not is_main():
        time.sleep(OTHERS)
    return bool(announce()) or is_main()


def wait_for_others() -> None:
    """Keep the store open until all other ranks have ended; returns at once on ranks without it.

    To be called after `announce`, when this rank has printed what it has to say.
    """
    if _has_store():
        time.sleep(GRACE + LAST)  # `_listen` ends this rank a little sooner


def _has_store() -> bool:
    """Whether the store ends with this rank; otherwise torchrun has it."""
    return rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def ends(error: Exception, again: str) -> bool:
    """Print why an error ends this rank, once for all ranks; False in a single process.

    The loss of another rank takes one message, of the first rank that notices it. An error of this
    rank keeps its traceback.

    Args:
        error: the error that ends the run on this rank.
        again: the command that continues the run.
    """
    if not launched_by_torchrun():
        return False
    first = announce()
    store = first is not None
    if not store:
        first = local_rank() == 0 or rank() == 1  # one of each machine
    if not is_communication(error):
        traceback.print_exception(error, file=sys.stderr)
    elif first:
        tqdm.write(f"error: {_reason(error, store)}; {_remedy(again)}", file=sys.stderr)
    if store:
        wait_for_others()
    return True


def is_communication(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is due to another rank."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and COMMUNICATION.search(str(error)):
            return True
        error = error.__cause__
    return False


def _reason(error: Exception, store: bool) -> str:
    said = str(error).rpartition("Last error:")[2]  # NCCL's cause is there, after general lines
    said = textwrap.shorten(re.sub(r"^\[\S+\] ", "", said), 120, placeholder=" ...")
    if _run is None:
        return f"the ranks could not connect to each other ({said})"
    lost = None
    if store:
        with contextlib.suppress(RuntimeError):  # the store has ended since
            lost = _silent()
    if lost is None:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f"another rank was lost, and so was the store of all ranks at {address} ({said})"
    if lost:
        numbers = ", ".join(map(str, lost))
        ranks = f"rank {numbers} was lost" if len(lost) == 1 else f"ranks {numbers} were lost"
        return f"{ranks} (killed, stopped or cut off): no answer within {ANSWER} s"
    if TIMED_OUT.search(said):
        return (
            "one rank did not reach an operation of all ranks in time, although all ranks answer: "
            f"it is slow or hangs, see train.timeout ({said})"
        )
    return f"the connection between two ranks broke, and all ranks answer ({said})"


def _silent() -> list[int]:
    """The ranks that do not answer within `ANSWER` seconds."""
    store, silent = _store(), [r for r in range(world_size()) if r != rank()]
    deadline = time.monotonic() + ANSWER
    while silent and time.monotonic() < deadline:
        time.sleep(0.05)
        silent = [r for r in silent if not store.check([_answer(r)])]
    return silent


def _remedy(again: str) -> str:
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    allowed = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts < allowed:
        last = "continues from the last checkpoint"
        return f"torchrun starts all ranks again, restart {restarts + 1} of {allowed}, and {last}"
    return f"all ranks end; continue from the last checkpoint with\n  {again}"


def _answer(number: int) -> str:
    return f"answer/{number}"


def _store(timeout: timedelta | None = None) -> dist.Store:
    """A new connection to the store of all ranks: one that waits blocks all its other users.

    ValueError before `listen`.
    """
    if _run is None:
        raise ValueError("the ranks have not met")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timeout or CONNECT
    )
    return dist.PrefixStore(f"lost/{_run}", store)
