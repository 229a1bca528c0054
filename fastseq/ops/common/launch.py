"""How Triton kernels are launched: operand types of the tensor cores, GPU architecture, device, and
a launcher that looks up a compiled kernel only once."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction, driver

from fastseq.ops.common.dispatch import in_custom_op

try:
    from triton import knobs
except ImportError:  # before 3.4: private functions are called in no such version
    knobs = None

# Versions of Triton whose compiled kernels a Kernel calls directly.
KNOWN = ("3.6", "3.7")


def operands(dtype: torch.dtype) -> tuple[str, str]:
    """Type of the tensor cores' operands, and tl.dot's input_precision (unused for fp16, bf16)."""
    if dtype == torch.bfloat16:
        return "bf16", "tf32"
    if dtype == torch.float16:
        return "fp16", "tf32"
    how = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return how, how


# Registers of a thread. Without a stated limit ptxas stops at 128 or 168 and spills a few.
MOST_REGISTERS = 255


class Tiles(NamedTuple):
    """How a kernel divides its work: an entry of an op's table ``tiles``.

    Rows and columns of a tile, channels per step of the scores (similarities, distances), channels
    per program of a gradient, warps, pipeline stages, and the register limit of a thread: below 255
    where that fits one more program on a multiprocessor. None: the op's default.
    """

    rows: int
    columns: int
    step: int
    channels: int
    warps: int
    stages: int
    registers: int | None = None


def cdiv(a: int, b: int) -> int:
    """ceil(a / b). triton.cdiv, which also works inside kernels, takes 3 us."""
    return -(-a // b)


@lru_cache
def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0; 0 for the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class Kernel:
    """A Triton kernel with its constants and options fixed, called with tensors and numbers.

    Triton's launcher examines every argument of every call to find the compiled kernel. For a short
    sequence that takes longer than the GPU's work. A Kernel asks the launcher once for each kind of
    call: device, dtypes of the tensors, which of them are None, how integers are specialised. Later
    calls launch the compiled kernel directly. That function is private to Triton, so a version that
    is not KNOWN uses the public launcher every time. So do the interpreter, hooks on launches
    (profilers) or on the kernel, tensors that do not start at a multiple of 16 bytes, and integers
    beyond 32 bits. Other settings that Triton reads at a launch (knobs of debugging and
    instrumentation) take effect at the first launch only.

    ``kernel`` takes tensors first, named p_*, then numbers, then constants.
    """

    def __init__(self, kernel: Any, **keywords: Any) -> None:
        self.kernel, self.keywords = kernel, keywords
        self.compiled: dict[tuple, tuple] = {}
        self.direct = isinstance(kernel, JITFunction) and known(triton.__version__)
        if self.direct:
            kinds = [2 * p.is_constexpr or not p.name.startswith("p_") for p in kernel.params]
            if kinds != sorted(kinds):
                raise ValueError(f"{kernel.__name__}: expected p_* tensors, numbers, constants")
            self.constants = [keywords[p.name] for p in kernel.params if p.is_constexpr]
            rest = [p for p in kernel.params if not (p.is_constexpr or p.name.startswith("p_"))]
            self.specialised = [not p.do_not_specialize for p in rest]

    def __call__(
        self, programs: int, tensors: tuple[Tensor | None, ...], numbers: tuple[int | float, ...]
    ) -> None:
        """Launch on the current stream of the tensors' device; the first tensor is never None."""
        device = tensors[0].get_device()
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(device, programs, tensors, numbers)
        else:
            self._launch(device, programs, tensors, numbers)

    def _launch(self, device: int, programs: int, tensors: tuple, numbers: tuple) -> None:
        if not self.direct or self.kernel.pre_run_hooks or _hooked():
            self.kernel[(programs,)](*tensors, *numbers, **self.keywords)
            return
        addresses, kind, bits = [], [device], 0
        for tensor in tensors:
            if tensor is None:
                addresses.append(None)
                kind.append(None)
            else:
                address = tensor.data_ptr()
                bits |= address
                addresses.append(address)
                kind.append(tensor.dtype)
        usual = bits % 16 == 0
        for number, specialised in zip(numbers, self.specialised, strict=True):
            if type(number) is int:
                usual = usual and -(2**31) <= number < 2**31
                if specialised:
                    kind.append((number == 1, number % 16 == 0))
        found = self.compiled.get(kind := tuple(kind)) if usual else None
        if found is None:
            compiled = self.kernel[(programs,)](*tensors, *numbers, **self.keywords)
            if usual and compiled is not None:  # a hook on compilation may forbid it
                self.compiled[kind] = compiled.run, compiled.function, compiled.packed_metadata
            return
        run, function, metadata = found
        stream = driver.active.get_current_stream(device)
        # The arguments after the metadata are for hooks: there are none here.
        run(
            *(programs, 1, 1, stream, function, metadata, None, None, None),
            *(*addresses, *numbers, *self.constants),
        )


def known(version: str) -> bool:
    """Whether a Kernel launches compiled kernels of this Triton version directly."""
    return ".".join(version.split(".")[:2]) in KNOWN


def _hooked() -> bool:
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)


_kept: list[Callable] = []


def once(make: Callable) -> Callable:
    """``functools.cache`` for functions that choose kernels and tiles, until :func:`clear`."""
    kept = cache(make)
    _kept.append(kept)
    return kept


def clear() -> None:
    """Forget every choice of tiles, so that a changed one takes effect (tuning)."""
    for kept in _kept:
        kept.cache_clear()


_tickets: dict[tuple[int, int], Tensor] = {}


def ticket(like: Tensor) -> Tensor:
    """One int32 that is 0 when a kernel starts on the current stream of the tensor's device.

    The programs of a kernel count themselves in it, so that the last one to finish can do the work
    that needs all results. That program sets it back to 0, so one ticket is enough for all launches
    on a stream. A CUDA graph, which may be replayed on any stream, gets a separate ticket, and so
    does a call by torch.compile, which captures graphs itself.
    """
    device = like.get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return ticket(like)
    if device < 0 or in_custom_op() or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=like.device)
    key = device, driver.active.get_current_stream(device)
    if key not in _tickets:
        _tickets[key] = torch.zeros(1, dtype=torch.int32, device=like.device)
    return _tickets[key]
