"""Phase profile: what limits the kernels of scl_loss and soft_dtw, by Nsight Compute.

``python -m benchmarks.gpu.profile`` makes the calls; each kernel is profiled once, at the clocks
that ncu finds.
"""

import csv
import io
import os
import shutil
from pathlib import Path

from benchmarks.gpu import record
from benchmarks.gpu.processes import Step

CASES = (
    ("scl", (4, 4096, 128), "bf16"),
    ("scl", (8, 480, 128), "bf16"),
    ("soft_dtw", (4, 480, 128), "fp32"),
)
KERNELS = "regex:scl_|forward_kernel|backward_kernel"
SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats"),
    *("Occupancy", "LaunchStats"),
)
WANTED = {
    "Duration": "duration",
    "SM Frequency": "clock",
    "Compute (SM) Throughput": "sm_pct",
    "L2 Cache Throughput": "l2_pct",
    "DRAM Throughput": "dram_pct",
    "Executed Ipc Active": "ipc",
    "Issue Slots Busy": "issue_pct",
    "No Eligible": "no_eligible_pct",
    "Eligible Warps Per Scheduler": "eligible",
    "Warp Cycles Per Issued Instruction": "cycles_per_instruction",
    "Achieved Occupancy": "occupancy_pct",
    "Registers Per Thread": "registers",
    "Waves Per SM": "waves",
    "Grid Size": "grid",
}


def steps(python: str, dry: bool, limit_s: float, work: Path) -> list[Step]:
    target = [python, "-m", "benchmarks.gpu.profile"]
    if dry:
        return [Step("profile", "calls", target, limit_s, work / "profile_calls.log")]
    found = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not os.access(found, os.X_OK):
        record.say("profile", "ncu", ok=None, error="not installed")
        return []
    command = [found, "--csv", "--page", "details", "--clock-control", "none"]
    command += ["--profile-from-start", "off", "--kernel-name", KERNELS]
    for section in SECTIONS:
        command += ["--section", section]
    return [Step("profile", "ncu", command + target, limit_s, work / "profile_ncu.log")]


def report(work: Path) -> None:
    """Record a line for each launch in ncu's output, also if ncu was killed."""
    log = work / "profile_ncu.log"
    if not log.exists():
        return
    text = log.read_text(errors="replace")
    found = launches(text)
    for name, metrics in found:
        record.say("profile", name, **metrics)
    if not found:  # for example where only administrators may read the counters
        words = [line for line in text.splitlines() if line.startswith("==ERROR==")]
        why = words[0][:200] if words else "ncu wrote of no launch; log.txt has what it said"
        record.say("profile", "launches", ok=False, error=why)


def launches(text: str) -> list[tuple[str, dict[str, str]]]:
    """(kernel, wanted metrics with their units), from the CSV that follows ncu's own messages."""
    start = text.find('"ID"')
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(text[start:])) if start >= 0 else ():
        name = WANTED.get(row.get("Metric Name") or "")
        if name:
            key = row.get("ID") or "", (row.get("Kernel Name") or "")[:60]
            value = f"{row.get('Metric Value')} {row.get('Metric Unit') or ''}".strip()
            found.setdefault(key, {})[name] = value
    return [(f"{number} {kernel}", metrics) for (number, kernel), metrics in found.items()]


def main() -> None:
    import torch

    from benchmarks.case import op_benchmark
    from benchmarks.gpu import problems

    ready = []
    # In a rehearsal all shapes of an op are the same.
    for op, case in dict.fromkeys((case[0], problems.case(*case)) for case in CASES):
        ready.append((problems.ours(op, case), op_benchmark(op).inputs(case), case.upstream))
    for one in ready:
        problems.loss_and_gradients(*one)
    problems.synchronize()
    if record.dry():
        return
    torch.cuda.profiler.start()
    for one in ready:
        problems.loss_and_gradients(*one)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
