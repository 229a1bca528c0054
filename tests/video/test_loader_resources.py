"""Resources of a loader: memory and files over epochs, processes after Ctrl-C."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from fastseq.video import Augmentation, ClipLoader, PyAVEngine, TwoViews, probe, write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resources")
    rng = np.random.default_rng(0)
    for name in "abcd":
        frames = rng.integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", frames, 25)
    return [str(folder / f"{name}.mp4") for name in "abcd"]


def resident_kb() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_epochs_leave_memory_and_files_as_they_were(paths):
    items = TwoViews([probe(path) for path in paths], 32, Augmentation(size=64))
    loader = ClipLoader(items, 2, engine=PyAVEngine(64))
    for _ in range(3):  # let the allocators settle
        for _ in loader:
            pass
    gc.collect()
    files, memory = len(os.listdir("/proc/self/fd")), resident_kb()
    for _ in range(10):
        for _ in loader:
            pass
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    # Ten epochs produce 31 MB of frames; the allocator itself varies by 5 MB.
    assert resident_kb() - memory < 15_000


SCRIPT = """
import sys
from fastseq.video import Augmentation, ClipLoader, PyAVEngine, TwoViews, probe

items = TwoViews([probe(path) for path in sys.argv[1:]], 32, Augmentation(size=64))
loader = ClipLoader(items, 2, engine=PyAVEngine(64, workers=2))
for number, _ in enumerate(loader.stream(10**6)):
    print(number, flush=True)
"""


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_leaves_no_process_behind(paths):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *paths],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "0\n"
    workers = children_of(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "worker processes are still there"
        time.sleep(0.1)
