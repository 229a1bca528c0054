"""Phase tests: tests/gpu and the tests of the extension under xdist, and a summary of their
report.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import environment, record
from benchmarks.gpu.processes import Step

PATHS = (
    "tests/gpu",
    "tests/ops/common/test_extension.py",
    "tests/ops/common/test_nvrtc.py",
)
# For a rehearsal: a file that is skipped as a whole on a CPU, and one that is not.
DRY_PATHS = ("tests/gpu/test_scl_gpu.py", "tests/ops/common/test_extension.py")
SOFT_DTW = "tests/gpu/test_soft_dtw_gpu.py"
TEST_LIMIT_S = 60


def step(
    python: str, *, dry: bool, workers: int, soft_dtw: bool, limit_s: float, out: Path
) -> Step:
    """``soft_dtw``: whether its tests may run; if its smoke test hung, each of them would."""
    command = [python, "-m", "pytest", *(DRY_PATHS if dry else PATHS)]
    command += ["-v", "--tb", "short", "--durations", "15", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "-o", "console_output_style=count"]
    command += ["--junitxml", str(out / "tests.xml")]
    if not dry:
        command += ["--require-gpu"]
    if not soft_dtw:
        command += ["--ignore", SOFT_DTW]
        record.say("tests", "soft_dtw", ok=None, error="left out: its smoke test did not end well")
    if environment.version("pytest-xdist") != "-":
        command += ["-n", str(workers), "--dist", "worksteal"]
    else:
        record.say("tests", "pytest-xdist", ok=None, error="not installed: one process")
    if environment.version("pytest-timeout") != "-":
        # Method thread: a test that hangs in a CUDA call ends with its worker, and xdist starts
        # another.
        command += ["--timeout", str(TEST_LIMIT_S), "--timeout-method", "thread"]
    else:
        record.say("tests", "pytest-timeout", ok=None, error="not installed: no limit for a test")
    return Step("tests", "pytest", command, limit_s, out / "tests.log")


class Report(NamedTuple):
    counts: Counter
    bad: list[str]  # "file::test: message"
    slowest: list[str]
    skipped: Counter  # reasons
    whole: bool  # whether pytest ended and wrote its report


def report(out: Path) -> Report | None:
    """Reads tests.xml; if pytest was killed before it wrote that, reads its log."""
    try:
        cases = list(ET.parse(out / "tests.xml").iter("testcase"))
    except (OSError, ET.ParseError):
        return _from_log(out / "tests.log")
    counts, skipped, bad = Counter(), Counter(), []
    for case in cases:
        what = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        counts["passed" if what is None else what.tag] += 1
        if what is None:
            continue
        text = " ".join((what.get("message") or "").split())[:110]
        if what.tag == "skipped":
            skipped[text] += 1
        else:
            file = case.get("classname", "").split(".")[-1]
            bad.append(f"{file}::{case.get('name')}: {text}")
    cases.sort(key=lambda case: -float(case.get("time") or 0))
    slowest = [f"{case.get('name')} {float(case.get('time') or 0):.0f} s" for case in cases[:5]]
    return Report(counts, bad, slowest, skipped, True)


WORDS = {"PASSED": "passed", "FAILED": "failure", "ERROR": "error", "SKIPPED": "skipped"}


def _from_log(log: Path) -> Report | None:
    if not log.exists():
        return None
    counts, bad = Counter(), []
    for line in log.read_text(errors="replace").splitlines():
        # "[gw0] [ 10%] PASSED tests/..." with xdist, "tests/... PASSED [ 10%]" without.
        found = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        if found and "::" in line:
            counts[WORDS[found[1]]] += 1
            if found[1] in ("FAILED", "ERROR"):
                bad.append(re.search(r"\S+::.*", line)[0].replace(found[1], "").strip()[:160])
    return Report(counts, list(dict.fromkeys(bad)), [], Counter(), False)
