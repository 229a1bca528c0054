"""A provider in a child process, sampled in turns with the others. CPU only.

Two OpenMP runtimes in one process spin against each other: beside KeOps or numba's parallel loops,
every PyTorch call would take many times longer.
"""

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.case import Case, Unavailable, build
from benchmarks.gate import WrongResult, gate, matmul_precision
from benchmarks.timing import CPUCall, Sample

ROOT = Path(__file__).parents[1]


class Worker:
    """Each call returns one sample. The constructor checks the provider and raises the errors of
    gate() and build().
    """

    def __init__(self, module: str, provider: str, case: Case):
        command = [sys.executable, "-m", "benchmarks.worker", module, provider, *map(str, case)]
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            answer = self._answer()
            if "unavailable" in answer:
                raise Unavailable(answer["unavailable"])
            if "wrong" in answer:
                raise WrongResult(answer["wrong"])
        except BaseException:
            self.close()
            raise
        self.gradient_error: float = answer["gradient_error"]

    def __call__(self) -> Sample:
        self.child.stdin.write("sample\n")
        self.child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            _, errors = self.child.communicate()
            lines = errors.strip().splitlines() or [f"exit status {self.child.returncode}"]
            raise RuntimeError(lines[-1])
        return json.loads(line)

    def close(self) -> None:
        self.child.kill()
        self.child.communicate()


def _serve(module: str, name: str, case: Case, say) -> None:
    op = importlib.import_module(module)
    provider = next(p for p in op.providers(case.device) if p.name == name)
    args = op.inputs(case)
    with matmul_precision(case):
        try:
            fn = build(provider, case)
            error = gate(provider, case, fn, args, op.expected(case, args))
        except Unavailable as reason:
            say({"unavailable": str(reason)})
            return
        except WrongResult as reason:
            say({"wrong": str(reason)})
            return
        say({"gradient_error": error})
        call = CPUCall(fn, args, case.upstream)
        for _ in sys.stdin:
            say(call())


def main(argv: list[str]) -> None:
    module, provider, n, t, d, precision, device = argv
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # KeOps prints a greeting on stdout
        _serve(
            module,
            provider,
            Case(int(n), int(t), int(d), precision, device),
            lambda answer: print(json.dumps(answer), file=answers, flush=True),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
