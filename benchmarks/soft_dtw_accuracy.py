"""``python -m benchmarks.soft_dtw_accuracy``: table of the error of gradients computed in float32.

Relative L2 error of dx against float64 for one pair of T x 128. Every peer gets costs from direct
differences. The last column is pysdtw unmodified, with |x|^2 + |y|^2 - 2 <x, y>.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from benchmarks.case import Case, Unavailable
from benchmarks.gate import relative
from benchmarks.soft_dtw_peers import build_pysdtw, build_tslearn

DATA = {
    "unit vectors": lambda z: F.normalize(z, dim=-1),
    "randn": lambda z: z,
    "randn + 10": lambda z: z + 10,
}


def _direct(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _gradient(fn, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(fn(x, y).sum(), x)[0]


def _row(case: Case, data: str, gamma: float) -> str:
    z = torch.randn(2, case.n, case.t, case.d, generator=torch.Generator().manual_seed(0))
    x, y = DATA[data](z).unbind()

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return fastseq.soft_dtw(x, y, gamma=gamma)

    want = _gradient(ours, x.double(), y.double())
    direct = {"gamma": gamma, "dist_func": _direct}
    errors = []
    for build, options in (
        (lambda case: ours, {}),
        (build_pysdtw, direct),
        (build_tslearn, direct),
        (build_pysdtw, {"gamma": gamma}),
    ):
        try:
            errors.append(f"{relative(_gradient(build(case, **options), x, y), want):.1e}")
        except Unavailable:
            errors.append("-")
    return f"| {case.t} | {data} | {gamma} | " + " | ".join(errors) + " |"


def main() -> None:
    print("| T | frames | gamma | fastseq | pysdtw | tslearn | pysdtw unmodified |")
    print("|---|---|---|---|---|---|---|")
    for frames in (480, 4096):
        for data in DATA:
            for gamma in (0.1, 0.01):
                print(_row(Case(1, frames, 128), data, gamma), flush=True)


if __name__ == "__main__":
    main()
