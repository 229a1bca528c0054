"""Compile Triton kernels for GPUs that are not there and read what came out.

Triton's own ptxas needs no GPU. The work runs in a child process, because TRITON_INTERPRET=1, which
the tests set on machines without a GPU, turns every kernel of a process into an interpreted one.
As a program it reads jobs from standard input and writes results, both as JSON.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def job(module: str, kernel: str, args: dict, constants: dict, arch: int, **options) -> dict:
    """One kernel to compile: argument types as Triton spells them ("*bf16", "i32", "fp32"; None
    for an absent tensor), constexpr values, compute capability (90), warps and stages."""
    return {
        "module": module,
        "kernel": kernel,
        "args": args,
        "constants": constants,
        "arch": arch,
        "options": {"enable_fp_fusion": True, **options},
    }


def compile_all(jobs: list[dict], cache: Path) -> list[dict]:
    """Resources of each job: registers, stack, spills, shared, mma; or error."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
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
