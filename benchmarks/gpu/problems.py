"""fastseq's implementation of each op as the benchmarks call it; in a rehearsal, interpreted."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, op_benchmark
from benchmarks.gpu import record
from benchmarks.timing import gradients

OPS = ("scl", "contrastive_idm", "tcc", "queue_nce", "soft_dtw")
# Channels, and the N and T (for queue_nce: queries and rows) at which kernels are compiled in
# advance. scl has other tiles for long videos; queue_nce merges parts differently for many queries.
D = 128
TINY = {
    "scl": ((1, 70), (1, 1024)),
    "scl_identity": ((1, 1024),),
    "contrastive_idm": ((1, 70),),
    "tcc": ((1, 70),),
    "queue_nce": ((5, 600), (512, 9472)),
}


def case(op: str, shape: tuple[int, int, int], precision: str) -> Case:
    """The case; in a rehearsal a tiny one, in the precision in which the interpreter multiplies
    correctly.
    """
    if not record.dry():
        return Case(*shape, precision, "cuda")
    tiny = {"queue_nce": (5, 70, 16), "soft_dtw": (1, 9, 4)}.get(op, (1, 9, 16))
    return Case(*tiny, "fp32", "cpu")


def ours(op: str, case: Case) -> Callable[..., Tensor]:
    fn = op_benchmark(op).providers(case.device)[0].build(case)
    if not record.dry():
        return fn
    return partial(fn, backend="torch" if op == "soft_dtw" else "triton")


def expected(op: str, case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64."""
    if not (record.dry() and op == "soft_dtw"):
        return op_benchmark(op).expected(case, args)
    # On the CPU the benchmark would use numba, which compiles for half a minute.
    x, y = (z.detach().double().requires_grad_() for z in args)
    return loss_and_gradients(partial(ours(op, case), backend="reference"), (x, y), 1.0)


def loss_and_gradients(
    fn: Callable[..., Tensor], args: tuple[Tensor, ...], upstream: float
) -> tuple[Tensor, ...]:
    loss = fn(*args)
    return loss.detach(), *gradients(loss, args, upstream)


def synchronize() -> None:
    if not record.dry():
        torch.cuda.synchronize()
