"""benchmarks.host, benchmarks.pretend, and benchmarks.cost with a Triton kernel. These need
Triton's compiler, which the interpreter of the other tests replaces.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
from benchmarks import host, pretend

ROOT = Path(__file__).resolve().parents[1]
# Both commands run in one process, because importing torch and Triton takes longer than either. The
# shipped tiles come first, since Triton caches what it has compiled.
RUN = """
import contextlib, io, json, runpy, sys
said = []
for words in json.load(sys.stdin):
    sys.argv = words
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    said.append(out.getvalue())
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The output of the commands, and the CSV file of benchmarks.host."""
    out = tmp_path_factory.mktemp("host") / "host.csv"
    rows = ["benchmarks.host", "--op", "queue_nce", "--rounds", "2", "--out", str(out)]
    kernel = "benchmarks.cost --op queue_nce --kernel scan --channels 64 --set stages=3 --arch 90"
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([rows, kernel.split()]),
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout), out


@pytest.mark.process
def test_a_row_for_each_mode(said):
    table, _, out = said
    with out.open(newline="") as file:
        forward, both = csv.DictReader(file)
    assert (forward["mode"], forward["launches"]) == ("forward", "2")
    assert (both["mode"], both["launches"]) == ("both", "3")
    for row in (forward, both):
        ours, eager = float(row["fastseq_us"]), float(row["eager_us"])
        assert 0 < ours < 1e5
        assert float(row["ratio"]) == pytest.approx(eager / ours, rel=0.05)
    assert float(both["fastseq_us"]) > float(forward["fastseq_us"])
    assert f"| queue_nce | {forward['fastseq_us']}, {both['fastseq_us']} |" in table


@pytest.mark.process
def test_one_kernel_from_end_to_end(said):
    """Triton's compiler, the disassembler, the report; three stages in flight."""
    _, report, _ = said
    assert "queue_nce_scan_kernel  bf16 D=64 stages=3" in report
    assert re.search(r"\d+ registers, 0 spills, stack 0", report)
    assert re.search(r"tiles +64x64 +4 warps, \d+ instructions .* 1 in flight", report)
    assert re.search(r"\d+ HGMMA\.64x64x16\.F32\.BF16; \d+ waits", report)
    assert "queue_nce_loss_kernel" not in report


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["benchmarks.host", "--op", "scl"])
    with pytest.raises(SystemExit) as stop:
        host.main()
    assert stop.value.code == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_a_process_compiles_for_one_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(pretend, "_arch", None)
    # Importing the ops here would replace their interpreted kernels by compiled ones.
    monkeypatch.setattr(pretend, "OPS", ())
    with pretend.pretend(90):
        pass
    words = "this process has compiled for sm_90: start one for sm_80"
    with pytest.raises(RuntimeError, match=words), pretend.pretend(80):
        pass
