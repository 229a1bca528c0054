"""Phase build: the CUDA extension, for this card."""

import os
from pathlib import Path

from benchmarks.gpu import environment
from benchmarks.gpu.processes import Step

# Architecture names that include the instructions specific to a card.
SPECIFIC = {"9.0": "9.0a"}


def architecture() -> dict[str, str]:
    """Value of TORCH_CUDA_ARCH_LIST where it is not set: one architecture builds quickly."""
    capability = environment.smi().get("compute_cap", "")
    if os.environ.get("TORCH_CUDA_ARCH_LIST") or not capability:
        return {}
    return {"TORCH_CUDA_ARCH_LIST": SPECIFIC.get(capability, capability)}


def step(python: str, dry: bool, limit_s: float, work: Path) -> Step:
    """A rehearsal builds the extension only if FASTSEQ_BUILD is set, and never in place."""
    command = [python, "setup.py", "build_ext"]
    env = {"FASTSEQ_BUILD": os.environ.get("FASTSEQ_BUILD") or ("none" if dry else "cuda")}
    if dry:
        command += ["--build-lib", str(work / "lib"), "--build-temp", str(work / "objects")]
        env |= {} if os.environ.get("TORCH_CUDA_ARCH_LIST") else {"TORCH_CUDA_ARCH_LIST": "9.0a"}
    else:
        command += ["--inplace"]
        env |= architecture()
    return Step("build", "extension", command, limit_s, work / "build.log", env)
