"""The index of a folder with many videos: seconds and memory. python -m benchmarks.index_scale

The folder has empty files, and checking one of them is replaced by a function that returns the same
facts for each; everything else is what `python -m training.prepare` and training do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

FRAMES, FPS = 300, 30.0
_PHASES = ["first", "second", "third"]
_LOAD = """
import json, sys, time

import numpy as np

import training.data.index as index


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


before = peak()
begin, cpu = time.perf_counter(), time.process_time()
found = index.load_index(sys.argv[1], check=sys.argv[2] == "check")
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu": cpu, "MB": peak() - before}))
"""


def make_folder(folder: Path, videos: int, per_folder: int, uneven: bool) -> None:
    """Empty files `a/b/000123.mp4` and a labels file with an action, a split and two boundaries."""
    entries = {}
    for first in range(0, videos, per_folder):
        below = f"{first // per_folder // 100:02d}/{first // per_folder % 100:02d}"
        (folder / below).mkdir(parents=True)
        for number in range(first, min(first + per_folder, videos)):
            name = f"{below}/video_{number:07d}.mp4"
            os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
            entries[name] = {
                "action": f"action {number % 400}",
                "split": ("train", "train", "train", "val", "test")[number % 5],
                "boundaries": [FRAMES // 3 + number % 9, FRAMES // 2 + number % 19],
            }
    classes = {f"action {number}": _PHASES for number in range(min(400, videos))}
    (folder / "labels.json").write_text(json.dumps({"classes": classes, "videos": entries}))


def prepare(folder: Path, times: np.ndarray | None) -> tuple[Any, str]:
    """`build_index` with a faked check of each file, and its seconds."""
    from fastseq.video import VideoInfo
    from training.data.index import build_index

    class Info(VideoInfo):
        @property
        def times(self) -> np.ndarray:
            return np.arange(FRAMES) / FPS if times is None else times

    def probe(path: str, **options: Any) -> VideoInfo:
        return Info(path, FRAMES, 340, 256, 0, FPS, "h264")

    begin, cpu = time.perf_counter(), time.process_time()
    with mock.patch("fastseq.video.probe", probe):
        index = build_index(folder)
    return index, _shown(time.perf_counter() - begin, time.process_time() - cpu)


def _shown(seconds: float, cpu: float) -> str:
    return f"{seconds:.2f} s (CPU {cpu:.2f} s)"


def seconds(call: Any, repeats: int) -> float:
    """The shortest of several calls."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def load(folder: Path, check: str) -> dict[str, float]:
    """Seconds and growth of the peak memory (MB, VmHWM) of `load_index` in a fresh process."""
    command = [sys.executable, "-c", _LOAD, str(folder), check]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(folder: Path, videos: int, per_folder: int, uneven: bool) -> list[tuple[str, str]]:
    """Rows (what, figure)."""
    make_folder(folder, videos, per_folder, uneven)
    random = np.random.default_rng(0)
    steps = random.choice([3003, 3003, 3003, 6006], FRAMES)
    times = np.concatenate([[0], np.cumsum(steps)[:-1]]) / 90_000 if uneven else None
    index, first = prepare(folder, times)
    rows = [("first prepare, checks faked", first)]
    chosen = random.integers(videos, size=10)
    for path in index.videos.take(chosen).column("path"):
        os.utime(path)
    again, second = prepare(folder, times)
    rows.append((f"prepare with {again.checked} changed files", second))
    size = (folder / "fastseq_index.sqlite").stat().st_size / 1e6
    rows.append(("index file", f"{size:.1f} MB"))
    for check in ("check", "no check"):
        found = [load(folder, check) for _ in range(3)]
        best = min(found, key=lambda one: one["seconds"])
        most = max(one["MB"] for one in found)
        rows.append(
            (f"load_index, {check}", f"{_shown(best['seconds'], best['cpu'])}, {most:.0f} MB")
        )
    made = again.videos
    positions = iter(random.integers(videos, size=30_000).tolist())
    one = seconds(lambda: [made[next(positions)] for _ in range(1000)], 20) / 1000
    rows.append(("one record", f"{one * 1e6:.0f} us"))
    rows.append(("where(split, action)", f"{seconds(lambda: _where(made), 5) * 1e3:.1f} ms"))
    rows.append(("column('sound')", f"{seconds(lambda: made.column('sound'), 5) * 1e3:.1f} ms"))
    rows.append(("column('id')", f"{seconds(lambda: made.column('id'), 5) * 1e3:.0f} ms"))
    return rows


def _where(videos: Any) -> None:
    found = videos.where(split="train", action=["action 3", "action 7"])
    assert len(found), "no video was found"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index_scale", description=__doc__)
    parser.add_argument("--videos", type=int, default=200_000)
    parser.add_argument("--per-folder", type=int, default=200, help="files per folder")
    parser.add_argument("--uneven", action="store_true", help="variable frame rates")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, figure in measure(Path(folder), args.videos, args.per_folder, args.uneven):
            print(f"{what:40} {figure}")


if __name__ == "__main__":
    main()
