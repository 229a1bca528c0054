"""scl_loss. The table (test_table) is what is quoted; test_call gives each call to
pytest-benchmark, for its comparisons between runs. Neither times what is not checked first."""

from functools import lru_cache

import pytest
import torch

from benchmarks import scl
from benchmarks.gate import matmul_precision
from benchmarks.run import cases, check, choose_device, run_case
from benchmarks.timing import gradients

DEVICE = choose_device()
CASES = cases(scl, DEVICE)
# Of the peers, those whose calls are short enough to be repeated one by one.
CALLED = [*(p.name for p in scl.providers(DEVICE) if "fastseq" in p.name), "eager"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, table_rows, request):
    rows, wrong = run_case(
        "scl",
        case,
        request.config.getoption("--results"),
        budget_s=request.config.getoption("--budget"),
    )
    table_rows += rows
    assert not wrong, "\n".join(wrong)


@lru_cache(maxsize=1)
def _checked(case):
    return check(scl, case, CALLED)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("case", [c for c in CASES if c.pairs <= scl.TIMED_PAIRS[DEVICE]], ids=str)
def test_call(case, name, benchmark):
    with matmul_precision(case):
        fns, _, notes, wrong = _checked(case)
        assert not wrong, "\n".join(wrong)
        if name not in fns:
            pytest.skip(notes[name])
        args = scl.inputs(case)

        def call():
            gradients(fns[name](*args), args, case.upstream)
            if case.device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = str(case)
        benchmark.pedantic(call, rounds=5, warmup_rounds=1)
