"""Result lines, written to disk as soon as they are known, and the clock. No heavy imports.

Environment variables of each process of a call:
  OUT       folder of results.jsonl
  RESULTS   folder of <device>/<op>.csv
  DEADLINE  unix time by which it has to end
  DRY       1: a rehearsal on a CPU
"""

import csv
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

LINES = "results.jsonl"


class Job(NamedTuple):
    """A measurement; it is not started with less than ``needs_s`` seconds left."""

    name: str
    run: Callable[[], None]
    needs_s: float = 4.0


def dry() -> bool:
    return os.environ.get("DRY", "0") not in ("", "0")


def device() -> str:
    return "cpu" if dry() else "cuda"


def folder(name: str) -> Path:
    """OUT or RESULTS."""
    if not os.environ.get(name):
        raise SystemExit(f"{name} is not set: phases are started by python -m benchmarks.gpu")
    return Path(os.environ[name])


def left() -> float:
    """Seconds until the deadline."""
    return float(os.environ.get("DEADLINE") or "inf") - time.time()


def say(phase: str, name: str, *, ok: bool | None = True, **fields: Any) -> None:
    """Append a line to results.jsonl, on disk when this returns, and print a short one.

    ok is None if the result is unknown.
    """
    line = {"phase": phase, "name": name, "ok": ok, "at": round(time.time(), 1), **fields}
    append(folder("OUT") / LINES, json.dumps(line, default=str) + "\n")
    short = " ".join(f"{key}={value}" for key, value in fields.items() if key != "trace")
    word = {True: "ok", False: "FAILED", None: "not run"}[ok]
    print(f"{phase:8} {word:7} {name:40} {short}"[:240], flush=True)


def failed(phase: str, name: str, error: BaseException, **fields: Any) -> None:
    trace = "".join(traceback.format_exception(error))[-3000:]
    text = " ".join(str(error).split())[:300]
    say(phase, name, ok=False, error=f"{type(error).__name__}: {text}", **fields, trace=trace)


def attempt(phase: str, jobs: Iterable[Job]) -> None:
    """Run them in sequence; a failure is recorded and the next one starts."""
    lost = False
    for job in jobs:
        if lost or left() < job.needs_s:
            why = "the GPU's context is lost" if lost else "no time left"
            say(phase, job.name, ok=None, error=why)
            continue
        try:
            job.run()
        except Exception as error:
            failed(phase, job.name, error)
            lost = context_lost(error)
    if lost:
        sys.exit(1)


def context_lost(error: BaseException) -> bool:
    """Whether, after such an error, nothing runs on the GPU in this process any more."""
    text = str(error)
    return any(words in text for words in ("illegal", "launch failure", "misaligned address"))


def append(path: Path, text: str) -> None:
    """One write call, so that lines of other processes do not interleave; then flushed to the
    disk.
    """
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


def append_row(path: Path, columns: Iterable[str], row: dict[str, Any]) -> None:
    columns = list(columns)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines; a process may have been killed while writing one."""
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
