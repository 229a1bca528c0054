"""Set-up for all tests. Imported before anything that imports Triton."""

import contextlib
import os
import signal
from pathlib import Path

import torch

# Under `nohup make test &`, Ctrl-C is ignored; the processes that tests start would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton decides at import whether kernels are compiled or interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import interpreted
import pytest
import tolerance

with contextlib.suppress(ImportError):  # tests that need it report that it is missing
    import hypothesis

    # Every run uses the same examples, so that a failure is due to a change of the code. There is
    # no deadline, since a busy machine may take long to draw them.
    hypothesis.settings.register_profile(
        "repeatable",
        derandomize=True,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("repeatable")

EMPTY = ("empty", "empty_like", "empty_strided")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail tests marked gpu when there is no GPU"
    )
    parser.addoption(
        "--margins", type=Path, help="append to this file how near each error came to its bound"
    )


def pytest_configure(config: pytest.Config) -> None:
    tolerance.margins = config.getoption("--margins")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tolerance.margins is not None and tolerance.margins.exists():
        terminalreporter.section("tightest margins")
        for line in tolerance.tightest(20):
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_without_interpreter(items)
    if torch.cuda.is_available() or config.getoption("--require-gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; PyTorch sees none"))


def skip_without_interpreter(items: list[pytest.Item]) -> None:
    """Tests of Triton kernels, skipped where they would be interpreted but the interpreter does not
    work.
    """
    from fastseq.ops.common import interpreter  # after TRITON_INTERPRET is set
    from fastseq.ops.common.dispatch import interpreting

    works, reason, fix = interpreter.status()
    if works or not interpreting():
        return
    for item in items:
        if item.get_closest_marker("interpreter"):
            item.add_marker(pytest.mark.skip(reason=f"{reason}; to fix: {fix}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.fail("--require-gpu was given and PyTorch sees no CUDA device", pytrace=False)
    if item.get_closest_marker("interpreter") and not torch.cuda.is_available():
        interpreted.speed_up()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test gets the same random numbers, whichever tests ran before it in this process."""
    torch.manual_seed(0)


@pytest.fixture
def nan_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and similar functions return NaN, so that elements a kernel does not write are
    noticed.
    """

    def poisoned(make):
        def fill(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return fill

    for name in EMPTY:
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@pytest.fixture
def one_thread():
    """One BLAS thread makes the interpreter's many small matrix products several times faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "videos"
    folder = Path(os.environ.get("FASTSEQ_VIDEOS", default))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder} (set FASTSEQ_VIDEOS)")
    return folder
