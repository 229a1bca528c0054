"""The benchmarks themselves: peers compute the same function, the gate rejects wrong results,
tables and floors are right. Tiny shapes; speed is not tested.
"""

import csv
import inspect
import math
import sys
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch

from benchmarks import gate, plot, results, run, scl, scl_peers, timing, worker
from benchmarks.case import (
    PRECISIONS,
    Case,
    OpBenchmark,
    Provider,
    Unavailable,
    build,
    op_benchmark,
)
from benchmarks.floors import PEAKS, Work, floor_seconds
from benchmarks.memory import cpu_peak_mb
from benchmarks.timing import gradients, interleave, paired_ratio, quartile_range, rotation
from benchmarks.worker import Worker

CASE = Case(2, 70, 16)


@pytest.fixture(scope="module")
def problem():
    args = scl.inputs(CASE)
    return args, scl.expected(CASE, args)


@pytest.mark.parametrize("op", run.OPS)
def test_every_op_has_what_the_protocol_names(op):
    module = op_benchmark(op)
    functions = {name: f for name, f in vars(OpBenchmark).items() if inspect.isfunction(f)}
    functions = {name: f for name, f in functions.items() if not name.startswith("_")}
    assert {"inputs", "expected", "providers", "work", "least_flop"} == set(functions)
    for name, function in functions.items():
        wanted = list(inspect.signature(function).parameters.values())[1:]  # without self
        assert [*inspect.signature(getattr(module, name)).parameters.values()] == wanted
    assert set(module.MODES) <= {"forward", "backward", "both"}
    tables = set(get_type_hints(OpBenchmark)) - {"__name__", "MODES"}
    assert {"SHAPES", "TIMED_PAIRS", "PRECISIONS", "OURS", "CALLED"} == tables
    for device in ("cpu", "cuda"):
        for name in tables:
            assert set(getattr(module, name)) == {"cpu", "cuda"}, name
        names = [provider.name for provider in module.providers(device)]
        assert len(names) == len(set(names))
        assert names[0] == module.OURS[device]
        assert module.OURS[device] in module.CALLED[device]
        assert set(module.CALLED[device]) <= set(names)
        assert set(module.PRECISIONS[device]) <= set(PRECISIONS)
    for mode in module.MODES:
        assert isinstance(module.work(CASE, mode), Work)
        assert 0 < module.least_flop(CASE, mode) <= module.work(CASE, mode).flop
    assert any(x.requires_grad for x in module.inputs(CASE, seed=1))


def flex_with_dense_softmax(z1, z2, t1, t2):
    return scl_peers.flex(z1, z2, t1, t2, lse=scl_peers.dense_lse)


@pytest.mark.parametrize("peer", [scl_peers.eager, flex_with_dense_softmax])
def test_peers_compute_the_loss(problem, peer):
    args, want = problem
    loss = peer(*args)
    assert gate.relative(loss.detach(), want[0]) < 1e-6
    for got, expected in zip(gradients(loss, args, 1.0), want[1:], strict=True):
        assert gate.relative(got, expected) < 1e-5


def test_released_formula_is_the_loss_up_to_its_epsilon():
    case = Case(2, 70, 128)
    args = scl.inputs(case)
    grads = gradients(scl_peers.build_released(case)(*args), args, 1.0)
    assert 1e-5 < gate.relative(grads[0], scl.expected(case, args)[1]) < 2e-3


def test_flex_log_sum_exp(problem):
    z1, z2 = (z.detach() for z in problem[0][:2])
    got = scl_peers.flex_lse(z1, z2)
    torch.testing.assert_close(got, scl_peers.dense_lse(z1, z2))


def test_inputs_are_sorted_distinct_frames_and_differ_by_seed():
    z1, _, t1, t2 = scl.inputs(CASE)
    for t in (t1, t2):
        assert (t.diff(dim=1) > 0).all()
        assert t.max() < 1.25 * CASE.t
    assert not t1.equal(t2)
    assert z1.requires_grad
    assert not z1.equal(scl.inputs(CASE, seed=1)[0])


def test_gate_refuses_another_function(problem):
    args, want = problem
    wrong = Provider("twice", lambda case: lambda *a: 2 * scl_peers.eager(*a))
    with pytest.raises(gate.WrongResult, match="twice at 2x70x16-fp32: relative error 1 against"):
        gate.gate(wrong, CASE, wrong.build(CASE), args, want)
    nan = Provider("nan", lambda case: lambda *a: scl_peers.eager(*a) * math.nan)
    with pytest.raises(gate.WrongResult):
        gate.gate(nan, CASE, nan.build(CASE), args, want)


def test_expected_is_the_same_dense_and_blockwise(problem, monkeypatch):
    args, want = problem
    # With few pairs the expected result is dense; with this many it is blockwise.
    monkeypatch.setattr(Case, "pairs", property(lambda self: 1 << 30))
    for a, b in zip(scl.expected(CASE, args), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)


def test_what_does_not_fit_or_takes_too_long_is_left_out_with_the_reason():
    eager, released = (
        next(p for p in scl.providers("cpu") if p.name == n) for n in ("eager", "released")
    )
    with pytest.raises(Unavailable, match=r"needs about 3436 GB, \d+ GB are free"):
        build(eager, Case(100, 1 << 15, 128))
    with pytest.raises(Unavailable, match="too long on a CPU at T = 8192"):
        build(released, Case(1, 8192, 128))


def test_run_case_writes_one_row_per_key(tmp_path):
    names = ["fastseq torch", "eager"]
    for _ in range(2):
        _, wrong = run.run_case("scl", CASE, tmp_path, budget_s=0.01, names=names, memory=False)
    assert wrong == []
    path = tmp_path / results.slug("cpu") / "scl.csv"
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r["provider"], r["mode"]) for r in written] == [
        (name, mode) for name in names for mode in scl.MODES
    ]
    for row in written:
        assert float(row["median_ms"]) > float(row["floor_ms"]) > 0
        assert float(row["gradient_error"]) < 1e-5
        assert row["ratio"] == "1" or row["provider"] == "eager"
    for row in written[2::3]:
        row["peak_mb"] = "1.0"
    results.merge(path, written)
    assert plot.draw(path).stat().st_size > 10_000
    page = plot.write_table(path).read_text()
    assert "| N, T, D | mode | fastseq torch | eager | % of floor |" in page
    assert "| 2, 70, 16 | both |" in page


def test_memory_counts_matrices():
    case = Case(1, 1024, 16)
    # Eager keeps scores, gaps and four softmax matrices of 4.2 MB; fastseq keeps blocks of 1 MB.
    assert 4 * 4.2 < cpu_peak_mb("scl", case, "eager") < 12 * 4.2
    assert cpu_peak_mb("scl", case, "fastseq torch") < 3 * 4.2


@pytest.mark.parametrize(
    ("shape", "overlapped_us", "summed_us"),
    [
        ((8, 480), 3.6, 6.5),
        ((4, 4096), 130, 235),
        ((1, 16384), 522, 939),
        ((1, 65536), 8351, 15027),
    ],
)
def test_floor_of_both_passes_on_an_h200(shape, overlapped_us, summed_us):
    case = Case(*shape, 128, "bf16", "cuda")
    peaks = PEAKS["NVIDIA H200"]
    work = scl.work(case, "both")
    assert floor_seconds(work, "bf16", peaks) * 1e6 == pytest.approx(summed_us, rel=0.02)
    overlapped = floor_seconds(work, "bf16", peaks, overlap=True)
    assert overlapped * 1e6 == pytest.approx(overlapped_us, rel=0.02)


def test_an_h100_has_the_floors_of_an_h200_but_for_its_memory():
    h100, h200 = (PEAKS[f"NVIDIA {name}"] for name in ("H100 80GB HBM3", "H200"))
    for bound_by_memory, ratio in ((False, 1), (True, 4.3 / 3)):
        work = Work(flop=0 if bound_by_memory else 1e15, exps=0, moved=1e9)
        seconds = [floor_seconds(work, "bf16", peaks) for peaks in (h100, h200)]
        assert seconds[0] / seconds[1] == pytest.approx(ratio)


def test_rounds_rotate_and_a_slow_provider_leaves(monkeypatch):
    order, now = [], [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call(name, seconds):
        def sample():
            order.append(name)
            now[0] += seconds
            return {"both": seconds}

        return sample

    calls = {"ours": call("ours", 0.001), "peer": call("peer", 0.01), "slow": call("slow", 0.2)}
    samples = interleave(calls, budget_s=0.15, companions=("ours",), min_rounds=3)
    assert order[:5] == ["ours", "peer", "slow", "peer", "ours"]
    assert len(samples["slow"]) == 1
    assert len(samples["peer"]) == 8  # at 0.01 s per sample, half of the budget is 0.075 s
    assert len(samples["ours"]) == len(samples["peer"])
    alone = interleave({"ours": calls["ours"]}, budget_s=0.02, companions=("ours",), min_rounds=3)
    assert len(alone["ours"]) in (10, 11)  # half of the budget at 0.001 s, except for rounding


def test_a_worker_samples_and_reports_like_a_call_of_its_own():
    eager = Worker("benchmarks.scl", "eager", CASE)
    try:
        assert eager.gradient_error < 1e-6
        sample = eager()
        assert sample["both"] == pytest.approx(sample["forward"] + sample["backward"])
    finally:
        eager.close()


def test_what_a_worker_cannot_do_is_said(tmp_path, monkeypatch, capsys):
    """Each side separately: the child's answer, then how the parent handles it."""
    child = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(child))

    def says(code):
        child.write_text(f"#!/bin/sh\n{code}\n")
        child.chmod(0o755)

    long = Case(1, 8192, 128)
    worker.main(["benchmarks.scl", "released", *map(str, long)])
    says(f"cat <<'END'\n{capsys.readouterr().out}END")
    with pytest.raises(Unavailable, match="too long on a CPU"):
        Worker("benchmarks.scl", "released", long)
    with pytest.raises(ModuleNotFoundError) as error:
        worker.main(["benchmarks.nothing_here", "eager", *map(str, CASE)])
    says(f"echo 'Traceback' >&2; echo \"{error.value}\" >&2; exit 1")
    with pytest.raises(RuntimeError, match="nothing_here"):
        Worker("benchmarks.nothing_here", "eager", CASE)


def test_statistics():
    assert quartile_range([4.0, 1.0, 3.0, 2.0, 5.0]) == 2.0
    assert quartile_range([7.0]) == 0.0
    # A slow second round affected both providers: the ratio does not change.
    assert paired_ratio([2.0, 20.0], [1.0, 10.0, 1.0]) == 2.0
    assert rotation(1_000_000, 60_000_000, 100) == 100
    assert rotation(20_000_000, 60_000_000, 100) == 9
