"""``pytest benchmarks/``: options, and the table of ratios at the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import results
from benchmarks.case import Case, op_benchmark
from benchmarks.gate import matmul_precision
from benchmarks.run import check, run_case
from benchmarks.timing import gradients

ROWS = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, default=results.FOLDER, help="folder of the CSV files")
    parser.addoption(
        "--budget", type=float, default=12.0, help="seconds of timing per case of the table"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(_WithoutPlugin())


@pytest.fixture
def measure_table(request: pytest.FixtureRequest) -> Callable[[str, Case], None]:
    """Measure a case of an op and write its rows, which are printed when the session ends."""
    options = request.config.getoption

    def measure(op: str, case: Case) -> None:
        rows, wrong = run_case(op, case, options("--results"), budget_s=options("--budget"))
        request.config.stash[ROWS] += rows
        assert not wrong, "\n".join(wrong)

    return measure


@pytest.fixture
def measure_call(benchmark) -> Callable[[str, Case, str], None]:
    """Check a provider, then pass its forward and backward to pytest-benchmark."""

    def measure(op_name: str, case: Case, name: str) -> None:
        op = op_benchmark(op_name)
        with matmul_precision(case):
            fns, _, notes, wrong = check(op, case, [name])
            assert not wrong, "\n".join(wrong)
            if name not in fns:
                pytest.skip(notes[name])
            args = op.inputs(case)

            def call():
                gradients(fns[name](*args), args, case.upstream)
                if case.device == "cuda":
                    torch.cuda.synchronize()

            benchmark.group = f"{op.__name__} {case}"
            benchmark.pedantic(call, rounds=5, warmup_rounds=1)

    return measure


class _WithoutPlugin:
    @pytest.fixture
    def benchmark(self):
        pytest.skip('pytest-benchmark is not installed: pip install "fastseq[bench]"')


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = [dict.fromkeys(results.COLUMNS, "") | row for row in config.stash[ROWS]]
    if rows:
        terminalreporter.section("taken in turns, ratios from the same rounds")
        terminalreporter.write_line(f"{rows[0]['device']}, load {rows[0]['load']}")
        for op in dict.fromkeys(row["op"] for row in rows):
            table = results.table([row for row in rows if row["op"] == op])
            terminalreporter.write_line(f"\n{op}, {table}")
        terminalreporter.write_line(f"CSV: {config.getoption('--results')}")
