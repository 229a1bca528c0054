"""The loader of the compiled extension: what it says when there is none or it is of no use."""

import importlib
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from fastseq.ops.common import extension
from fastseq.ops.common.dispatch import BackendStatus


class Module:
    """Stands for fastseq._C."""

    def __init__(self, count=1, error=""):
        self.count, self.error = count, error

    def runtime_version(self):
        return 13000

    def device_count(self):
        if self.error:
            raise RuntimeError(self.error)
        return self.count


@pytest.fixture
def load(monkeypatch, tmp_path):
    """load(result, *files): the loader with an import that gives or raises ``result``, and a
    package folder that holds ``files``."""

    def arrange(result, *files):
        def import_module(name):
            assert name == "fastseq._C"
            if isinstance(result, Exception):
                raise result
            return result

        for name in files:
            (tmp_path / name).touch()
        monkeypatch.setattr(extension, "_PACKAGE", tmp_path)
        monkeypatch.setattr(importlib, "import_module", import_module)
        extension._load.cache_clear()
        extension.status.cache_clear()

    yield arrange
    extension._load.cache_clear()
    extension.status.cache_clear()


def test_not_built(load):
    load(ModuleNotFoundError("No module named 'fastseq._C'"), "__init__.py")
    present, reason, fix = extension.loaded()
    assert not present
    assert "built without its CUDA extension" in reason
    assert "nvcc" in fix
    assert "FASTSEQ_BUILD=cuda pip install" in fix
    assert extension.status() == (False, reason, fix)
    with pytest.raises(RuntimeError, match=r"built without its CUDA extension.*to fix: install"):
        extension.extension()


def test_built_for_another_python(load):
    load(ModuleNotFoundError("No module named 'fastseq._C'"), "_C.cpython-27-x86_64-linux-gnu.so")
    _, reason, fix = extension.loaded()
    assert reason == (
        "the extension was built for another Python: _C.cpython-27-x86_64-linux-gnu.so"
    )
    assert "pip install" in fix


def test_built_but_does_not_load(load):
    load(ImportError("GLIBCXX_3.4.30 not found"), f"_C{EXTENSION_SUFFIXES[0]}")
    _, reason, _ = extension.loaded()
    assert reason == "the extension is installed but does not load: GLIBCXX_3.4.30 not found"


def test_loaded_without_a_device(load):
    load(Module(error="cudaGetDeviceCount: no NVIDIA driver on this machine"))
    assert extension.loaded() == (True, "", "")
    status = BackendStatus(*extension.status())
    assert not status.available
    assert status.reason == "cudaGetDeviceCount: no NVIDIA driver on this machine"
    assert "CUDA 13" in status.fix


@pytest.mark.parametrize(("count", "text"), [(1, "1 CUDA device"), (2, "2 CUDA devices")])
def test_usable(load, count, text):
    module = Module(count)
    load(module)
    assert extension.extension() is module
    assert extension.status() == (True, f"extension loaded, {text}", "")


@pytest.mark.gpu
def test_probe_runs_on_every_device():
    module = extension.extension()
    for index in range(module.device_count()):
        probe = module.probe(index)
        assert probe["compiled_for"] <= probe["capability"]
        assert probe["binary"] <= probe["capability"]
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        module.probe(module.device_count())
