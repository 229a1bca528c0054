"""contrastive_idm. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

import pytest

from benchmarks import contrastive_idm
from benchmarks.run import cases, choose_device

DEVICE = choose_device()
CASES = cases(contrastive_idm, DEVICE)
# Of the peers, those whose calls are short enough to be repeated one by one.
CALLED = [*(p.name for p in contrastive_idm.providers(DEVICE) if "fastseq" in p.name), "eager"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, measure_table):
    measure_table("contrastive_idm", case)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.pairs <= contrastive_idm.TIMED_PAIRS[DEVICE]], ids=str
)
def test_call(case, name, measure_call):
    measure_call(contrastive_idm, case, name)
