"""benchmarks.host and benchmarks.pretend: calls without a GPU, in child processes of their own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=env, cwd=ROOT, text=True, capture_output=True
    )


def test_a_row_for_each_mode(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    out = tmp_path / "host.csv"
    done = child("-m", "benchmarks.host", "--op", "queue_nce", "--rounds", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        forward, both = csv.DictReader(file)
    assert (forward["mode"], forward["launches"]) == ("forward", "2")
    assert (both["mode"], both["launches"]) == ("both", "3")
    for row in (forward, both):
        ours, eager = float(row["fastseq_us"]), float(row["eager_us"])
        assert 0 < ours < 1e5
        assert float(row["ratio"]) == pytest.approx(eager / ours, rel=0.05)
    assert float(both["fastseq_us"]) > float(forward["fastseq_us"])
    assert f"| queue_nce | {forward['fastseq_us']}, {both['fastseq_us']} |" in done.stdout


def test_the_interpreter_is_refused():
    pytest.importorskip("triton", reason="triton is not installed")
    done = child("-m", "benchmarks.host", "--op", "scl", TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert "unset TRITON_INTERPRET" in done.stderr


def test_a_process_compiles_for_one_gpu():
    pytest.importorskip("triton", reason="triton is not installed")
    script = (
        "from benchmarks.pretend import pretend\nfor arch in (90, 80):\n  with pretend(arch): ..."
    )
    done = child("-c", script)
    assert "this process has compiled for sm_90: start one for sm_80" in done.stderr
