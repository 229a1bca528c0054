"""Kernels compiled at run time, on machines made up for the test: when it is possible and why not,
and what the driver is told."""

import ctypes

import pytest
import torch

from fastseq.ops.common import dispatch, extension, nvrtc

NOT_BUILT = (False, "built without its CUDA extension", "install the CUDA toolkit")


@pytest.fixture
def machine(monkeypatch):
    """machine(capabilities, cuda, error): GPUs, torch's CUDA, what NVRTC fails with."""

    def arrange(capabilities, cuda="13.0", error=None):
        def compile_kernels(source, headers, kernels, capability):
            assert capability in capabilities
            if error:
                raise error
            return b"", ["trial"]

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(nvrtc, "compile_kernels", compile_kernels)
        monkeypatch.setattr(nvrtc, "_version", lambda: "13.0")
        nvrtc.status.cache_clear()

    yield arrange
    nvrtc.status.cache_clear()


def test_possible(machine):
    machine([(9, 0), (8, 6)])
    assert nvrtc.status() == (True, "NVRTC 13.0", "")


@pytest.mark.parametrize(
    ("capabilities", "cuda", "error", "reason", "fix"),
    [
        ([], "13.0", None, "PyTorch sees no CUDA device", "an NVIDIA GPU and a CUDA build"),
        ([(9, 0)], None, None, "PyTorch sees no CUDA device", "a CUDA build of torch"),
        ([(9, 0), (7, 5)], "12.6", None, "compute capability 7.5, older than 8.0", "DEVICES"),
        ([(9, 0)], "13.0", OSError("libnvrtc.so.13 is not there"), "libnvrtc.so.13", "nvrtc==13.*"),
        ([(9, 0)], "12.6", OSError("libnvrtc.so.12 is not there"), "libnvrtc.so.12", "nvrtc-cu12"),
        ([(15, 0)], "13.0", RuntimeError("NVRTC: no\narch"), "NVRTC: no arch", "a newer torch"),
    ],
)
def test_not_possible(machine, capabilities, cuda, error, reason, fix):
    machine(capabilities, cuda, error)
    possible, said, advice = nvrtc.status()
    assert not possible
    assert reason in said
    assert fix in advice
    assert "\n" not in said + advice


def test_other_platform(machine, monkeypatch):
    machine([(9, 0)])
    monkeypatch.setattr(nvrtc.sys, "platform", "win32")
    assert nvrtc.status()[:2] == (False, "it works on Linux only, this is win32")


@pytest.mark.parametrize(
    ("built", "at_run_time", "available", "reason", "fix"),
    [
        ((True, "extension loaded, 1 CUDA device", ""), None, True, "extension loaded", ""),
        (NOT_BUILT, (True, "NVRTC 13.0", ""), True, "at run time by NVRTC 13.0 (built without", ""),
        (NOT_BUILT, (False, "no library", "pip install it"), False, "no library", "pip install it"),
    ],
)
def test_backend_cuda(monkeypatch, built, at_run_time, available, reason, fix):
    monkeypatch.setattr(extension, "status", lambda: built)
    monkeypatch.setattr(nvrtc, "status", lambda: at_run_time)
    status = dispatch._cuda_status()
    assert (status.available, status.fix) == (available, fix)
    assert reason in status.reason
    assert built[1] in status.reason


def test_library_comes_from_its_package(monkeypatch, tmp_path):
    """Where torch has not loaded it; a file that is no library shows that it was found."""
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.syspath_prepend(tmp_path)
    find = nvrtc._library.__wrapped__
    with pytest.raises(OSError, match=r"libnvrtc\.so\.99 is missing"):
        find()
    path = tmp_path / "nvidia" / "cu99" / "lib" / "libnvrtc.so.99"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(OSError, match="file too short"):
        find()


class Driver:
    """Stands for libcuda: keeps what is called, in which context, and fails where it is told to."""

    def __init__(self, fails=""):
        self.fails, self.contexts, self.calls = fails, [], []

    def __getattr__(self, name):
        def call(*arguments):
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of luck"
            elif name == "cuDevicePrimaryCtxRetain":
                arguments[0]._obj.value = 70 + arguments[1].value
            elif name == "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            elif name == "cuCtxPushCurrent_v2":
                self.contexts.append(arguments[0].value)
            elif name == "cuCtxPopCurrent_v2":
                self.contexts.pop()
            else:
                assert self.contexts == [72]
                self.calls.append((name, arguments))
            return int(name == self.fails)

        return call


@pytest.fixture
def driver(monkeypatch):
    def arrange(fails=""):
        found = Driver(fails)
        monkeypatch.setattr(nvrtc, "_driver", lambda: found)
        return found

    nvrtc._primary.cache_clear()
    yield arrange
    nvrtc._primary.cache_clear()


class Arguments(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_double))


def test_what_the_driver_is_told(driver):
    told = driver()
    kernel = nvrtc.Kernel(b"\x7fELF", "name", 2, threads=192, most_shared=50000)
    arguments = Arguments(3, 0.5)
    kernel.fill(2**40, 2**33, 2**45)
    kernel.launch(70000, 40000, arguments, 2**45)
    load, function, attribute, fill, launch = told.calls
    assert (load[0], load[1][1]) == ("cuModuleLoadData", b"\x7fELF")
    assert (function[0], function[1][2]) == ("cuModuleGetFunction", b"name")
    assert (attribute[0], attribute[1][1:]) == ("cuFuncSetAttribute", (8, 50000))
    assert fill[0] == "cuMemsetD8Async"
    address, value, count, stream = fill[1]
    assert (address.value, value, count.value, stream.value) == (2**40, 255, 2**33, 2**45)
    assert launch[0] == "cuLaunchKernel"
    assert launch[1][1:8] == (70000, 1, 1, 192, 1, 1, 40000)
    assert launch[1][8].value == 2**45
    passed = Arguments.from_address(launch[1][9][0])
    assert (passed.a, passed.b) == (3, 0.5)
    assert launch[1][10] is None
    assert told.contexts == []


@pytest.mark.parametrize("fails", ["cuModuleLoadData", "cuFuncSetAttribute", "cuDeviceGet"])
def test_errors_of_the_driver(driver, fails):
    told = driver(fails)
    with pytest.raises(RuntimeError, match=f"^{fails}: out of luck$"):
        nvrtc.Kernel(b"", "name", 2, threads=32, most_shared=0)
    assert told.contexts == []


def test_errors_of_the_compiler():
    try:
        nvrtc._library()
    except OSError as error:
        pytest.skip(f"{error}; pip install nvidia-cuda-nvrtc")
    source = 'extern "C" __global__ void trial() { return 1 }'
    with pytest.raises(RuntimeError, match=r"NVRTC: NVRTC_ERROR_COMPILATION\nfastseq\.cu\(1\)"):
        nvrtc.compile_kernels(source, {}, ["trial"], (9, 0))
    with pytest.raises(RuntimeError, match="gpu-architecture"):
        nvrtc.compile_kernels(nvrtc._TRIAL, {}, ["trial"], (99, 0))
    code, names = nvrtc.compile_kernels(nvrtc._TRIAL, {}, ["trial"], (9, 0))
    assert names == ["trial"]
    assert code.startswith(b"\x7fELF")
