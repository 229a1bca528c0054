"""Whether Triton's CPU interpreter (``TRITON_INTERPRET=1``) works with the installed NumPy."""

import importlib.metadata
import importlib.util
import re


def status() -> tuple[bool, str, str]:
    """(works, reason, fix), from the version numbers alone: nothing is imported."""
    if importlib.util.find_spec("triton") is None:
        return False, "the package triton is not installed", "pip install triton (Linux)"
    triton, numpy = _version("triton"), _version("numpy")
    # The interpreter calls int() on one-element arrays, which NumPy rejects from 2.4 on; Triton 3.7
    # no longer does.
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
        reason = (
            f"the CPU interpreter of triton {triton} (TRITON_INTERPRET=1) does not work with "
            f"numpy {numpy}"
        )
        return False, reason, 'pip install "numpy<2.4", or triton 3.7 or later'
    return True, f"CPU interpreter (TRITON_INTERPRET=1), triton {triton} with numpy {numpy}", ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a build under another name: assumed recent
        return "of unknown version"


def _release(version: str) -> tuple[float, float]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (float("inf"), 0)
