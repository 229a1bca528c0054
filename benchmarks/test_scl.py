"""scl_loss. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

import pytest

from benchmarks import scl
from benchmarks.run import cases, choose_device

DEVICE = choose_device()
CASES = cases(scl, DEVICE)
# Of the peers, those whose calls are short enough to be repeated one by one.
CALLED = [*(p.name for p in scl.providers(DEVICE) if "fastseq" in p.name), "eager"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, measure_table):
    measure_table("scl", case)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("case", [c for c in CASES if c.pairs <= scl.TIMED_PAIRS[DEVICE]], ids=str)
def test_call(case, name, measure_call):
    measure_call(scl, case, name)
