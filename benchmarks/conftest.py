"""``pytest benchmarks/``: options, and the table of ratios at the end."""

from pathlib import Path

import pytest

from benchmarks import results

ROWS = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results", type=Path, default=results.FOLDER, help="where the CSV files are kept"
    )
    parser.addoption(
        "--budget", type=float, default=12.0, help="seconds of timing per case of the table"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(_WithoutPlugin())


@pytest.fixture
def table_rows(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    """Rows measured in this session; printed when it ends."""
    return request.config.stash[ROWS]


class _WithoutPlugin:
    @pytest.fixture
    def benchmark(self):
        pytest.skip('pytest-benchmark is not installed: pip install "fastseq[bench]"')


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = [dict.fromkeys(results.COLUMNS, "") | row for row in config.stash[ROWS]]
    if rows:
        terminalreporter.section("taken in turns, ratios from the same rounds")
        terminalreporter.write_line(f"{rows[0]['device']}, load {rows[0]['load']}")
        terminalreporter.write_line(results.table(rows))
        terminalreporter.write_line(f"CSV: {config.getoption('--results')}")
