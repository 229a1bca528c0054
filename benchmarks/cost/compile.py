"""Compiles what the ops ship, or the configuration chosen on the command line, and reports on each
kernel.

Triton's kernels come from the ops' public calls, run under ``benchmarks.pretend``. The launchers
choose tiles, argument types and grids, so these are not listed a second time here. The kernels of
soft_dtw are compiled by nvcc, or by NVRTC where nvcc is missing.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.case import Case, op_benchmark
from benchmarks.cost import sass, tools
from benchmarks.cost.loops import ROOT
from benchmarks.cost.report import KernelReport, kernel_report

TRITON_OPS = ("scl", "contrastive_idm", "tcc", "queue_nce")
OPS = (*TRITON_OPS, "soft_dtw")
# Options of the public function that select different code; the first is the default.
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "scl": {"shift": {}, "online": {"temperature": 0.02}, "batch": {"negatives": "batch"}},
    "contrastive_idm": {"squared": {}, "direct": {"distance": "euclidean"}},
    "tcc": {"variance": {}, "classification": {"loss_type": "classification"}},
    "queue_nce": {"": {}},
    "soft_dtw": {"": {}},
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One op in one precision, compiled with D channels and called with ``shapes`` if there are
    any.
    """

    op: str
    precision: str
    channels: int
    mode: str
    arch: int
    kernel: str = ""  # the kernel that ``tiles`` apply to; empty: all kernels of the op
    tiles: tuple[tuple[str, int | None], ...] = ()  # replaced fields of its Tiles
    shapes: tuple[tuple[int, int, int], ...] = ()

    def __str__(self) -> str:
        words = [self.op, self.precision, f"D={self.channels}", self.mode, f"sm_{self.arch}"]
        return " ".join(word for word in words if word)

    @property
    def configuration(self) -> str:
        changed = (f"{key}={value}" for key, value in self.tiles)
        return " ".join(w for w in (self.precision, f"D={self.channels}", self.mode, *changed) if w)


@dataclasses.dataclass
class Result:
    job: Job
    kernels: list[KernelReport]
    # For each shape, the launches of forward and of backward as (index in kernels, thread blocks).
    launches: dict[tuple[int, int, int], dict[str, list[tuple[int, int]]]]
    note: str = ""


def run(job: Job) -> Result:
    """Runs in its own process for each architecture and set of tiles, without TRITON_INTERPRET."""
    return _soft_dtw(job) if job.op == "soft_dtw" else _triton(job)


def _triton(job: Job) -> Result:
    from benchmarks.gate import matmul_precision
    from benchmarks.pretend import pretend

    op = op_benchmark(job.op)
    kernels: dict[str, int] = {}
    result = Result(job, [], {})
    small = (2, 4 if job.op != "queue_nce" else 64, job.channels)
    with warnings.catch_warnings(), pretend(job.arch) as launched, _tiles(job):
        warnings.simplefilter("ignore")  # contrastive_idm's advice about times
        for shape in job.shapes or (small,):
            case = Case(*shape, job.precision)
            with matmul_precision(case):
                phases = _call(op, case, MODES[job.op][job.mode], launched)
            found: dict[str, list[tuple[int, int]]] = {}
            for phase, launches in phases.items():
                found[phase] = []
                for one in launches:
                    key = hashlib.sha256(one.binary.cubin).hexdigest()
                    if key not in kernels:
                        kernels[key] = len(result.kernels)
                        result.kernels.append(_report(job, one, key))
                    grid = one.grid[0] * one.grid[1] * one.grid[2]
                    found[phase].append((kernels[key], grid))
            if job.shapes:
                result.launches[shape] = found
    return result


def _call(op, case: Case, options: dict[str, Any], launched: list) -> dict[str, list]:
    """Launches of forward and backward of the public function."""
    ours = op.providers("cuda")[0].build(case)
    args = op.inputs(case)
    launched.clear()
    value = ours(*args, **options)
    forward = list(launched)
    launched.clear()
    value.sum().backward()
    return {"forward": forward, "backward": list(launched)}


def _report(job: Job, one, digest: str) -> KernelReport:
    function = sass.functions(tools.disassemble(one.binary.cubin))[one.binary.name]
    return kernel_report(
        job.op,
        job.configuration,
        function,
        name=one.kernel,
        constants=dict(one.constants),
        warps=one.metadata.num_warps,
        stages=one.metadata.num_stages,
        usage=tools.usage(one.binary.cubin)[one.binary.name],
        shared=one.binary.shared,
        arch=job.arch,
        digest=digest,
    )


@contextlib.contextmanager
def _tiles(job: Job):
    """The op's choice of tiles, with the job's values replaced."""
    if not job.tiles:
        yield
        return
    from fastseq.ops.common import launch

    def changed(chosen, *args, **kwargs):
        tile = chosen(*args, **kwargs)
        # queue_nce's only kernel with tiles is called without a name.
        if isinstance(args[0], str) and job.kernel not in ("", args[0]):
            return tile
        return tile._replace(**dict(job.tiles))

    names = ["triton", *(["negatives"] if job.op == "scl" else [])]
    modules = [importlib.import_module(f"fastseq.ops.{job.op}.{name}") for name in names]
    before = [module.tiles for module in modules]
    for module in modules:
        module.tiles = partial(changed, module.tiles)
    launch.clear()
    try:
        yield
    finally:
        for module, chosen in zip(modules, before, strict=True):
            module.tiles = chosen
        launch.clear()


@cache
def tile_fields(op: str) -> tuple[str, ...]:
    return importlib.import_module(f"fastseq.ops.{op}.triton").Tiles._fields


def _soft_dtw(job: Job) -> Result:
    from fastseq.ops.soft_dtw import runtime

    try:
        cubin, names, how = _cuda(job.arch)
    except RuntimeError as error:
        return Result(job, [], {}, f"soft_dtw is left out: {error}")
    functions, usage = sass.functions(tools.disassemble(cubin)), tools.usage(cubin)
    kernels = [
        kernel_report(
            job.op,
            job.configuration,
            functions[name],
            name=f"soft_dtw_{what}_kernel",
            constants={"D": job.channels},
            warps=runtime.THREADS[what][0] // 32,
            stages=None,
            usage=usage[name],
            shared=runtime.SHARED["Embeddings"][what][0] + min(4 * job.channels, runtime.CENTRE[0]),
            arch=job.arch,
            digest=f"{what} {job.channels}",
        )
        for what, name in names.items()
    ]
    return Result(job, kernels, {shape: {} for shape in job.shapes}, how)


@cache
def _cuda(arch: int) -> tuple[bytes, dict[str, str], str]:
    """Machine code of csrc/soft_dtw, the names of its kernels for fp32 embeddings, and the compiler
    used.
    """
    from fastseq.ops.common import nvrtc
    from fastseq.ops.soft_dtw import runtime

    if nvcc := shutil.which("nvcc"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "kernels.cubin")
            # The flags of setup.py; line information does not change the code.
            command = [nvcc, "-std=c++17", "-O3", "-Icsrc", "-lineinfo"]
            command += [f"-arch=sm_{arch}{'a' if arch >= 90 else ''}", "-cubin"]
            command += ["csrc/soft_dtw/soft_dtw.cu", "-o", str(out)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc ended with {done.returncode}: {done.stderr.strip()}")
            cubin = out.read_bytes()
        version = subprocess.check_output([nvcc, "--version"], text=True)
        found = re.search(r"release (\S+),", version)
        names = {
            what: next(
                n for n in tools.usage(cubin) if re.search(rf"{what}_kernelI.*EmbeddingsIf", n)
            )
            for what in runtime.THREADS
        }
        return cubin, names, f"nvcc {found[1] if found else '?'}"
    wanted = {what: runtime.expression(what, "Embeddings", False) for what in runtime.THREADS}
    try:
        cubin, lowered = nvrtc.compile_kernels(
            runtime.SOURCE,
            nvrtc.sources("soft_dtw"),
            list(wanted.values()),
            divmod(arch, 10),
            ["-lineinfo"],
        )
    except OSError as error:
        raise RuntimeError(f"neither nvcc nor NVRTC is here ({error})") from None
    return cubin, dict(zip(wanted, lowered, strict=True)), "NVRTC"


def environment() -> None:
    """Environment of child processes: no interpreter, and one thread each."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
