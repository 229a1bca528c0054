"""Every op of `run.OPS`; ``-k scl`` takes one. The table (test_table) is what is quoted; test_call
gives each call to pytest-benchmark, for its comparisons between runs. Neither times what is not
checked first."""

import pytest

from benchmarks.case import Case, op_benchmark
from benchmarks.run import OPS, cases, choose_device

DEVICE = choose_device()
CASES = [
    pytest.param(op, case, id=f"{op}-{case}")
    for op in OPS
    for case in cases(op_benchmark(op), DEVICE)
]
CALLS = [
    pytest.param(op, case, name, id=f"{op}-{case}-{name}")
    for op in OPS
    for case in cases(op_benchmark(op), DEVICE)
    for name in op_benchmark(op).CALLED[DEVICE]
    if case.pairs <= op_benchmark(op).TIMED_PAIRS[DEVICE]
]


@pytest.mark.parametrize(("op", "case"), CASES)
def test_table(op: str, case: Case, measure_table):
    measure_table(op, case)


@pytest.mark.parametrize(("op", "case", "name"), CALLS)
def test_call(op: str, case: Case, name: str, measure_call):
    measure_call(op, case, name)
