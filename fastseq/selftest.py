"""``python -m fastseq.selftest``: compares each op and backend here with its definition.

Loss and gradients of each backend are compared with ``reference`` in float64. A backend passes when
its error is at most twice that of plain PyTorch (``reference``) in the same dtype, or within one
rounding of that dtype, whichever is larger. The exit code is 1 when anything fails.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastseq
from fastseq.ops.common.dispatch import BACKENDS, backend_status

# Relative L2 error that always passes: for fp64 and fp32 another order of summation; for half
# precision one rounding of the embeddings, which tensor cores multiply unchanged.
_FLOOR = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
}
_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Case:
    """One op: how to draw its differentiable inputs, how to call it, which backends it has."""

    op: str
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]  # float64, on the CPU
    call: Callable[..., Tensor]  # call(*inputs, backend=name) -> scalar
    dtypes: dict[str, tuple[torch.dtype, ...]]  # backend -> dtypes it computes in


def _scl_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, n, 48, generator=generator, dtype=torch.float64) for n in (97, 130))


def _scl(z1: Tensor, z2: Tensor, *, backend: str) -> Tensor:
    # Ragged, with one empty video: the cases where a kernel's masks matter.
    lengths = {"lengths1": [97, 0, 64], "lengths2": [130, 40, 65]}
    gauss = fastseq.scl_loss(z1, z2, **lengths, backend=backend)
    return gauss + fastseq.scl_loss(z1, z2, **lengths, target="sigmoid", backend=backend)


def _soft_dtw_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, n, 24, generator=generator, dtype=torch.float64) for n in (97, 70))


def _soft_dtw(x: Tensor, y: Tensor, *, backend: str) -> Tensor:
    lengths = {"lengths_x": [97, 0, 40], "lengths_y": [70, 30, 65]}
    plain = fastseq.soft_dtw(x, y, gamma=0.5, **lengths, backend=backend)
    banded = fastseq.soft_dtw(x, y, gamma=5.0, **lengths, bandwidth=4, backend=backend)
    softmax = fastseq.soft_dtw(x, y, gamma=0.5, cost="softmax", **lengths, backend=backend)
    return plain.sum() + banded.sum() + softmax.sum()


def _drop_dtw_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(
        torch.rand(3, *shape, generator=generator, dtype=torch.float64)
        for shape in ((9, 70), (70,))
    )


def _drop_dtw(cost: Tensor, drop_cost: Tensor, *, backend: str) -> Tensor:
    lengths = {"lengths_x": [9, 0, 4], "lengths_y": [70, 30, 65]}
    return fastseq.drop_dtw(cost, drop_cost, gamma=0.5, **lengths, backend=backend).sum()


def _sinkhorn(x: Tensor, y: Tensor, *, backend: str) -> Tensor:
    options = {"epsilon": 20.0, "iterations": 5, "prior_width": 0.3, "virtual_cost": 90.0}
    lengths = {"lengths_x": [97, 0, 64], "lengths_y": [130, 40, 65]}
    return fastseq.sinkhorn_alignment(x, y, **options, **lengths, backend=backend).sum()


def _tcc_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, n, 48, generator=generator, dtype=torch.float64) for n in (97, 130))


def _tcc(x: Tensor, y: Tensor, *, backend: str) -> Tensor:
    lengths = {"lengths_x": [97, 0, 64], "lengths_y": [130, 40, 65]}
    pairs = fastseq.tcc_loss(x, y, temperature=0.5, **lengths, backend=backend)
    classes = fastseq.tcc_loss(x, loss_type="classification", similarity="cosine", backend=backend)
    return pairs + classes


def _contrastive_idm_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(3, 97, 48, generator=generator, dtype=torch.float64) / 6,)


def _contrastive_idm(z: Tensor, *, backend: str) -> Tensor:
    t = torch.arange(97, device=z.device) / 25
    kwargs = {"lengths": [97, 0, 64], "margin": 3.0, "backend": backend}
    squared = fastseq.contrastive_idm(z, t, window=0.5, **kwargs)
    root = fastseq.contrastive_idm(z, t, window=0.5, distance="euclidean", **kwargs)
    return squared + root


def _queue_nce_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(70, *shape, generator=generator, dtype=torch.float64)
        for shape in ((48,), (3, 48))
    )


def _queue_nce(q: Tensor, positives: Tensor, *, backend: str) -> Tensor:
    # Cosines as a queue: i 37 mod 101 makes it equal on every machine and in every dtype.
    queue = (torch.arange(600 * 48, device=q.device) * 37 % 101 - 50).view(600, 48)
    queue = torch.nn.functional.normalize(queue.double(), dim=1).to(torch.bfloat16).to(q.dtype)
    unit = fastseq.queue_nce(q, positives, queue, backend=backend)
    return unit + fastseq.queue_nce(q, positives, queue, normalize=False, backend=backend)


_ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# One entry per op.
CASES = [
    Case(
        "contrastive_idm",
        _contrastive_idm_inputs,
        _contrastive_idm,
        {"torch": _ALL, "triton": _ALL[1:]},
    ),
    Case(
        "queue_nce",
        _queue_nce_inputs,
        _queue_nce,
        {"torch": _ALL, "triton": _ALL[1:]},
    ),
    Case("drop_dtw", _drop_dtw_inputs, _drop_dtw, {"torch": _ALL, "numba": _ALL}),
    Case("sinkhorn_alignment", _scl_inputs, _sinkhorn, {"torch": _ALL, "triton": _ALL[1:]}),
    Case("scl_loss", _scl_inputs, _scl, {"torch": _ALL, "triton": _ALL[1:]}),
    Case(
        "soft_dtw",
        _soft_dtw_inputs,
        _soft_dtw,
        {"torch": _ALL, "cuda": _ALL, "numba": _ALL},
    ),
    Case("tcc_loss", _tcc_inputs, _tcc, {"torch": _ALL, "triton": _ALL[1:]}),
]


def evaluate(
    case: Case, backend: str, dtype: torch.dtype, device: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(loss, gradients) of a case in float64 on the CPU, for inputs rounded to ``dtype``."""
    drawn = case.inputs(torch.Generator().manual_seed(0))
    # Every dtype below can represent the inputs, so only the arithmetic is compared.
    inputs = [x.to(torch.bfloat16).to(device, dtype).requires_grad_() for x in drawn]
    loss = case.call(*inputs, backend=backend)
    grads = torch.autograd.grad(loss, inputs)
    return loss.detach().double().cpu(), tuple(g.double().cpu() for g in grads)


def relative_error(got: tuple[Tensor, tuple[Tensor, ...]], want) -> float:
    """The largest relative L2 error of the loss and of each gradient; inf when one is NaN."""
    pairs = [(got[0], want[0]), *zip(got[1], want[1], strict=True)]
    errors = [((a - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in pairs]
    return max(e if e == e else float("inf") for e in errors)


def run(cases: list[Case], device: str) -> list[tuple[str, ...]]:
    """Rows (op, backend, dtype, error, allowed, verdict); verdicts are ok, FAILED or skipped."""
    rows = []
    for case in cases:
        exact = evaluate(case, "reference", torch.float64, "cpu")
        for backend in BACKENDS:
            if backend not in case.dtypes:
                continue
            status = backend_status(backend)
            if not status.available:
                rows.append((case.op, backend, "", "", "", f"skipped: {status.reason}"))
                continue
            where = "cpu" if backend == "numba" else device
            for dtype in case.dtypes[backend]:
                rows.append((case.op, backend, *_check(case, backend, dtype, where, exact)))
    return rows


def _check(case: Case, backend: str, dtype: torch.dtype, device: str, exact) -> tuple[str, ...]:
    plain = relative_error(evaluate(case, "reference", dtype, device), exact)
    allowed = max(2 * plain, _FLOOR[dtype])
    try:
        error = relative_error(evaluate(case, backend, dtype, device), exact)
    except Exception as problem:  # one broken backend must not hide the others
        text = str(problem).strip().splitlines() or [""]
        return _NAMES[dtype], "", "", f"FAILED: {type(problem).__name__}: {text[0]}"
    verdict = "ok" if error <= allowed else "FAILED"
    return _NAMES[dtype], f"{error:.1e}", f"{allowed:.1e}", verdict


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastseq.selftest",
        description="Compare every op with its definition, on this machine.",
    )
    parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"fastseq {fastseq.__version__}, torch {torch.__version__}, {where}")
    start = time.perf_counter()
    rows = run(CASES, device)
    for row in [("op", "backend", "dtype", "error", "allowed", ""), *rows]:
        print("{:18s} {:10s} {:6s} {:>8s} {:>8s}  {}".format(*row).rstrip())
    failed = sum(row[-1].startswith("FAILED") for row in rows)
    passed = sum(row[-1] == "ok" for row in rows)
    skipped = len(rows) - failed - passed
    seconds = time.perf_counter() - start
    print(f"{passed} ok, {failed} failed, {skipped} skipped in {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
