"""Builds the CUDA extension ``fastseq._C`` from csrc/ if nvcc is found; see CONTRIBUTING.md.

PyTorch is neither imported nor included: kernels take raw pointers, so one build works with every
torch version and ``pip install .`` works under build isolation. All other settings of the package
are in pyproject.toml.

Environment:
  FASTSEQ_BUILD         auto (default): build when nvcc is found, never fail; cuda: build or fail;
                        none: leave the extension out
  TORCH_CUDA_ARCH_LIST  for example "8.0;9.0a;10.0+PTX"
  CUDA_HOME, CUDA_PATH  where to look for nvcc after PATH
  CXX                   host compiler for nvcc
  MAX_JOBS              number of parallel compilers (default: the number of cores)
  FASTSEQ_BUILD_VERBOSE 1: print the commands and ptxas' registers, spills and shared memory
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = ("8.0", "8.6", "8.9", "9.0a", "10.0")


class BuildError(Exception):
    """The extension cannot be built here; the message is one line."""


def find_nvcc(environ=os.environ):
    """Path of nvcc from PATH, CUDA_HOME or CUDA_PATH, or None."""
    on_path = shutil.which("nvcc", path=environ.get("PATH", os.defpath))
    if on_path:
        return on_path
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            found = shutil.which("nvcc", path=str(Path(environ[name]) / "bin"))
            if found:
                return found
    return None


def parse_arch_list(text, known):
    """``nvcc -gencode`` targets of an architecture list in PyTorch's notation.

    ``text``: entries like 8.0, 9.0a or 9.0+PTX, separated by blanks, commas or semicolons.
    ``known``: the plain architectures that this nvcc compiles for, as numbers (80, 90, ...).
    Returns pairs (virtual, code), machine code first. PTX always comes from the plain
    architecture, since PTX of an "a" architecture runs on that architecture alone.
    """
    code, ptx = [], []
    for entry in re.split(r"[\s,;]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: cannot read {entry!r}; expected entries like 8.0, 9.0a or "
                '9.0+PTX, for example TORCH_CUDA_ARCH_LIST="8.0;9.0a;10.0+PTX"'
            )
        number, suffix = int(match[1] + match[2]), match[3]
        if number not in known:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: this nvcc does not compile for {entry}; it knows "
                + ", ".join(f"{n // 10}.{n % 10}" for n in sorted(known))
            )
        code.append((f"compute_{number}{suffix}", f"sm_{number}{suffix}"))
        if match[4]:
            ptx.append((f"compute_{number}", f"compute_{number}"))
    return list(dict.fromkeys(code + ptx))


def default_arch_list(known):
    """The default architectures that this nvcc supports, and PTX of the newest for later GPUs."""
    entries = [a for a in DEFAULT_ARCHS if int(a.rstrip("a").replace(".", "")) in known]
    if not entries:
        raise BuildError(f"this nvcc compiles for none of {', '.join(DEFAULT_ARCHS)}: update CUDA")
    if entries[-1].endswith("a"):
        entries.append(entries[-1].rstrip("a"))
    return ";".join(entries) + "+PTX"


def decide(environ=os.environ, platform=sys.platform):
    """(nvcc or None, why the extension is left out), by FASTSEQ_BUILD and this machine."""
    mode = environ.get("FASTSEQ_BUILD", "auto").lower() or "auto"
    if mode not in ("auto", "cuda", "none"):
        raise SystemExit(f"FASTSEQ_BUILD must be auto, cuda or none, got {mode!r}")
    if mode == "none":
        return None, "FASTSEQ_BUILD=none"
    if not platform.startswith("linux"):
        nvcc, reason = None, f"it is built on Linux only, this is {platform}"
    else:
        nvcc, reason = find_nvcc(environ), "no nvcc on PATH, in CUDA_HOME or in CUDA_PATH"
    if nvcc is None and mode == "cuda":
        raise SystemExit(
            f"FASTSEQ_BUILD=cuda, but the extension cannot be built: {reason}. Install the CUDA "
            "toolkit (nvcc) or set CUDA_HOME to it; FASTSEQ_BUILD=auto builds without it."
        )
    return nvcc, "" if nvcc else reason


def say(text):
    print(f"fastseq: {text}", flush=True)


def say_left_out(reason):
    say(f"building without the CUDA extension ({reason}); every op keeps its other backends")


class BuildExt(build_ext):
    """Compiles every csrc/**/*.cu and *.cpp with nvcc; the CUDA runtime is linked statically."""

    def run(self):
        # bdist_wheel and the build command both call this.
        if getattr(self, "tried", False):
            return
        self.tried = True
        try:
            super().run()
        except BuildError as error:
            if os.environ.get("FASTSEQ_BUILD", "auto").lower() == "cuda":
                raise SystemExit(f"fastseq: {error}") from None
            say_left_out(error)
            for ext in self.extensions:  # remove the result of an earlier build
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []

    def build_extension(self, ext):
        nvcc, _ = decide()
        verbose = os.environ.get("FASTSEQ_BUILD_VERBOSE", "0") not in ("", "0")
        try:
            import pybind11
        except ImportError:
            raise BuildError("the package pybind11 is missing: pip install pybind11") from None
        jobs = max_jobs()
        known = known_archs(nvcc)
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or default_arch_list(known)
        targets = parse_arch_list(archs, known)
        # Kernels first: they take longest, and a failure stops those that have not started.
        sources = sorted(map(Path, ext.sources), key=lambda source: source.suffix != ".cu")
        num_cuda = sum(source.suffix == ".cu" for source in sources)

        common = [nvcc, "-std=c++17", "-O3", "-Icsrc"]
        common += ["-Xcompiler", "-fPIC,-Wall,-fvisibility=hidden"]
        if os.environ.get("CXX"):
            common += ["-ccbin", shlex.split(os.environ["CXX"])[0]]
        device = ["-lineinfo", "-Xptxas", "-v"]
        device += [f"-gencode=arch={virtual},code={code}" for virtual, code in targets]
        device += ["--threads", str(max(1, jobs // max(1, num_cuda)))]
        host = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        host += [f'-DFASTSEQ_ARCH_LIST="{archs}"']

        say(f"compiling {len(sources)} files for {archs} with {nvcc}, {jobs} at a time (MAX_JOBS)")
        done = 0

        def compile_one(source):
            nonlocal done
            command = common + (device if source.suffix == ".cu" else host)
            obj, fresh = self.compile_source(source, command)
            done += 1
            say(f"[{done}/{len(sources)}] {source}" + ("" if fresh else " (unchanged)"))
            if verbose:
                print(obj.with_suffix(".log").read_text(), flush=True)
            return obj

        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, sources))

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # The runtime's symbols stay hidden: torch brings its own CUDA runtime.
        link = [nvcc, "-shared", "-cudart=static", "-Xlinker", "--exclude-libs,ALL"]
        execute([*link, *map(str, objects), "-o", str(target)], "linking fastseq._C")
        say(f"built {target.name}")

    def compile_source(self, source, command):
        """Compile unless an object of the same command is newer than all its possible sources."""
        key = hashlib.sha256(shlex.join([*command, sys.version]).encode()).hexdigest()[:12]
        obj = Path(self.build_temp) / source.with_suffix(f"{source.suffix}.{key}.o")
        obj.parent.mkdir(parents=True, exist_ok=True)
        headers = [p for p in Path("csrc").rglob("*") if p.suffix in (".h", ".hpp", ".cuh")]
        newest = max(p.stat().st_mtime for p in [source, *headers])
        if not self.force and obj.exists() and obj.stat().st_mtime > newest:
            return obj, False
        part = obj.with_suffix(".part.o")
        command = [*command, "-c", str(source), "-o", str(part)]
        output = execute(command, f"compiling {source}")
        obj.with_suffix(".log").write_text(f"{shlex.join(command)}\n{output}")
        part.replace(obj)
        return obj, True


def max_jobs(environ=os.environ):
    text = environ.get("MAX_JOBS", "")
    if text and (not text.isdigit() or int(text) == 0):
        raise BuildError(f"MAX_JOBS must be a positive integer, got {text!r}")
    return int(text) if text else (os.cpu_count() or 1)


def known_archs(nvcc):
    listing = execute([nvcc, "--list-gpu-arch"], "listing nvcc's architectures")
    return {int(number) for number in re.findall(r"compute_(\d+)$", listing, re.MULTILINE)}


def execute(command, what):
    """Run a command and return its output; BuildError carries its first error."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if result.returncode:
        print(f"{shlex.join(command)}\n{result.stdout}", file=sys.stderr, flush=True)
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        first = next((x for x in lines if re.search("error|fatal", x, re.I)), "no message")
        raise BuildError(f"{what} failed: {first}")
    return result.stdout


class BuildPy(build_py):
    """Packs the kernels' headers too: without the extension they are compiled at run time. An
    editable install finds them in the checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for header in sorted(Path("csrc").rglob("*.cuh")):
            target = Path(self.build_lib) / "fastseq" / header
            self.mkpath(str(target.parent))
            self.copy_file(str(header), str(target))


class BdistWheel(bdist_wheel):
    """Compiles first: only then is it known whether the wheel depends on a platform."""

    def run(self):
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def extensions():
    nvcc, reason = decide()
    if nvcc is None:
        # A frontend asks for metadata in separate runs: print this once, in the run that builds.
        if not {"egg_info", "dist_info", "sdist"} & set(sys.argv):
            say_left_out(reason)
        return []
    found = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cu", ".cpp"))
    return [Extension("fastseq._C", [str(p.relative_to(ROOT)) for p in found])]


if __name__ == "__main__":
    os.chdir(ROOT)
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "bdist_wheel": BdistWheel},
    )
