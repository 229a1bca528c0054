"""queue_nce. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

import pytest

from benchmarks import queue_nce
from benchmarks.run import cases, choose_device

DEVICE = choose_device()
CASES = cases(queue_nce, DEVICE)
CALLED = [p.name for p in queue_nce.providers(DEVICE) if "fastseq" in p.name]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, measure_table):
    measure_table("queue_nce", case)


@pytest.mark.parametrize("name", [*CALLED, "shared lse"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_call(case, name, measure_call):
    measure_call(queue_nce, case, name)
