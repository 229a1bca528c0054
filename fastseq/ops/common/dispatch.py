"""Which backend runs a call, and why."""

import contextlib
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from fastseq.ops.common import interpreter

BACKENDS = ("reference", "torch", "triton", "cuda", "numba")


class BackendStatus(NamedTuple):
    available: bool
    reason: str
    fix: str


def interpreting() -> bool:
    """True when Triton kernels run in its CPU interpreter (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def backend_status(name: str) -> BackendStatus:
    """Return whether a backend can run on this machine, the reason, and the one-line fix."""
    if name in ("reference", "torch"):
        return BackendStatus(True, "part of PyTorch", "")
    if name == "triton":
        if importlib.util.find_spec("triton") is None or interpreting():
            return BackendStatus(*interpreter.status())
        if not torch.cuda.is_available():
            return BackendStatus(
                False,
                "PyTorch sees no CUDA device",
                "run on a machine with an NVIDIA GPU and a CUDA build of torch",
            )
        return BackendStatus(True, "CUDA device present", "")
    if name == "numba":
        if importlib.util.find_spec("numba") is None:
            return BackendStatus(False, "the package numba is not installed", "pip install numba")
        return BackendStatus(True, "numba is installed", "")
    if name == "cuda":
        return _cuda_status()
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")


def _cuda_status() -> BackendStatus:
    """Status of the compiled extension, or of kernels compiled at run time where it is missing."""
    from fastseq.ops.common import extension, nvrtc

    built, why, _ = extension.status()
    if built:
        return BackendStatus(True, why, "")
    possible, reason, fix = nvrtc.status()
    if possible:
        return BackendStatus(True, f"kernels compiled at run time by {reason} ({why})", "")
    return BackendStatus(False, f"{why}; nothing can be compiled at run time: {reason}", fix)


def choose_backend(op: str, requested: str, why_not: Mapping[str, str | None]) -> tuple[str, str]:
    """Return (backend, reason) for one call of ``op``.

    ``why_not`` lists the op's backends in order of preference, each with None when it supports the
    call, otherwise with the reason why not. ``requested`` is the caller's ``backend=``. "auto"
    picks FASTSEQ_BACKEND when that is set, otherwise the first backend that supports the call. A
    backend that the caller names is never replaced: RuntimeError states why it does not support
    the call. FASTSEQ_BACKEND is one default for all ops; an op without that backend ignores it.
    """
    if not isinstance(requested, str):
        raise TypeError(f"{op}: backend must be a string, got {requested!r}")
    return _choose(op, requested, os.environ.get("FASTSEQ_BACKEND"), tuple(why_not.items()))


@functools.lru_cache
def _choose(
    op: str, requested: str, default: str | None, preference: tuple[tuple[str, str | None], ...]
) -> tuple[str, str]:
    """The choice itself, cached: calls of an op repeat a few combinations."""
    why_not = dict(preference)
    origin, skipped = "named in the call", []
    if requested == "auto":
        requested = default or "auto"
        origin = "FASTSEQ_BACKEND"
        if requested in BACKENDS and requested not in why_not:
            skipped.append(f"not {requested} (FASTSEQ_BACKEND): {op} has no such backend")
            requested = "auto"
    if requested == "auto":
        for name, reason in why_not.items():
            if reason is None:
                return name, "; ".join(["preferred here", *skipped])
            skipped.append(f"not {name}: {reason}")
        raise RuntimeError(f"{op}: no backend supports this call: {'; '.join(skipped)}")
    if requested not in why_not:
        raise ValueError(
            f"{op}: unknown backend {requested!r} ({origin}); expected 'auto' or one of "
            f"{', '.join(repr(name) for name in why_not)}"
        )
    reason = why_not[requested]
    if reason is not None:
        raise RuntimeError(
            f"{op}: backend {requested!r} ({origin}) does not support this call: {reason}"
        )
    return requested, origin


def choose_triton_or_torch(
    op: str, requested: str, device_type: str, dtype: torch.dtype
) -> tuple[str, str]:
    """`choose_backend` for an op with the backends triton, torch and reference."""
    return choose_backend(op, requested, triton_and_torch(device_type, dtype))


def triton_and_torch(device_type: str, dtype: torch.dtype) -> dict[str, str | None]:
    """``why_not`` of `choose_backend` for the backends triton, torch and reference. An op with one
    more adds it to this dict: before these if "auto" is to prefer it, otherwise after them."""
    triton = {"triton": _why_not_triton(device_type, dtype)}
    torch_first: dict[str, str | None] = {"torch": None, "reference": None}
    # Triton on the CPU is its interpreter, which is meant for tests that name it.
    return triton | torch_first if device_type == "cuda" else torch_first | triton


def _why_not_triton(device_type: str, dtype: torch.dtype) -> str | None:
    if dtype == torch.float64:
        return "no kernel for float64; to fix: backend='torch', or float32 inputs"
    reason = unavailable("triton")
    if reason is None and device_type != "cuda" and not interpreting():
        return f"the tensors are on {device_type}; to fix: move them to a CUDA device"
    return reason


_AS_IT_IS = contextlib.nullcontext()


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Switch autocast off; a no-op on the meta device, which torch 2.11 cannot trace here."""
    if device_type == "meta":
        return _AS_IT_IS
    if torch.compiler.is_compiling():
        return torch.autocast(device_type, enabled=False)
    # torch.autocast costs 10 us a call; the outermost one also empties the cache of cast weights.
    return _without_autocast(device_type) if torch.is_autocast_enabled(device_type) else _AS_IT_IS


@contextlib.contextmanager
def _without_autocast(device_type: str) -> Iterator[None]:
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, True)


_thread = threading.local()


@contextlib.contextmanager
def inside_custom_op() -> Iterator[None]:
    """Mark calls by torch.compile, whose allocations may come from a CUDA graph's memory pool."""
    _thread.custom_op = True
    try:
        yield
    finally:
        _thread.custom_op = False


def in_custom_op() -> bool:
    """Whether memory allocated now must not be kept for later calls."""
    return getattr(_thread, "custom_op", False)


def constant_under_compile(function: Callable) -> Callable:
    """Decorator: torch.compile calls a function of Python values once instead of tracing it.

    Equivalent to torch.compiler.assume_constant_result, without importing torch._dynamo (3 s).
    """
    function._dynamo_marked_constant = True
    return function


def called_op(inner: str) -> str:
    """The function that the user called, where it runs ``inner`` by `call_as`."""
    return getattr(_thread, "called", None) or inner


@contextlib.contextmanager
def _called_as(op: str) -> Iterator[None]:
    before = getattr(_thread, "called", None)
    _thread.called = before or op
    try:
        yield
    finally:
        _thread.called = before


def call_as(op: str, function: Callable, *args, **options):
    """Call ``function(*args, **options)``; its errors name ``op``, the function the user called,
    or "op: part" for one of its arguments. So do the errors of its backward: see `called_op`."""
    called = op.partition(":")[0]
    try:
        if torch.compiler.is_compiling():
            return function(*args, **options)
        with _called_as(called):
            return function(*args, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        inner, text = function.__name__, str(error)
        if not text.startswith(f"{inner}:"):
            raise
        text = text.removeprefix(f"{inner}:").replace(f"{inner}(", f"{called}(")
        raise type(error)(f"{op}:{text}") from None


def unavailable(name: str) -> str | None:
    """None when the backend can run on this machine, otherwise reason and fix in one line."""
    status = backend_status(name)
    return None if status.available else f"{status.reason}; to fix: {status.fix}"
