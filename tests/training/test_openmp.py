"""Waiting OpenMP threads sleep early, unless the user has set how long they spin."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
SHOW = f"import os; print([os.environ.get(name, '') for name in {VARIABLES[:2]}])"
GIVEN = [
    ({}, ["1000", ""]),
    ({"GOMP_SPINCOUNT": "7"}, ["7", ""]),
    ({"OMP_WAIT_POLICY": "passive"}, ["", "passive"]),
]


def outside(**given):
    """This environment without the variables, plus the given ones."""
    return {k: v for k, v in os.environ.items() if k not in VARIABLES} | given


def run(command, given):
    made = subprocess.run(
        command, cwd=ROOT, env=outside(**given), capture_output=True, text=True, check=True
    )
    return made.stdout


@pytest.fixture(scope="module")
def instead_of_torch(tmp_path_factory):
    """A replacement for torch that loads at once, prints what it finds and ends the process."""
    folder = tmp_path_factory.mktemp("instead")
    (folder / "torch.py").write_text(f"{SHOW}; raise SystemExit")
    return str(folder)


@pytest.mark.parametrize(("given", "expected"), GIVEN)
@pytest.mark.parametrize(
    "module", ["training.train", "training.demo.__main__", "benchmarks.worker"]
)
def test_commands_set_it_before_torch_is_loaded(module, given, expected, instead_of_torch):
    code = f"import sys; sys.path.insert(0, {instead_of_torch!r}); import {module}, torch"
    assert run([sys.executable, "-c", code], given).strip() == str(expected)


def test_libgomp_reads_what_was_set():
    code = "import training, torch; torch.ones(1)"
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=outside(OMP_DISPLAY_ENV="verbose"),
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in made.stderr:
        pytest.skip("torch has another OpenMP runtime here")
    assert "GOMP_SPINCOUNT = '1000'" in made.stderr


def test_a_process_that_has_torch_is_left_alone():
    for module in ("training", "benchmarks"):
        code = f"import sys; sys.modules['torch'] = sys; import {module}; {SHOW}"
        shown = run([sys.executable, "-c", code], {})
        assert shown.strip() == str(["", ""])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "expected"),
    [(given, [*expected, "1"]) for given, expected in GIVEN]
    + [({"OMP_NUM_THREADS": "2"}, ["1000", "", "2"])],
)
def test_make_test_has_one_thread_in_each_process(given, expected, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    for name in (".dev", ".dali"):
        (tmp_path / name).touch()
    shown = dict(
        line.split("=", 1)
        for line in run(["make", "test", f"VENV={tmp_path}"], given).splitlines()
        if "=" in line
    )
    assert [shown.get(name, "") for name in VARIABLES] == expected
