"""python -m fastseq.info: its report here, and on simulated machines."""

import copy
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastseq
from fastseq import info
from fastseq.ops.common import dispatch, interpreter

ROOT = Path(__file__).parents[1]


def test_json_is_the_report(capsys, monkeypatch):
    monkeypatch.setenv("FASTSEQ_BACKEND", "torch")
    assert info.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["fastseq"] == fastseq.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert list(report["backends"]) == ["reference", "torch", "triton", "cuda", "numba"]
    assert report["backends"]["reference"]["available"]
    assert report["environment"]["FASTSEQ_BACKEND"] == "torch"
    assert len(report["devices"]) == torch.cuda.device_count()
    for status in report["backends"].values():
        assert status["reason"]
        assert status["available"] or status["fix"]


def test_text_has_a_line_for_each_part(capsys):
    assert info.main([]) == 0
    text = capsys.readouterr().out
    for word in ("versions", "devices", "backends", "fastseq._C", "optional parts", "environment"):
        assert word in text
    for name in (
        "reference",
        "torch",
        "triton",
        "cuda",
        "numba",
        "video",
        "dali",
        "train",
        "bench",
    ):
        assert f"\n  {name} " in text


def test_a_checkout_that_hides_an_installed_copy_is_named(tmp_path, monkeypatch, capsys):
    installed = tmp_path / "site-packages/fastseq"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    metadata = tmp_path / "site-packages/fastseq-0.1.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Name: fastseq\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    assert info.main([]) == 0
    out = capsys.readouterr().out
    assert f"this report is of {ROOT / 'fastseq'}," in out
    assert f"not of the installed copy {installed}\n" in out
    assert "fix: run it in another folder" in out
    assert info.collect()["installed_copies"] == [str(installed)]


def test_without_another_copy_none_is_named(capsys):
    assert info.main([]) == 0
    assert "not of the installed copy" not in capsys.readouterr().out


@pytest.mark.process
def test_with_torch_alone():
    """Without any optional package, the report lists them as missing, with the command that
    installs them.
    """
    code = """
import sys
import torch
for name in ("triton", "numba", "av", "nvidia", "omegaconf", "tqdm", "tensorboard", "sklearn",
             "pytest", "pytest_benchmark", "matplotlib", "pykeops", "fastseq._C"):
    sys.modules[name] = None
from fastseq import info
raise SystemExit(info.main([]))
"""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr
    assert "the package triton is not installed" in out.stdout
    assert "the package numba is not installed" in out.stdout
    assert "missing av, omegaconf, tqdm, tensorboard, sklearn" in out.stdout
    for name in ("video", "dali", "train", "bench"):
        assert f'fix: pip install "fastseq[{name}]"' in out.stdout


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [
        ("3.6.0", "2.4.6", False),
        ("3.6.0", "2.5.2", False),
        ("3.4.0+git1", "2.4.0rc1", False),
        ("3.6.0", "2.3.5", True),
        ("3.7.1", "2.4.6", True),
        ("4.0.0", "3.0.0", True),
        (None, "2.4.6", True),  # built under another name
    ],
)
def test_interpreter_of_an_old_triton_beside_a_new_numpy(monkeypatch, capsys, triton, numpy, works):
    pytest.importorskip("triton", reason="needs triton")
    versions = {"triton": triton, "numpy": numpy}
    real = importlib.metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.backend_status.cache_clear()
    try:
        status = dispatch.backend_status("triton")
        info.main([])
        z = torch.randn(1, 4, 3)
        if not works:
            with pytest.raises(RuntimeError, match=r'does not work with numpy.*"numpy<2\.4"'):
                fastseq.scl_loss(z, z, backend="triton")
    finally:
        dispatch.backend_status.cache_clear()
    said = f"triton {triton} (TRITON_INTERPRET=1) does not work with numpy {numpy}"
    text = capsys.readouterr().out
    assert status.available == works
    assert (said in status.reason) == (not works)
    assert text.count(said) == (0 if works else 2)  # for the backend, and for the interpreter
    assert ('fix: pip install "numpy<2.4", or triton 3.7 or later' in text) == (not works)


def test_tests_of_kernels_are_skipped_where_the_interpreter_does_not_work(monkeypatch, request):
    """It is reported with the reason; the other lines are complete."""
    plugins = request.config.pluginmanager.get_plugins()
    conftest = next(p for p in plugins if hasattr(p, "skip_without_interpreter"))

    def marks():
        item = SimpleNamespace(added=[], add_marker=lambda mark: item.added.append(mark.mark))
        item.get_closest_marker = lambda name: name == "interpreter"
        other = SimpleNamespace(get_closest_marker=lambda name: None)
        conftest.skip_without_interpreter([item, other])
        return item.added

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "status", lambda: (False, "too old", "mend it"))
    (mark,) = marks()
    assert mark.name == "skip"
    assert mark.kwargs["reason"] == "too old; to fix: mend it"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert marks() == []
    monkeypatch.setattr(interpreter, "status", lambda: (True, "works", ""))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert marks() == []


@pytest.fixture
def gpu_machine():
    """The report of a machine with a GPU and an extension that is newer than its driver."""
    report = copy.deepcopy(info.collect())
    report["devices"] = [
        {"name": "NVIDIA H200", "capability": "9.0", "memory_gib": 139.8, "multiprocessors": 132}
    ]
    report["extension"] = {
        "loaded": True,
        "reason": "cudaGetDeviceCount: cudaErrorInsufficientDriver",
        "fix": "update",
        "architectures": "9.0a",
        "cuda_runtime": "13.0",
        "driver_supports": "12.4",
    }
    return report


def test_driver_older_than_the_runtime_inside(gpu_machine):
    text = info.render(gpu_machine)
    assert "cuda:0 NVIDIA H200, capability 9.0, 139.8 GiB, 132 multiprocessors" in text
    assert "carries CUDA runtime 13.0; the driver supports up to CUDA 12.4" in text
    assert "cannot run kernels here" in text


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        ((90, 90, True, 90), "runs sm_90a machine code on capability 9.0"),
        ((87, 80, False, 80), "runs sm_80 machine code on capability 8.7"),
        (
            (120, 100, False, 120),
            "runs PTX for sm_100, compiled by the driver for capability 12.0; "
            'to fix: rebuild with TORCH_CUDA_ARCH_LIST="12.0"',
        ),
    ],
)
def test_machine_code_in_words(probe, text):
    keys = ("capability", "compiled_for", "arch_specific", "binary")
    assert info.describe_probe(dict(zip(keys, probe, strict=True))) == text


def test_cuda_version_numbers():
    assert info._cuda_version(13000) == "13.0"
    assert info._cuda_version(12080) == "12.8"
    assert info._cuda_version(0) is None
