"""Every op of `run.OPS`; ``-k scl`` selects one. test_table makes the table of ratios that the
pages quote; test_call passes each call to pytest-benchmark, which compares runs. Both check the
result before they time it.
"""

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
