"""scl_loss with SoftCLT's sigmoid targets beside SoftCLT's dense form of the same loss.

``python -m benchmarks.scl_targets``: checked, timed in turns, with the peak memory of each, as
`benchmarks.run` does for `benchmarks.scl`. Rows of the Gaussian: ``python -m benchmarks.run``.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastseq
from benchmarks import results, scl_peers
from benchmarks.case import Case, Provider
from benchmarks.run import choose_device, parse_shape, run_case
from benchmarks.scl import (
    CALLED,
    MODES,
    OURS,
    PRECISIONS,
    TIMED_PAIRS,
    least_flop,
    work,
)
from benchmarks.scl import inputs as unscaled

__all__ = ["CALLED", "MODES", "OURS", "PRECISIONS", "TIMED_PAIRS", "inputs", "least_flop", "work"]

SHAPES = {
    "cpu": [(8, 240, 128), (2, 1024, 128), (1, 2048, 128)],
    "cuda": [(8, 480, 128), (8, 1024, 128), (4, 4096, 128)],
}
# tau = 1 / sqrt(variance) of SoftCLT; its temporal loss has unnormalised features at temperature 1.
OPTIONS = {
    "target": "sigmoid",
    "variance": 4.0,
    "negatives": "video",
    "normalize": False,
    "temperature": 1.0,
    "objective": "ce",
}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of `benchmarks.scl`, scaled, so that scores without normalisation are about sqrt(D).
    Larger ones would leave most of the softmax to denormal numbers, which are slow on a CPU.
    """
    z1, z2, t1, t2 = unscaled(case, seed)
    z1, z2 = ((z.detach() / case.d**0.25).requires_grad_() for z in (z1, z2))
    return z1, z2, t1, t2


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, by the reference."""
    z1, z2 = (z.detach().double().requires_grad_() for z in args[:2])
    loss = fastseq.scl_loss(z1, z2, *args[2:], backend="reference", **OPTIONS)
    return (loss.detach(), *torch.autograd.grad(loss, (z1, z2)))


def softclt(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    t = torch.cat([t1, t2], 1).float()
    weights = torch.sigmoid(-(t[:, :, None] - t[:, None]).abs() / OPTIONS["variance"] ** 0.5)
    return scl_peers.softclt(
        z1.float(),
        z2.float(),
        2 * weights,
        own_targets=False,
        without_itself=False,
        normalised=True,
    )


def _matrices(case: Case) -> int:
    return 8 * 4 * 4 * case.pairs


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    out = [
        Provider(
            f"fastseq {name}",
            lambda case, backend=name: partial(fastseq.scl_loss, backend=backend, **OPTIONS),
        )
        for name in ours
    ]
    # scl_loss sets weights below 1.2e-6 to 0.
    return [*out, Provider("SoftCLT", lambda case: softclt, _matrices, tolerance=1e-4)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scl_targets", description=__doc__)
    parser.add_argument("--shape", type=parse_shape, action="append", help="N,T,D; repeatable")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of timing per case")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    device = choose_device()
    failed: list[str] = []
    for precision in PRECISIONS[device]:
        rows = []
        for shape in options.shape or SHAPES[device]:
            case = Case(*shape, precision, device)
            new, wrong = run_case("scl_targets", case, options.results, budget_s=options.budget)
            rows += new
            failed += wrong
        print(results.table([dict.fromkeys(results.COLUMNS, "") | row for row in rows]))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
