"""Contents of sdist and wheel when built with nvcc, without nvcc and with an nvcc that fails."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The finder of an editable install would provide modules that the tested wheel leaves out.
NO_EDITABLE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("fastseq_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    return copy_to(tmp_path / "source")


def copy_to(source: Path) -> Path:
    """A copy of the files that a build reads, with a stale binary that must not get into any
    package.
    """
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("fastseq", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".py", ".toml", ".md", ".in", ".txt", ""):
            shutil.copy(path, source / path.name)
    (source / "fastseq" / "_C.stale.so").write_bytes(b"\x7fELF")
    return source


def build(source: Path, kind: str, **env: str) -> tuple[subprocess.CompletedProcess, list[Path]]:
    """Call the build backend as pip does, without downloading an isolated environment."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools import build_meta as b;"
            f"b.get_requires_for_build_{kind}(); b.build_{kind}('out')",
        ],
        cwd=source,
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return run, sorted((source / "out").glob("*")) if (source / "out").exists() else []


def no_nvcc(tmp_path: Path) -> str:
    """A PATH without nvcc."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    return str(tmp_path / "bin")


def broken_nvcc(tmp_path: Path) -> str:
    """A PATH with an nvcc that lists its architectures but fails otherwise."""
    nvcc = Path(no_nvcc(tmp_path)) / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\ncase "$1" in --list-gpu-arch) echo compute_80; echo compute_90;; '
        '*) echo "x.h(1): error: unsupported host compiler"; exit 1;; esac\n'
    )
    nvcc.chmod(0o755)
    return str(nvcc.parent)


def last_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fastseq:")]


@pytest.mark.process
def test_sdist_has_all_that_a_build_needs(checkout):
    run, (sdist,) = build(checkout, "sdist", FASTSEQ_BUILD="none")
    assert run.returncode == 0, run.stderr
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert len(sources) >= 5
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "fastseq/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


# Records the modules that `import fastseq` looks up, before anything else is imported.
INSTALLED = (
    NO_EDITABLE
    + """
import torch
asked = []
class Asked:
    def find_spec(self, name, path=None, target=None):
        asked.append(name)
sys.meta_path.insert(0, Asked())
import fastseq
fastseq.scl_loss
print(sorted({name.split(".")[0] for name in asked} & set(HEAVY)))
print(sorted({"fastseq.ops.scl", "fastseq._C"} & set(asked)))
import fastseq.info
print(fastseq.info.__file__)
from fastseq.ops.common import nvrtc
print(sorted(nvrtc.sources("soft_dtw")))
raise SystemExit(fastseq.info.main([]))
"""
).replace("HEAVY", str(["triton", "numba", "av", "omegaconf", "matplotlib"]))


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    """A build without the extension, its wheel, and the report of the package in it."""
    folder = tmp_path_factory.mktemp("pure")
    run, (wheel,) = build(copy_to(folder / "source"), "wheel", FASTSEQ_BUILD="none")
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    out = subprocess.run(
        [sys.executable, "-c", INSTALLED],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr
    return run, wheel, out.stdout.splitlines()


@pytest.mark.process
def test_pure_wheel(pure):
    run, wheel, said = pure
    assert wheel.name.endswith("-py3-none-any.whl")
    assert last_lines(run.stdout) == [
        "fastseq: building without the CUDA extension (FASTSEQ_BUILD=none); "
        "every op keeps its other backends"
    ]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    in_tree = {
        str(p.relative_to(ROOT))
        for pattern in ("*.py", "README.md", "py.typed")
        for p in (ROOT / "fastseq").rglob(pattern)
    }
    kernels = {p.name for p in (ROOT / "csrc/soft_dtw").glob("*.cuh")}
    assert len(kernels) >= 7
    in_tree |= {f"fastseq/csrc/soft_dtw/{name}" for name in kernels}
    packaged = {name for name in names if name.startswith("fastseq/")}
    assert packaged == in_tree
    assert {name.split("/")[0] for name in names - packaged} == {"fastseq-0.1.0.dist-info"}
    file, headers, *report = said[2:]
    assert file.endswith("/site/fastseq/info.py")
    assert headers == str(sorted(kernels))
    assert "built without its CUDA extension" in "\n".join(report)


@pytest.mark.process
def test_import_brings_nothing_heavy(pure):
    _, _, (heavy, seen, *_) = pure
    assert heavy == "[]"
    assert seen == "['fastseq.ops.scl']"  # and not fastseq._C


@pytest.mark.process
def test_auto_without_nvcc_is_pure_and_says_so_in_one_line(checkout, tmp_path):
    run, (wheel,) = build(checkout, "wheel", FASTSEQ_BUILD="auto", PATH=no_nvcc(tmp_path))
    assert run.returncode == 0, run.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    (line,) = last_lines(run.stdout)
    assert "no nvcc on PATH" in line


@pytest.mark.process
def test_auto_survives_a_compiler_that_fails(checkout, tmp_path):
    # Results of an earlier build of the same checkout must not get into the pure wheel.
    left = checkout / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (left / "fastseq").mkdir(parents=True)
    (left / "fastseq" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    env = {"PATH": broken_nvcc(tmp_path), "TORCH_CUDA_ARCH_LIST": "8.0;9.0a"}
    run, (wheel,) = build(checkout, "wheel", FASTSEQ_BUILD="auto", **env)
    assert run.returncode == 0, run.stderr
    # The command that failed.
    assert "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a" in run.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "unsupported host compiler" in last_lines(run.stdout)[-1]
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.process
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (no_nvcc, "FASTSEQ_BUILD=cuda, but the extension cannot be built: no nvcc on PATH"),
        (broken_nvcc, "unsupported host compiler"),
    ],
)
def test_cuda_asked_for_by_name_fails_with_the_reason(checkout, tmp_path, path, message):
    run, built = build(checkout, "wheel", FASTSEQ_BUILD="cuda", PATH=path(tmp_path))
    assert run.returncode != 0
    assert not built
    assert message in run.stderr


@pytest.mark.process
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_wheel_with_the_extension(checkout, tmp_path):
    """One architecture takes half the time of two. It is given twice, because ";" has to pass
    through nvcc's shell. tests/ops/soft_dtw/test_cuda.py has the registers and spills of sm_80.
    """
    compiler = tmp_path / "g++"  # optimising pybind11 is a third of the build
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O1\n')
    compiler.chmod(0o755)
    env = {"FASTSEQ_BUILD": "cuda", "FASTSEQ_BUILD_VERBOSE": "1", "CXX": str(compiler)}
    run, (wheel,) = build(checkout, "wheel", TORCH_CUDA_ARCH_LIST="9.0a;9.0a", **env)
    assert run.returncode == 0, run.stderr
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{version}-{version}-linux_\w+\.whl$", wheel.name)
    assert "for 9.0a;9.0a with" in run.stdout
    assert f"-ccbin {compiler}" in run.stdout
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", run.stdout)
    assert len(spills) >= 2
    assert (
        max(int(stores) for stores, _ in spills) <= 128
    )  # exact figures: tests/ops/soft_dtw/test_cuda.py
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (binary,) = (site / "fastseq").glob("*.so")
    needed = binary.read_bytes()
    assert b"libcudart.so" not in needed  # the runtime is linked statically
    assert b"libtorch" not in needed
    assert b"libc10" not in needed

    code = NO_EDITABLE + (
        "from fastseq.ops.common import extension as e; import fastseq._C as c;"
        f"assert c.__file__.startswith({str(site)!r}), c.__file__;"
        "print(e.loaded()[0], c.arch_list, c.runtime_version() >= 11000, e.status())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("True 9.0a;9.0a True (False, 'cudaGetDeviceCount: ")


def test_arch_list_in_pytorch_notation(setup_py):
    known = {80, 86, 90, 100, 120}
    assert setup_py.parse_arch_list("8.0;9.0a 12.0", known) == [
        ("compute_80", "sm_80"),
        ("compute_90a", "sm_90a"),
        ("compute_120", "sm_120"),
    ]
    # PTX of sm_90a runs on no other GPU, so the PTX is built for the plain architecture.
    assert setup_py.parse_arch_list("9.0a+PTX", known) == [
        ("compute_90a", "sm_90a"),
        ("compute_90", "compute_90"),
    ]
    assert setup_py.parse_arch_list("8.0, 9.0+PTX,8.0", known) == [
        ("compute_80", "sm_80"),
        ("compute_90", "sm_90"),
        ("compute_90", "compute_90"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hopper", "cannot read 'Hopper'; expected entries like 8.0, 9.0a or 9.0+PTX"),
        ("90", "cannot read '90'"),
        (" ", "cannot read ''"),
        ("7.0;8.0", "this nvcc does not compile for 7.0; it knows 8.0, 9.0"),
    ],
)
def test_arch_list_errors(setup_py, text, message):
    with pytest.raises(setup_py.BuildError, match=re.escape(message)):
        setup_py.parse_arch_list(text, {80, 90})


def test_default_architectures_are_those_that_nvcc_knows(setup_py):
    assert setup_py.default_arch_list({75, 80, 86, 89, 90, 100, 120}) == (
        "8.0;8.6;8.9;9.0a;10.0+PTX"
    )
    assert setup_py.default_arch_list({80, 86, 89, 90}) == "8.0;8.6;8.9;9.0a;9.0+PTX"
    with pytest.raises(setup_py.BuildError, match="update CUDA"):
        setup_py.default_arch_list({50, 60})


def test_nvcc_is_found_on_path_then_in_cuda_home(setup_py, tmp_path):
    empty = str(tmp_path / "empty")
    broken_nvcc(tmp_path)
    nvcc = str(tmp_path / "bin" / "nvcc")
    assert setup_py.find_nvcc({"PATH": empty}) is None
    assert setup_py.find_nvcc({"PATH": str(tmp_path / "bin")}) == nvcc
    assert setup_py.find_nvcc({"PATH": empty, "CUDA_HOME": str(tmp_path)}) == nvcc
    assert setup_py.find_nvcc({"PATH": empty, "CUDA_PATH": str(tmp_path)}) == nvcc
    assert setup_py.find_nvcc({"PATH": empty, "CUDA_HOME": empty}) is None


def test_wrong_settings_are_named(setup_py):
    with pytest.raises(SystemExit, match="must be auto, cuda or none, got 'yes'"):
        setup_py.decide({"FASTSEQ_BUILD": "yes"})
    with pytest.raises(setup_py.BuildError, match="MAX_JOBS must be a positive integer, got '0'"):
        setup_py.max_jobs({"MAX_JOBS": "0"})
    assert setup_py.max_jobs({"MAX_JOBS": "3"}) == 3


def test_every_direct_dependency_is_pinned():
    listed = set(re.findall(r'"([a-z0-9-]+)\s*>=', (ROOT / "pyproject.toml").read_text()))
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned[0] == "torch"
    assert {"setuptools", "av", "numba", "pytest"} <= listed
    assert listed <= set(pinned)
