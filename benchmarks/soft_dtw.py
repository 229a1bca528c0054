"""soft_dtw: shapes, inputs, providers, floors."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from benchmarks import soft_dtw_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.floors import Work
from benchmarks.soft_dtw_peers import GAMMA

MODES = ("forward", "both")
# The last CPU shape is measured for memory only; times are taken up to TIMED_PAIRS.
SHAPES = {
    "cpu": [(4, 480, 128), (32, 512, 64), (1, 2048, 128), (1, 4096, 128), (1, 8192, 128)],
    "cuda": [(4, 480, 128), (32, 512, 64), (1, 4096, 128), (1, 8192, 128), (8, 16384, 128)],
}
TIMED_PAIRS = {"cpu": 4096**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq numba", "cuda": "fastseq cuda"}
CALLED = {"cpu": ["fastseq numba"], "cuda": ["fastseq cuda"]}
# A call takes several seconds above this many cells; the wavefront's, above 2^23.
CPU_CELLS = 1 << 20
# The peers keep R in float32 and divide differences of its cells by gamma, so the longer the
# sequence, the fewer correct digits the gradient has. The relative error of pysdtw's gradient is
# 2e-4 at T = 480 and 1e-3 at 4096; that of the wavefront is 2e-3 and 0.18. Their values have to
# meet the usual tolerance.
LOST_DIGITS = 0.3


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random directions, like embeddings of norm 1 before training."""
    generator = torch.Generator().manual_seed(seed)

    def frames() -> Tensor:
        z = F.normalize(torch.randn(case.n, case.t, case.d, generator=generator), dim=-1)
        return z.to(case.device, case.dtype).requires_grad_()

    return frames(), frames()


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients in float64, by a backend that the tests compare with the reference. The
    reference itself takes half a minute at T = 480.
    """
    x, y = (z.detach().double().requires_grad_() for z in args)
    backend = "torch" if case.device == "cuda" else "numba"
    value = fastseq.soft_dtw(x, y, gamma=GAMMA, reduction="sum", backend=backend)
    return (value.detach(), *torch.autograd.grad(value, (x, y)))


def _fastseq(backend: str, case: Case):
    return partial(fastseq.soft_dtw, gamma=GAMMA, reduction="sum", backend=backend)


def _matrices(bytes_per_cell: int, case: Case) -> int:
    return bytes_per_cell * case.pairs


def _differences(case: Case) -> int:
    """Bytes of (x - y), its square and the gradients of both, each T x S x D."""
    return 4 * 4 * case.pairs * case.d


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = OURS[device].removeprefix("fastseq ")
    # The peers run on numba's own OpenMP threads.
    apart = {"graph": False, "own_process": True, "gradient_tolerance": LOST_DIGITS}
    return [
        Provider(OURS[device], partial(_fastseq, ours)),
        Provider("fastseq torch", partial(_fastseq, "torch"), cpu_pairs=CPU_CELLS),
        Provider(
            "wavefront",
            peers.build_wavefront,
            partial(_matrices, 45),
            cpu_pairs=1 << 23,
            gradient_tolerance=LOST_DIGITS,
        ),
        Provider("pysdtw", peers.build_pysdtw, partial(_matrices, 30), **apart),
        Provider("tslearn", peers.build_tslearn, _differences, cpu_pairs=CPU_CELLS, **apart),
        Provider("ddtw", peers.build_ddtw, _differences, cpu_pairs=CPU_CELLS, **apart),
        Provider(
            "ddtw, costs given",
            partial(peers.build_ddtw, costs=True),
            partial(_matrices, 56),
            **apart,
        ),
        Provider(
            "sdtw-cuda-torch",
            partial(peers.build_dtw_loss_functions, implementation="ron"),
            partial(_matrices, 28),
            **apart,
        ),
        Provider(
            "pytorch-softdtw-cuda",
            partial(peers.build_dtw_loss_functions, implementation="mag"),
            _differences,
            cpu_pairs=CPU_CELLS,
            **apart,
        ),
        Provider("flash-softdtw", peers.build_flash_softdtw),
    ]


# Clocks that a cell waits for its predecessors. Forward: shuffle, minimum, exp2, log2 and the
# additions between them. Backward: shuffle, multiplication and addition.
STEP_CLOCKS = {"forward": 97, "both": 97 + 45}


def work(case: Case, mode: str) -> Work:
    """Costs are formed once forward and once more backward, where their gradients take two more
    products. Each cell needs 3 special functions forward and 4 backward. Each direction has 2 T - 1
    steps that wait for each other.
    """
    flop = 2 * case.pairs * case.d
    products, exps, tensors = {"forward": (1, 3, 2), "both": (4, 7, 4)}[mode]
    moved = tensors * case.n * case.t * case.d * case.dtype.itemsize
    clocks = STEP_CLOCKS[mode] * (2 * case.t - 1)
    return Work(products * flop, exps * case.pairs, moved, clocks)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid: the costs, and in the backward their gradients."""
    return {"forward": 1, "both": 3}[mode] * 2 * case.pairs * case.d
