"""The machine: card, driver, versions, commit. ``main`` adds what PyTorch reports."""

import ctypes
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu import record

PACKAGES = (
    *("torch", "triton", "numpy", "numba", "pytest", "pytest-xdist", "pytest-timeout"),
    *("pybind11", "setuptools", "omegaconf", "av", "memeff"),
)
CARD = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.sm")
MORE = ("power.limit", "temperature.gpu")
# Named on every page and in every row of measurements.
NAMED = ("card", "driver", "torch", "triton", "commit")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def output(*command: str, limit_s: float = 20) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def why_no_gpu() -> str:
    """Reason why the driver has no device; empty if it has one. Asks the driver directly, without
    torch.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({error})"
    status = driver.cuInit(0)
    if status:
        return f"the NVIDIA driver does not start (cuInit gives {status})"
    count = ctypes.c_int()
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if status == 0 and count.value else "the NVIDIA driver sees no device"


def smi() -> dict[str, str]:
    """The first card as nvidia-smi reports it; empty if that is missing."""
    fields = CARD + MORE
    rows = output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    if not rows:
        return {}
    values = [value.strip() for value in rows.splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=False))


def machine() -> dict[str, Any]:
    """The part that needs no torch."""
    found: dict[str, Any] = {"python": platform.python_version(), "kernel": platform.release()}
    found |= {"cores": os.cpu_count()}
    memory = Path("/proc/meminfo")
    if memory.exists():
        found["memory_gb"] = round(int(memory.read_text().split()[1]) / 1e6)
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    found["nvcc"] = (output(nvcc, "--version").splitlines() or ["-"])[-1]
    found |= {package: version(package) for package in PACKAGES}
    return found | {f"smi {key}": value for key, value in smi().items()}


def main() -> None:
    import torch

    from benchmarks import results

    device = record.device()
    named = results.environment(device)
    fields = machine() | {"card": named["device"], "slug": results.slug(device)}
    fields |= {key: named[key] for key in ("driver", "torch", "triton", "commit", "load")}
    fields["cuda"] = torch.version.cuda or "-"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        fields |= {
            "multiprocessors": card.multi_processor_count,
            "l2_mb": card.L2_cache_size >> 20,
            "card_gb": round(card.total_memory / 1e9, 1),
        }
    record.say("machine", "environment", **fields)


if __name__ == "__main__":
    main()
