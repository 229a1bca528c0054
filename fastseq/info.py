"""``python -m fastseq.info``: what is installed, what is missing and why, and the one-line fix."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import fastseq
from fastseq.ops.common import extension, interpreter
from fastseq.ops.common.dispatch import BACKENDS, backend_status

# The purpose of each extra of pyproject.toml, and the modules that show whether it is installed.
_EXTRAS = {
    "video": ("reading video files", ("av",)),
    "dali": ("decoding on the GPU", ("nvidia.dali",)),
    "train": (
        "the training scripts",
        ("av", "omegaconf", "tqdm", "tensorboard", "sklearn", "safetensors"),
    ),
    "bench": ("the benchmarks", ("pytest", "pytest_benchmark", "matplotlib", "pykeops")),
}


def collect() -> dict:
    """The contents of the report, as plain JSON types."""
    return {
        "versions": {
            "fastseq": fastseq.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "torch CUDA": torch.version.cuda,
            "triton": _version("triton"),
            "numba": _version("numba"),
            "numpy": _version("numpy"),
            "NVIDIA driver": _driver(),
        },
        "imported_from": str(Path(fastseq.__file__).parent),
        "installed_copies": _other_copies(),
        "devices": _devices(),
        "backends": {name: backend_status(name)._asdict() for name in BACKENDS},
        "interpreter": dict(zip(("works", "reason", "fix"), interpreter.status(), strict=True)),
        "extension": _extension(),
        "extras": _extras(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FASTSEQ_")
            or name in ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "TORCH_CUDA_ARCH_LIST")
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _other_copies() -> list[str]:
    """Installed packages of this name that the imported one hides, as in the folder of a checkout.

    An editable installation has no such folder: what it imports is the checkout.
    """
    imported = Path(fastseq.__file__).resolve()
    files = (
        Path(str(found.locate_file("fastseq/__init__.py")))
        for found in importlib.metadata.distributions(name="fastseq")
    )
    others = {str(f.parent) for f in files if f.is_file() and f.resolve() != imported}
    return sorted(others)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(output.stdout.split()), None)


def _devices() -> list[dict]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        prop = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": prop.name,
                "capability": f"{prop.major}.{prop.minor}",
                "memory_gib": round(prop.total_memory / 2**30, 1),
                "multiprocessors": prop.multi_processor_count,
            }
        )
    return found


def _extension() -> dict:
    """The compiled module: loaded or why not, and which of its machine code each GPU runs."""
    present, reason, fix = extension.loaded()
    out: dict[str, Any] = {"loaded": present, "reason": reason, "fix": fix}
    if not present:
        return out
    module = extension.extension()
    out["architectures"] = module.arch_list
    out["cuda_runtime"] = _cuda_version(module.runtime_version())
    out["driver_supports"] = _cuda_version(module.driver_version())
    usable, reason, fix = extension.status()
    if not usable:
        return out | {"reason": reason, "fix": fix}
    out["machine_code"] = []
    for index in range(module.device_count()):
        try:
            out["machine_code"].append(describe_probe(module.probe(index)))
        except RuntimeError as error:
            out["machine_code"].append(str(error))
    return out


def _cuda_version(number: int) -> str | None:
    """13.0 for 13000; None for 0, which stands for no driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def describe_probe(probe: dict) -> str:
    """One line on the code that a GPU runs, from the probe kernel's report."""
    suffix = "a" if probe["arch_specific"] else ""
    code = f"sm_{probe['compiled_for']}{suffix}"
    if probe["compiled_for"] == probe["binary"]:
        return f"runs {code} machine code on capability {probe['capability'] / 10:.1f}"
    return (
        f"runs PTX for {code}, compiled by the driver for capability "
        f"{probe['capability'] / 10:.1f}; to fix: rebuild with "
        f'TORCH_CUDA_ARCH_LIST="{probe["capability"] / 10:.1f}"'
    )


def _extras() -> dict:
    out = {}
    for name, (purpose, modules) in _EXTRAS.items():
        missing = [module for module in modules if not _importable(module)]
        out[name] = {
            "installed": not missing,
            "purpose": purpose,
            "missing": missing,
            "fix": f'pip install "fastseq[{name}]"' if missing else "",
        }
    return out


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def render(info: dict) -> str:
    """The report as text, 100 columns wide where the reasons allow it."""
    lines = ["versions"]
    lines += [f"  {name:14s} {value or 'none'}" for name, value in info["versions"].items()]

    if info["installed_copies"]:
        lines.append(f"  this report is of {info['imported_from']},")
        lines += [f"  not of the installed copy {path}" for path in info["installed_copies"]]
        lines.append("  fix: run it in another folder, or install by: pip install -e .")

    lines.append("devices")
    for index, device in enumerate(info["devices"]):
        lines.append(
            f"  cuda:{index} {device['name']}, capability {device['capability']}, "
            f"{device['memory_gib']} GiB, {device['multiprocessors']} multiprocessors"
        )
    if not info["devices"]:
        lines.append("  no CUDA device that PyTorch can use; every op runs on the CPU")

    lines.append("backends")
    for name, status in info["backends"].items():
        lines += _status(name, status["available"], status["reason"], status["fix"])

    lines.append("Triton kernels without a GPU, for tests")
    found = info["interpreter"]
    lines += _status("interpreter", found["works"], found["reason"], found["fix"])

    lines.append("compiled extension fastseq._C")
    ext = info["extension"]
    if ext["loaded"]:
        lines.append(f"  loaded, built for {ext['architectures']}")
        driver = ext["driver_supports"]
        supports = f"the driver supports up to CUDA {driver}" if driver else "no NVIDIA driver"
        lines.append(f"  carries CUDA runtime {ext['cuda_runtime']}; {supports}")
        lines += [f"  cuda:{i} {text}" for i, text in enumerate(ext.get("machine_code", []))]
        if ext["reason"]:
            lines.append("  cannot run kernels here: see the backend cuda above")
    else:
        lines += _status("not loaded", None, ext["reason"], ext["fix"])

    lines.append("optional parts")
    for name, extra in info["extras"].items():
        missing = f"missing {', '.join(extra['missing'])}"
        reason = extra["purpose"] if extra["installed"] else f"{extra['purpose']}; {missing}"
        lines += _status(name, extra["installed"], reason, extra["fix"])

    lines.append("environment")
    lines += [f"  {name}={value}" for name, value in info["environment"].items()] or ["  none set"]
    return "\n".join(lines)


def _status(name: str, available: bool | None, reason: str, fix: str) -> list[str]:
    mark = {True: "yes", False: "no ", None: ""}[available]
    lines = [f"  {name:10s} {mark} {reason}".rstrip()]
    if fix:
        lines.append(f"  {'':10s}     fix: {fix}")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseq.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    info = collect()
    print(json.dumps(info, indent=2) if args.json else render(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
