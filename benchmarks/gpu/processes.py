"""Processes with a time limit, each the leader of a group. A process past its limit gets INT, then
KILL.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.gpu import record

LEAST_S = 3.0  # seconds; with less time left, no process is started
GRACE_S = 6.0  # seconds from INT to KILL
# Seconds before the limit at which Python processes stop on their own.
EARLIER_S = 2.0


class Step(NamedTuple):
    phase: str
    name: str
    command: list[str]
    limit_s: float
    log: Path
    env: Mapping[str, str] = MappingProxyType({})


class Runner:
    """Runs steps, several at a time if requested, none past ``end`` (unix time)."""

    def __init__(self, root: Path, end: float, workers: int = 16) -> None:
        self.root, self.end = root, end
        self.alive: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(workers)
        self.over = False

    def start(self, steps: Sequence[Step]) -> list[Future]:
        return [self.pool.submit(self.run, step) for step in steps]

    def together(self, steps: Sequence[Step]) -> list[int | None]:
        return [future.result() for future in self.start(steps)]

    def run(self, step: Step) -> int | None:
        """Returns the exit status, negative if a signal ended it; None if it was not started or not
        reaped.
        """
        limit = min(step.limit_s, self.end - time.time())
        name = f"process {step.name}"
        if limit < LEAST_S or self.over:
            record.say(step.phase, name, ok=None, error="no time left")
            return None
        begin = time.time()
        env = os.environ | dict(step.env) | {"DEADLINE": str(begin + limit - EARLIER_S)}
        try:
            with step.log.open("ab") as log:
                process = subprocess.Popen(
                    step.command,
                    cwd=self.root,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            record.failed(step.phase, name, error)
            return None
        with self.lock:
            self.alive.add(process)
        status, late = self._wait(process, limit)
        with self.lock:
            self.alive.discard(process)
        seconds = round(time.time() - begin, 1)
        fields = {"rc": status, "seconds": seconds}
        if late:
            fields["error"] = f"did not end within {limit:.0f} s and was killed"
        elif status < 0:
            fields["error"] = f"ended by {signal.Signals(-status).name}"
        elif status:
            fields["error"] = _last_line(step.log)
        record.say(step.phase, name, ok=status == 0 and not late, **fields)
        return status

    def _wait(self, process: subprocess.Popen, limit: float) -> tuple[int | None, bool]:
        late = False
        for signum, seconds in ((None, limit), (signal.SIGINT, GRACE_S), (signal.SIGKILL, GRACE_S)):
            if signum is not None:
                late = True
                _signal_group(process, signum)
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        # Members of the group may outlive its leader, such as workers of a killed pytest.
        _signal_group(process, signal.SIGKILL)
        return process.poll(), late

    def stop(self) -> None:
        """Kill all running processes and start no others."""
        self.over = True
        with self.lock:
            for process in self.alive:
                _signal_group(process, signal.SIGKILL)
        self.pool.shutdown(wait=True, cancel_futures=True)


def _signal_group(process: subprocess.Popen, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none of the group is left
        os.killpg(process.pid, signum)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"
