"""NVIDIA's disassemblers, from Triton if it has them, otherwise from the CUDA toolkit."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path


def find(name: str) -> Path:
    """Path of nvdisasm or cuobjdump."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    folders += [Path(home, "bin") for key in ("CUDA_HOME", "CUDA_PATH") if (home := os.getenv(key))]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    if found := shutil.which(name):
        return Path(found)
    raise RuntimeError(
        f"{name} is missing: it comes with triton on Linux (pip install triton) and with the CUDA "
        "toolkit, which is looked for on PATH and in CUDA_HOME"
    )


def disassemble(cubin: bytes) -> str:
    """SASS with the source lines that it comes from."""
    return _run("nvdisasm", "-c", "-g", cubin=cubin)


def usage(cubin: bytes) -> dict[str, dict[str, int]]:
    """REG, STACK, SHARED, ... of each function."""
    text = _run("cuobjdump", "--dump-resource-usage", cubin=cubin)
    rows = re.findall(r"Function ([^\s:]+):\s*\n\s*(.*)", text)
    return {
        name: {key: int(value) for key, value in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", row)}
        for name, row in rows
    }


def _run(name: str, *flags: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([find(name), *flags, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
