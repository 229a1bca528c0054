"""Measured rows with their environment, one CSV per device and op, and tables of ratios."""

import csv
import os
import platform
import re
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"
KEY = ("op", "device", "n", "t", "d", "precision", "mode", "provider")
COLUMNS = (
    *KEY,
    "median_ms",
    "iqr_ms",
    "samples",
    "timer",  # perf_counter, events or graph (GPU time of replayed CUDA graphs)
    "wall_ms",  # GPU only: per call in a loop, host included
    "ratio",  # its time / fastseq's time in the same rounds
    "floor_ms",
    "percent_of_floor",
    "peak_mb",  # above inputs and gradients
    "gradient_error",  # relative L2 against float64
    "note",  # why something was not measured
    "load",  # 1-minute load average before the run, caused by other work
    "threads",
    "driver",
    "torch",
    "triton",
    "python",
    "commit",
)


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {_cpu_model()} {torch.get_num_threads()} threads"


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def _cpu_model() -> str:
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return re.sub(r"\s+", " ", found[1]).strip()
    return platform.processor() or platform.machine()


@lru_cache
def environment(device: str) -> dict[str, str]:
    return {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.2f}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device == "cuda"
        else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", "../fastseq/ops", "../csrc")
    return commit + ("+changes" if commit and changed else "")


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict.fromkeys(COLUMNS, "") | row for row in csv.DictReader(file)]


def merge(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows to the file; each replaces the existing row with the same key."""
    merged = {_key(row): row for row in read(path)}
    merged |= {_key(row): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
    part.replace(path)


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown tables: fastseq's time by shape and mode, then each provider's ratio to it and its
    memory.
    """
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    return "\n\n".join(_table([r for r in rows if r["precision"] == p], p) for p in precisions)


def _table(rows: list[dict[str, str]], precision: str) -> str:
    names = list(dict.fromkeys(row["provider"] for row in rows))
    cells = {_key(row)[2:]: row for row in rows}
    lines = [
        f"{precision}; ms for {names[0]}, for the others their time as a multiple of it:",
        "",
        "| N, T, D | mode | " + " | ".join(names) + " | % of floor |",
        "|" + "---|" * (len(names) + 3),
    ]
    memory = [
        "peak MB above inputs and gradients, forward and backward:",
        "",
        "| N, T, D | " + " | ".join(names) + " |",
        "|" + "---|" * (len(names) + 1),
    ]
    errors = ["relative error of the gradients against float64:", *memory[1:]]
    for n, t, d in dict.fromkeys((row["n"], row["t"], row["d"]) for row in rows):
        found = {}
        for mode in ("forward", "backward", "both"):
            found = {name: cells.get((n, t, d, precision, mode, name), {}) for name in names}
            if not found[names[0]].get("median_ms"):
                continue
            ours = found[names[0]]
            first = f"{float(ours['median_ms']):.3g} ± {float(ours['iqr_ms']) / 2:.2g}"
            others = [_ratio(found[name]) for name in names[1:]]
            values = [first, *others, ours["percent_of_floor"] or "-"]
            lines.append(f"| {n}, {t}, {d} | {mode} | " + " | ".join(values) + " |")
        peaks = [found[name].get("peak_mb") or "-" for name in names]
        memory.append(f"| {n}, {t}, {d} | " + " | ".join(peaks) + " |")
        off = [found[name].get("gradient_error") or "-" for name in names]
        errors.append(f"| {n}, {t}, {d} | " + " | ".join(off) + " |")
    notes = dict.fromkeys(
        f"- {row['provider']} at ({row['n']}, {row['t']}, {row['d']}): {row['note']}"
        for row in rows
        if row["note"]
    )
    return "\n".join([*lines, "", *memory, "", *errors, "", *notes]).rstrip()


def _ratio(row: dict[str, str]) -> str:
    return f"{float(row['ratio']):.3g}x" if row.get("ratio") else "-"
