"""Phase sanitize: two small calls of soft_dtw under compute-sanitizer, memcheck and racecheck."""

import os
import re
import shutil
from pathlib import Path

from benchmarks.gpu import record
from benchmarks.gpu.processes import Step

TOOLS = ("memcheck", "racecheck")


def steps(python: str, dry: bool, limit_s: float, work: Path) -> list[Step]:
    """Without compute-sanitizer, a rehearsal makes only the calls; a real call reports what is
    missing.
    """
    target = [python, "-m", "benchmarks.gpu.sanitize"]
    if dry:
        return [Step("sanitize", "calls", target, limit_s, work / "sanitize_calls.log")]
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(found, os.X_OK):
        record.say("sanitize", "compute-sanitizer", ok=None, error="not installed")
        return []
    options = ["--print-limit", "20", "--error-exitcode", "9"]
    return [
        Step(
            "sanitize",
            tool,
            [found, "--tool", tool, *options, *target],
            limit_s,
            work / f"sanitize_{tool}.log",
        )
        for tool in TOOLS
    ]


def findings(work: Path) -> list[str]:
    """The summary lines of the tools."""
    lines = []
    for tool in TOOLS:
        log = work / f"sanitize_{tool}.log"
        if log.exists():
            pattern = r"^={9} ((?:ERROR|RACECHECK) SUMMARY.*)$"
            found = re.findall(pattern, log.read_text(errors="replace"), re.M)
            lines += [f"{tool}: {line}" for line in found or ["no summary"]]
    return lines


def main() -> None:
    import torch

    import fastseq

    generator = torch.Generator().manual_seed(0)
    backend = "torch" if record.dry() else "cuda"
    lengths = {"lengths_x": [100, 33, 0], "lengths_y": [40, 40, 7]}
    for shape, other, options in (
        ((2, 70, 40), 65, {}),
        ((3, 100, 8), 40, {"bandwidth": 5} | lengths),
    ):
        x, y = (
            torch.randn(shape[0], frames, shape[2], generator=generator)
            .to(record.device())
            .requires_grad_()
            for frames in (shape[1], other)
        )
        value = fastseq.soft_dtw(x, y, gamma=1.0, backend=backend, **options)
        grads = torch.autograd.grad(value.sum(), (x, y))
        norms = [float(grad.norm()) for grad in grads]
        print(shape, value.detach().cpu().tolist(), norms, flush=True)


if __name__ == "__main__":
    main()
