"""tcc_loss. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

import pytest

from benchmarks import tcc
from benchmarks.run import cases, choose_device

DEVICE = choose_device()
CASES = cases(tcc, DEVICE)
CALLED = [*(p.name for p in tcc.providers(DEVICE) if "fastseq" in p.name), "eager"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, measure_table):
    measure_table("tcc", case)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("case", [c for c in CASES if c.pairs <= tcc.TIMED_PAIRS[DEVICE]], ids=str)
def test_call(case, name, measure_call):
    measure_call(tcc, case, name)
