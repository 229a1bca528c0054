"""``python -m benchmarks.gpu``: builds, tests and measures on a GPU, or rehearses this on a CPU."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.gpu import environment
from benchmarks.gpu.call import BUDGET_S, PHASES, ROOT, USUAL, Call, run

LEAST_BUDGET_S = 10


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Builds, tests and measures everything on a GPU; never stops at a failure.",
        epilog=f"phases: {' '.join(PHASES)}. Each option can be set in the environment: BUDGET_S, "
        "PHASES, OUT, DRY=1; WORKERS (test processes) and TRITON_CACHE_DIR only from there. "
        "benchmarks/README.md says what comes back and how to read it.",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=os.environ.get("BUDGET_S") or str(BUDGET_S),
        metavar="SECONDS",
        help=f"for everything but the summary (default: {BUDGET_S})",
    )
    parser.add_argument(
        "--phases",
        type=_phases,
        default=os.environ.get("PHASES") or "usual",
        metavar='"NAME ..."',
        help=f"which of them, or all, or usual: {' '.join(USUAL)} (default: usual, and all in a "
        "rehearsal)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"),
        help="folder for logs and results, at most 8 files (default: build/gpu)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=os.environ.get("DRY", "0") not in ("", "0"),
        help="rehearse on a CPU: Triton's interpreter, tiny shapes, nothing of it measured",
    )
    options = parser.parse_args(argv)
    if options.phases == "usual":
        options.phases = PHASES if options.dry_run else USUAL
    return options


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not LEAST_BUDGET_S <= seconds < 1e6:
        raise argparse.ArgumentTypeError(
            f"expected at least {LEAST_BUDGET_S} seconds, as 420, got {text!r} (--budget, BUDGET_S)"
        )
    return seconds


def _phases(text: str) -> tuple[str, ...] | str:
    names = text.replace(",", " ").split()
    if names in (["usual"], ["all"]):
        return "usual" if names == ["usual"] else PHASES
    unknown = [name for name in names if name not in PHASES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown: {' '.join(unknown) or 'nothing given'}; expected some of "
            f"{' '.join(PHASES)}, or all, or usual (--phases, PHASES)"
        )
    return tuple(name for name in PHASES if name in names)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if smoke or tests failed; 2 for a wrong argument or no GPU."""
    options = parse(argv)
    missing = "" if options.dry_run else environment.why_no_gpu()
    if missing:
        print(f"error: no GPU: {missing}. DRY=1 rehearses on a CPU.", file=sys.stderr)
        return 2
    if environment.version("torch") == "-":
        print(
            f"error: {sys.executable} has no torch; give PYTHON=... one that has", file=sys.stderr
        )
        return 2
    call = Call(options.phases, options.budget, options.dry_run, options.out.resolve())
    return run(call)


if __name__ == "__main__":
    sys.exit(main())
