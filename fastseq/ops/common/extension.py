"""The compiled module ``fastseq._C``: loaded on first use; the reason when it is missing."""

import functools
import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parents[2]
_REBUILD = "FASTSEQ_BUILD=cuda pip install -v --force-reinstall --no-deps ."
_TOOLKIT = f"install the CUDA toolkit (nvcc), then in a checkout: {_REBUILD}"


@functools.cache
def _load() -> tuple[ModuleType | None, str, str]:
    """(module or None, why not, the one-line fix)."""
    try:
        return importlib.import_module("fastseq._C"), "", ""
    except ImportError as error:
        present = sorted(
            path.name for path in _PACKAGE.glob("_C.*") if path.suffix in (".so", ".pyd")
        )
        if not present:
            reason = "fastseq was built without its CUDA extension (no nvcc, or FASTSEQ_BUILD=none)"
            return None, reason, _TOOLKIT
        if not any(f"_C{suffix}" in present for suffix in EXTENSION_SUFFIXES):
            reason = f"the extension was built for another Python: {', '.join(present)}"
        else:
            reason = f"the extension is installed but does not load: {error}"
        return None, reason, f"in a checkout: {_REBUILD}"


def loaded() -> tuple[bool, str, str]:
    """(whether the extension imports, why not, the one-line fix). Needs no GPU."""
    module, reason, fix = _load()
    return module is not None, reason, fix


@functools.cache
def status() -> tuple[bool, str, str]:
    """(whether the extension can run kernels here, why (not), the one-line fix)."""
    module, reason, fix = _load()
    if module is None:
        return False, reason, fix
    try:
        count = module.device_count()
    except RuntimeError as error:
        needed = module.runtime_version() // 1000
        return False, str(error), f"an NVIDIA GPU, with a driver for CUDA {needed} or newer"
    return True, f"extension loaded, {count} CUDA device{'s' * (count != 1)}", ""


def extension() -> ModuleType:
    """The compiled module; RuntimeError with the reason and the fix when it cannot be used."""
    module, reason, fix = _load()
    if module is None:
        raise RuntimeError(f"the cuda backend is not available: {reason}; to fix: {fix}")
    return module
