"""Starts the gloo processes of ``--measure`` and writes ranks.json and ranks.md."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.ranks.report import COMMAND, table
from benchmarks.ranks_peers import WAYS

ROOT = Path(__file__).parents[2]
SECONDS = 900  # for one set of processes
CHECK_FRAMES = 960
DTYPES = ("float64", "float32")
LARGEST = {"float64": 1e-12, "float32": 1e-5}  # relative; a larger difference is an error
# Freed blocks return to the system at once, as in benchmarks.memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def run(
    ranks: Sequence[int],
    lengths: Sequence[int],
    rounds: int,
    folder: Path,
    check_frames: int = CHECK_FRAMES,
) -> str:
    """Check, time and measure the memory of all ways; returns the page, which is also written.

    Raises RuntimeError if a rank fails or a result differs from that of one process.
    """
    for number in ranks:
        if any(frames % number for frames in lengths):
            raise RuntimeError(
                f"--lengths {' '.join(map(str, lengths))} must be multiples of --ranks {number}"
            )
    torch.set_num_threads(1)
    environment = results.environment("cpu")  # the load before this run adds to it
    checked, timed, peaks = [], [], []
    with tqdm(total=len(ranks) * (1 + 2 * len(lengths)), unit="part") as bar:
        for number in ranks:
            checked += launch(number, dtypes=DTYPES, check_frames=check_frames)["differences"]
            _raise_if_wrong(checked)
            bar.update()
            for frames in lengths:
                timed += launch(number, times=[frames], rounds=rounds)["times"]
                bar.update()
                peaks += launch(number, memory=[frames], more=MALLOC)["memory"]
                bar.update()
    rows = [a | {"peak_mb": b["peak_mb"]} for a, b in zip(timed, peaks, strict=True)]
    text = page(checked, rows, environment)
    folder = folder / results.slug("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    found = {"environment": environment, "differences": checked, "calls": rows}
    (folder / "ranks.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "ranks.md").write_text(text)
    return text


def launch(ranks: int, *, more: dict[str, str] | None = None, **job) -> dict[str, list[dict]]:
    """One set of processes: the answer of rank 0. The first that fails ends the others."""
    job = {"dtypes": [], "times": [], "memory": [], "seconds": SECONDS, "ranks": ranks} | job
    with tempfile.TemporaryDirectory() as folder:
        request = json.dumps(job | {"meeting": f"{folder}/meeting"})
        children = []
        try:
            for rank in range(ranks):
                with open(f"{folder}/{rank}.out", "w") as out, open(f"{folder}/{rank}", "w") as err:
                    children.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "benchmarks.ranks.rank"],
                            env=os.environ | {"RANK": str(rank)} | (more or {}),
                            stdin=subprocess.PIPE,
                            stdout=out,
                            stderr=err,
                            text=True,
                            cwd=ROOT,
                        )
                    )
            for child in children:
                child.stdin.write(request)
                child.stdin.close()
            failed = _first_failure(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
        if failed is not None:
            lines = Path(f"{folder}/{failed}").read_text().strip().splitlines()
            status = children[failed].returncode
            reason = (lines or [f"ended with status {status}"])[-1]
            raise RuntimeError(f"rank {failed} of {ranks}: {reason}")
        return json.loads(Path(f"{folder}/0.out").read_text())


def _first_failure(children: list[subprocess.Popen]) -> int | None:
    """Rank of the first process that failed, or that did not end in time; None if all succeeded."""
    deadline = time.monotonic() + SECONDS
    while True:
        statuses = [child.poll() for child in children]
        for rank, status in enumerate(statuses):
            if status or (status is None and time.monotonic() > deadline):
                return rank
        if None not in statuses:
            return None
        time.sleep(0.02)


def _raise_if_wrong(checked: list[dict]) -> None:
    for row in checked:
        if max(row["value"], row["gradient"]) > LARGEST[row["dtype"]]:
            raise RuntimeError(f"differs from one process, so nothing was timed: {row}")


def page(checked: list[dict], rows: list[dict], environment: dict[str, str]) -> str:
    """The results in Markdown."""
    of = f"torch {environment['torch']}, Python {environment['python']}"
    parts = [
        f"# scl_loss over ranks on {environment['device']}",
        f"One video with two views of T frames, D = 128, float32, each rank with T / R frames of "
        f"both; gloo processes of one thread on {os.cpu_count()} shared cores; {of}; commit "
        f"{environment['commit']}; load average before {environment['load']}, so other work "
        f"ran beside it if that is above 0.5. Written by `{COMMAND} --measure`.",
        'The all-gather forms are in `benchmarks/ranks_peers.py`. "Own rows" uses the ring\'s '
        'functions on all columns at once. "Whole loss" is `scl_loss` of all frames on every rank, '
        "which multiplies each block once for both directions: 4 products forward and backward, "
        "the others 6. With one rank the ring is `scl_loss` without a group.",
        "## Differences to one process",
        f"T = {checked[0]['frames']}, two videos; largest difference of the value, and of a "
        "gradient relative to the largest one. Uneven: ranks with different numbers of frames, of "
        "four ranks one without any; a tenth of the frames is masked.",
        table(("way, split", "ranks", *DTYPES), _differences(checked)),
        "## Time",
        f"Forward and backward, ms: the fastest of {rows[0]['rounds']} rounds, in turns; of a "
        "round that of the slowest rank. In brackets the CPU time of all ranks together. With more "
        "ranks than cores, ranks wait for a core.",
        table(
            ("T; ranks", *WAYS),
            _cells(rows, lambda row: f"{_number(row['best_ms'])} ({_number(row['cpu_ms'])})"),
        ),
        "## Memory",
        "Peak of the resident set of the rank with the most, MB above its frames and gradients:",
        table(("T; ranks", *WAYS), _cells(rows, lambda row: _number(row["peak_mb"]))),
    ]
    return "\n\n".join(parts) + "\n"


def _differences(checked: list[dict]) -> list[tuple[str, ...]]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in checked:
        key = f"{row['way']}, {row['split']}", str(row["ranks"])
        found.setdefault(key, {})[row["dtype"]] = f"{row['value']:.0e}, {row['gradient']:.0e}"
    return [(*key, *(cells[dtype] for dtype in DTYPES)) for key, cells in sorted(found.items())]


def _cells(rows: list[dict], form: Callable[[dict], str]) -> list[tuple[str, ...]]:
    found: dict[tuple[int, int], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: (row["frames"], row["ranks"])):
        cells = found.setdefault((row["frames"], row["ranks"]), {})
        cells[row["way"]] = form(row)
    return [(f"{t:,}; {r}", *(cells[way] for way in WAYS)) for (t, r), cells in found.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
