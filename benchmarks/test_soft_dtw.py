"""soft_dtw. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

import pytest

from benchmarks import soft_dtw
from benchmarks.run import cases, choose_device

DEVICE = choose_device()
CASES = cases(soft_dtw, DEVICE)
CALLED = [soft_dtw.OURS[DEVICE]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, measure_table):
    measure_table("soft_dtw", case)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.pairs <= soft_dtw.TIMED_PAIRS[DEVICE]], ids=str
)
def test_call(case, name, measure_call):
    measure_call(soft_dtw, case, name)
