"""Compiles Triton kernels for GPUs that this machine lacks and reads their resources.

Triton's own ptxas needs no GPU. The work runs in a child process, because TRITON_INTERPRET=1, which
the tests set on machines without a GPU, makes every kernel of a process an interpreted one. Run as
a program, this file reads jobs from standard input and writes results, both as JSON.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
ARCHS = (80, 90, 100)
# Shared memory available to one program, in bytes; sm_86 and sm_89 run the code for sm_80.
SHARED_LIMIT = {80: 101_376, 90: 232_448, 100: 232_448}
# Element type of the operands, and input_precision of tl.dot, for which tensor cores multiply.
PRECISIONS = {
    "bf16": ("bf16", "tf32"),
    "fp16": ("fp16", "tf32"),
    "tf32": ("fp32", "tf32"),
    "tf32x3": ("fp32", "tf32x3"),
}
# bf16 and tf32x3 are compiled for every D. fp16 and tf32 have the same tiles and are compiled for
# the most common D only.
CHANNELS = {
    "bf16": (16, 64, 128, 256, 512),
    "tf32x3": (16, 64, 128, 256, 512),
    "fp16": (64, 128, 256),
    "tf32": (64, 128, 256),
}
ASIDE = {tokenize.COMMENT, tokenize.NL}
TENSOR_CORE = {"HMMA", "HGMMA", "UTCHMMA"}


class Table:
    """The committed resources of an op's kernels, valid for the Triton version that the file names.

    A case is (kernel, precision, channels, architecture, options of ``make``). ``make`` returns the
    job of a case, ``name`` its key in the table. Rows of ``core`` also have a digest of what they
    were compiled from: while the digest matches, they are read and not compiled again.
    ``spilling``: the rows that are known to spill registers.
    """

    def __init__(
        self,
        file: str,
        make: Callable[..., dict],
        name: Callable[..., str],
        core: list[tuple],
        spilling: frozenset[str] = frozenset(),
    ):
        self.path, self.make, self.name, self.core = DATA / file, make, name, core
        self.spilling = spilling

    def measure(self, cases: list[tuple]) -> dict[str, dict]:
        results = compile_all([self.job(case) for case in cases]) if cases else []
        return {self.name(*c): r for c, r in zip(cases, results, strict=True)}

    def job(self, case: tuple) -> dict:
        return self.make(*case[:4], **case[4])

    def check(self, cases: list[tuple], multiplies: Callable[..., bool] = lambda *_: True) -> None:
        """Only the known rows spill, tensor cores are used where the case ``multiplies``, and
        nothing has changed.
        """
        import triton

        table = json.loads(self.path.read_text())
        rows = table["kernels"] if triton.__version__ == table["triton"] else {}
        known = {self.name(*c): row_of(rows, self.name(*c), self.job(c)) for c in cases}
        anew = [case for case in cases if known[self.name(*case)] is None]
        changed = sum("digest" in rows.get(self.name(*case), {}) for case in anew)
        if changed:
            command = f"PYTHONPATH=.:tests python -m {self.make.__module__} core"
            warnings.warn(f"kernels compiled anew: {changed}; to renew: {command}", stacklevel=2)
        results = {key: row for key, row in known.items() if row} | self.measure(anew)
        for case in cases:
            key = self.name(*case)
            got = results[key]
            fits(key, got, key in self.spilling)
            assert got["shared"] <= SHARED_LIMIT[case[3]], f"{key}: {got}"
            if multiplies(*case):
                assert TENSOR_CORE & set(got["mma"]), f"{key}: {got}"
            if rows:
                assert got == without_digest(rows[key]), f"{key}: update {self.path.name}"

    def update(self, every: list[tuple], *words: str) -> None:
        """Compile ``every`` case and write the table. With words, compile only the cases whose
        names contain all of them ("core" selects those of the core) and keep the other rows.
        """
        os.environ["TRITON_INTERPRET"] = "1"  # this process only names the tiles
        import triton

        core = {self.name(*c) for c in self.core}
        unique = {self.name(*c): c for c in [*every, *self.core]}
        marks = {key: {*key.split(), *(["core"] if key in core else [])} for key in unique}
        some = [c for key, c in unique.items() if set(words) <= marks[key]]
        if not some:
            raise SystemExit(f"no kernel's name has all of: {' '.join(words)}")
        kernels = self.measure(some)
        for case in some:
            key = self.name(*case)
            if key in core:
                kernels[key]["digest"] = digest(self.job(case))
        if len(some) < len(unique):
            table = json.loads(self.path.read_text())
            if table["triton"] != triton.__version__:
                raise SystemExit(f"{self.path} is of Triton {table['triton']}: update all of it")
            kernels = {k: v for k, v in table["kernels"].items() if k in unique} | kernels
        for key, got in kernels.items():
            if "error" in got or (got["spills"] > 0) != (key in self.spilling):
                print(key, got)
        rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(kernels.items())]
        text = f'{{\n  "triton": "{triton.__version__}",\n  "kernels": {{\n'
        self.path.write_text(text + ",\n".join(rows) + "\n  }\n}\n")


def row_of(rows: dict, key: str, job: dict) -> dict | None:
    """The row of a job if nothing has changed since it was compiled."""
    row = rows.get(key, {})
    return without_digest(row) if row.get("digest") == digest(job) else None


def without_digest(row: dict) -> dict:
    return {k: v for k, v in row.items() if k != "digest"}


def digest(job: dict) -> str:
    """Digest of the job, of the code of its op's kernels (without comments) and of the way to
    measure.
    """
    folder = ROOT.joinpath(*job["module"].split(".")).parent
    files = [*folder.glob("triton_*.py"), *(folder.parent / "common").glob("triton_*.py")]
    words = [json.dumps(job, sort_keys=True), *map(inspect.getsource, (_compile, _resources))]
    for path in sorted(files):
        with path.open("rb") as file:
            words += [t.string for t in tokenize.tokenize(file.readline) if t.type not in ASIDE]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def fits(key: str, got: dict, spilling: bool = False) -> None:
    """The kernel compiles, and its registers do not spill unless the row is known to."""
    assert "error" not in got, f"{key}: {got['error']}"
    if spilling:
        assert got["spills"] > 0, f"{key} does not spill any more: {got}"
    else:
        assert got["stack"] == got["spills"] == 0, f"{key}: {got}"


def job(module: str, kernel: str, args: dict, constants: dict, arch: int, **options) -> dict:
    """One kernel to compile: argument types in Triton's spelling ("*bf16", "i32", "fp32"; None for
    an absent tensor), constexpr values, compute capability (90), warps and stages.
    """
    return {
        "module": module,
        "kernel": kernel,
        "args": args,
        "constants": constants,
        "arch": arch,
        "options": {"enable_fp_fusion": True, **options},
    }


def compile_all(jobs: list[dict]) -> list[dict]:
    """Resources of each job: registers, stack, spills, shared, mma; or error.

    Kernels that were compiled before come from Triton's cache, keyed by sources, options and
    versions.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    child = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(jobs),
        env=env,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"offline compilation ended with {child.returncode}:\n{child.stderr}")
    return json.loads(child.stdout)


def _compile(one: dict) -> dict:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(one["module"]), one["kernel"])
    constants = one["constants"] | {k: None for k, v in one["args"].items() if v is None}
    signature = {k: "constexpr" if k in constants else one["args"][k] for k in kernel.arg_names}
    pointers = [i for i, k in enumerate(kernel.arg_names) if signature[k].startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    target = GPUTarget("cuda", one["arch"], 32)
    compiled = triton.compile(source, target=target, options=one["options"])
    return {"shared": compiled.metadata.shared, **_resources(compiled.asm["cubin"])}


def _resources(cubin: bytes) -> dict:
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], text=True
        )
        sass = subprocess.check_output([tools / "nvdisasm", "-c", file.name], text=True)
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage).group(1)) for k in ("REG", "STACK"))
    ops = re.findall(r"^\s+(?:/\*\w+\*/)?\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)", sass, re.MULTILINE)
    return {
        "registers": registers,
        "stack": stack,
        "spills": sum(op in ("STL", "LDL") for op in ops),
        "mma": {k: n for k in ("HMMA", "HGMMA", "UTCHMMA", "FFMA") if (n := ops.count(k))},
        "wide_copies": len(re.findall(r"LDGSTS\S*\.128", sass)),
    }


def _main() -> None:
    results = []
    for one in json.load(sys.stdin):
        try:
            results.append(_compile(one))
        except Exception as error:
            while error.__cause__ is not None:  # the innermost frame names the cause
                error = error.__cause__
            results.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    _main()
