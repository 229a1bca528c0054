"""CUDA kernels compiled at run time, for machines without the compiled extension.

CUDA builds of torch include NVRTC, which compiles without a CUDA toolkit and without headers. This
module calls the documented C functions of NVRTC and of the driver, and nothing private to torch:
``torch.cuda._compile_kernel`` needs CUDA_HOME, which users of this module do not have.
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[2]
_OLDEST = (8, 0)  # compute capability; setup.py builds for no older one either
_MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_TRIAL = 'extern "C" __global__ void trial() {}'


@functools.cache
def status() -> tuple[bool, str, str]:
    """(whether kernels can be compiled for the GPUs here, compiler or reason, the one-line fix)."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        fix = "run on a machine with an NVIDIA GPU and a CUDA build of torch"
        return False, "PyTorch sees no CUDA device", fix
    if not sys.platform.startswith("linux"):
        return (
            False,
            f"it works on Linux only, this is {sys.platform}",
            "run on Linux",
        )
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if min(found) < _OLDEST:
        reason = "a GPU here has compute capability {}.{}, older than 8.0".format(*min(found))
        return False, reason, "select newer GPUs with CUDA_VISIBLE_DEVICES"
    try:
        for capability in found:
            compile_kernels(_TRIAL, {}, ["trial"], capability)
    except OSError as error:
        major = torch.version.cuda.split(".")[0]
        package = "nvidia-cuda-nvrtc-cu12" if major == "12" else f"nvidia-cuda-nvrtc=={major}.*"
        return False, str(error), f'pip install "{package}"'
    except RuntimeError as error:
        return False, " ".join(str(error).split()), "install a newer torch that supports this GPU"
    return True, f"NVRTC {_version()}", ""


def sources(op: str) -> dict[str, str]:
    """The headers of csrc/<op> by name: from the installed package, or beside it in a checkout."""
    for root in (_PACKAGE, _PACKAGE.parent):
        paths = sorted((root / "csrc" / op).glob("*.cuh"))
        if paths:
            return {path.name: path.read_text() for path in paths}
    raise RuntimeError(f"{_PACKAGE / 'csrc' / op} is missing: reinstall fastseq")


def compile_kernels(
    source: str,
    headers: Mapping[str, str],
    kernels: Sequence[str],
    capability: tuple[int, int],
    options: Sequence[str] = (),
) -> tuple[bytes, list[str]]:
    """(machine code for a compute capability, mangled name of each kernel in it).

    ``kernels`` are C++ expressions such as ``forward_kernel<float>``; the source includes headers
    by their names in ``headers``.
    """
    lib = _library()
    texts, names = (_strings(items) for items in (headers.values(), headers))
    arch = "--gpu-architecture=sm_{}{}".format(*capability)
    # Some releases count a generic lambda in device code as a host function, and reject it.
    device = "--device-as-default-execution-space"
    flags = _strings([arch, "--std=c++17", device, *options])
    program = ctypes.c_void_p()
    _check(
        lib.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"fastseq.cu", len(headers), texts, names
        )
    )
    try:
        for kernel in kernels:
            _check(lib.nvrtcAddNameExpression(program, kernel.encode()))
        code = lib.nvrtcCompileProgram(program, len(flags), flags)
        if code:
            _check(code, _bytes("ProgramLog", program).rstrip(b"\0").decode(errors="replace"))
        return _bytes("CUBIN", program), [_lowered(program, kernel) for kernel in kernels]
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """A kernel of compiled machine code on one device."""

    def __init__(self, code: bytes, name: str, device: int, threads: int, most_shared: int) -> None:
        self.device, self.threads = device, threads
        self.function, module = ctypes.c_void_p(), ctypes.c_void_p()
        with _context(device):
            _drive("cuModuleLoadData", ctypes.byref(module), code)
            _drive("cuModuleGetFunction", ctypes.byref(self.function), module, name.encode())
            _drive("cuFuncSetAttribute", self.function, _MAX_SHARED, most_shared)

    def launch(self, blocks: int, shared: int, arguments: ctypes.Structure, stream: int) -> None:
        """Launch with so many bytes of shared memory and one structure, passed by value."""
        values = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        grid, size = (blocks, 1, 1), (self.threads, 1, 1)
        with _context(self.device):
            _drive(
                "cuLaunchKernel",
                *(self.function, *grid, *size, shared, ctypes.c_void_p(stream), values, None),
            )

    def fill(self, address: int, count: int, stream: int) -> None:
        """Set all bits of ``count`` bytes on the stream."""
        with _context(self.device):
            _drive(
                "cuMemsetD8Async",
                *(ctypes.c_uint64(address), 0xFF, ctypes.c_size_t(count), ctypes.c_void_p(stream)),
            )


@functools.cache
def _library() -> ctypes.CDLL:
    """NVRTC of torch's CUDA version: the copy that torch has loaded, or the one in its package."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').split('.')[0]}"
    with contextlib.suppress(OSError):
        return ctypes.CDLL(name)
    # Not through the package "nvidia": some of NVIDIA's wheels give it an __init__.py, which hides
    # its parts in other folders.
    for folder in sys.path:
        for path in Path(folder, "nvidia").glob(f"*/lib/{name}"):
            return ctypes.CDLL(str(path))
    raise OSError(f"{name} is missing")


def _version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _strings(items) -> ctypes.Array:
    encoded = [item.encode() for item in items]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _bytes(what: str, program: ctypes.c_void_p) -> bytes:
    size, lib = ctypes.c_size_t(), _library()
    _check(getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(lib, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _lowered(program: ctypes.c_void_p, kernel: str) -> str:
    name = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
    return name.value.decode()


def _check(code: int, log: str = "") -> None:
    if code:
        lib = _library()
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {lib.nvrtcGetErrorString(code).decode()}\n{log}".rstrip())


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _drive(function: str, *arguments) -> None:
    """Call the driver; RuntimeError with the driver's description of the failure."""
    code = getattr(_driver(), function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{function}: {(text.value or b'unknown error').decode()}")


@functools.cache
def _primary(device: int) -> ctypes.c_void_p:
    """The device's primary context, in which torch works."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _drive("cuDeviceGet", ctypes.byref(handle), device)
    _drive("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


@contextlib.contextmanager
def _context(device: int) -> Iterator[None]:
    """Make a device's context current: a thread of autograd may have none yet."""
    _drive("cuCtxPushCurrent_v2", _primary(device))
    try:
        yield
    finally:
        _drive("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
