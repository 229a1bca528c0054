"""The benchmark of soft_dtw(cost="softmax"): its providers compute one value, its rows name them.
Tiny shapes; speed is not tested.
"""

import pytest

from benchmarks import soft_dtw_softmax as bench
from benchmarks.case import Case, build
from benchmarks.gate import WrongResult, gate

CASE = Case(2, 9, 6)


def test_providers_compute_the_value_and_the_baseline_another():
    args = bench.inputs(CASE)
    want = bench.expected(CASE, args)
    for provider in bench.providers("cpu"):
        fn = build(provider, CASE)
        if provider.name == bench.PLAIN:
            with pytest.raises(WrongResult):
                gate(provider, CASE, fn, args, want)
        else:
            assert gate(provider, CASE, fn, args, want) < 1e-3


def test_rows(monkeypatch):
    monkeypatch.setattr(bench, "cpu_peak_mb", lambda op, case, name: 1.5)
    first, *rest = bench.rows(CASE[:3])
    assert first.startswith("| fastseq | ")
    assert first.endswith(" ms | 1.00x | 1.5 MB |")
    assert len(rest) == 4
    long = bench.rows((1, 65, 6))
    assert "| cell by cell | takes too long on a CPU at T = 65 | | |" in long
