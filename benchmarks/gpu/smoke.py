"""Phase smoke: ``python -m benchmarks.gpu.smoke OP ...``, forward and backward on small shapes.

Each result is compared with float64 and with a second call (same bits), and replayed by a CUDA
graph. soft_dtw also runs without the flags by which its thread blocks wait for each other. Each op
has its own process, so that one that hangs does not stop the others; a rehearsal runs several in
one.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from benchmarks.case import Case, op_benchmark
from benchmarks.gate import matmul_precision, relative
from benchmarks.gpu import problems, record
from benchmarks.timing import captured

# Largest relative error of the loss and of the gradients; more is a bug, not rounding.
ALLOWED = {"bf16": (2e-3, 3e-2), "fp16": (1e-3, 1e-2), "fp32": (1e-5, 1e-4)}
SHAPES = {
    "queue_nce": [(33, 1500, 128), (70, 700, 48)],
    "soft_dtw": [(2, 70, 40), (3, 200, 128)],
}
WITHOUT_FLAGS = [(4, 480, 128), (32, 300, 64), (300, 64, 8)]


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def against_float64(name: str, op: str, case: Case) -> None:
    fn, args = problems.ours(op, case), op_benchmark(op).inputs(case)
    want = problems.expected(op, case, args)
    times, got = [], []
    for _ in range(2):
        problems.synchronize()
        start = time.perf_counter()
        got.append(problems.loss_and_gradients(fn, args, case.upstream))
        problems.synchronize()
        times.append(time.perf_counter() - start)
    loss, *grads = got[0]
    off = relative(loss, want[0])
    pairs = zip(grads, want[1:], strict=True)
    # The built-in max may skip a NaN.
    worst = float(torch.tensor([relative(g / case.upstream, w) for g, w in pairs]).max())
    close = off <= ALLOWED[case.precision][0] and worst <= ALLOWED[case.precision][1]
    bits = same(*got)
    record.say(
        "smoke",
        name,
        ok=close and bits,
        loss_error=f"{off:.1e}",
        gradient_error=f"{worst:.1e}",
        same_bits=bits,
        first_s=round(times[0], 2),
        second_ms=round(times[1] * 1e3, 3),
    )


def graph_replay(name: str, op: str, case: Case) -> None:
    """A captured forward and backward returns what eager returns, also for other values."""
    fn, args = problems.ours(op, case), op_benchmark(op).inputs(case)
    run = partial(problems.loss_and_gradients, fn, args, case.upstream)
    run()
    graph, got = captured(run)
    with torch.no_grad():
        for x in args:
            if x.requires_grad:
                x.copy_(0.1 * torch.randn_like(x))
    graph.replay()
    problems.synchronize()
    bits = same(got, run())
    record.say("smoke", name, ok=bits, same_bits=bits)


def without_flags(name: str, op: str, case: Case) -> None:
    """One launch per strip needs no flags and must return the same bits."""
    fn, args = problems.ours(op, case), op_benchmark(op).inputs(case)
    got = [problems.loss_and_gradients(fn, args, case.upstream) for _ in range(5)]
    os.environ["FASTSEQ_SOFT_DTW_DEBUG"] = "1"
    try:
        want = problems.loss_and_gradients(fn, args, case.upstream)
    finally:
        os.environ["FASTSEQ_SOFT_DTW_DEBUG"] = "0"
    bits = all(same(g, want) for g in got)
    record.say("smoke", name, ok=bits, same_bits=bits)


def jobs(op: str) -> Iterator[record.Job]:
    precisions = ["fp32"] if op == "soft_dtw" else ["bf16", "fp32", "fp16"]
    shapes = SHAPES.get(op, [(2, 100, 128), (2, 77, 48)])
    checks = [(against_float64, shape, precisions[0]) for shape in shapes]
    # The second shape only once: every configuration is a compilation.
    checks += [(against_float64, shapes[0], precision) for precision in precisions[1:]]
    checks.append((graph_replay, shapes[0], precisions[0]))
    if op == "soft_dtw":
        checks += [(without_flags, shape, "fp32") for shape in WITHOUT_FLAGS]
    if record.dry():
        checks = [check for check in checks if check[0] is not graph_replay][:1]
    for check, shape, precision in checks:
        case = problems.case(op, shape, precision)
        name = f"{op} {case} {check.__name__}"
        yield record.Job(name, partial(_checked, check, name, op, case), 3.0)


def _checked(check, name: str, op: str, case: Case) -> None:
    with matmul_precision(case):
        check(name, op, case)


def main(ops: list[str]) -> None:
    if "soft_dtw" in ops and not record.dry():
        from fastseq.ops.soft_dtw import cuda

        record.say("smoke", "soft_dtw kernels from", module=cuda._build().__name__)
    record.attempt("smoke", chain.from_iterable(map(jobs, ops)))


if __name__ == "__main__":
    main(sys.argv[1:])
