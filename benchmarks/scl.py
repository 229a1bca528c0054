"""scl_loss: shapes, inputs, providers, floors."""

from functools import partial

import torch
from torch import Tensor

import fastseq
from benchmarks import scl_peers as peers
from benchmarks.case import Case, Provider
from benchmarks.floors import Work

MODES = ("forward", "backward", "both")
# The last CPU shape is measured for memory only; times are taken up to TIMED_PAIRS.
SHAPES = {
    "cpu": [(8, 240, 128), (2, 2048, 128), (1, 4096, 128), (1, 8192, 128)],
    "cuda": [
        (8, 240, 128),
        (8, 480, 128),
        (8, 1024, 128),
        (4, 4096, 128),
        (1, 16384, 128),
        (1, 65536, 128),
    ],
}
TIMED_PAIRS = {"cpu": 4096**2, "cuda": 1 << 40}
PRECISIONS = {"cpu": ["fp32"], "cuda": ["bf16", "fp16", "tf32", "fp32"]}
# The ratios are relative to these.
OURS = {"cpu": "fastseq torch", "cuda": "fastseq triton"}
CALLED = {"cpu": ["fastseq torch", "eager"], "cuda": ["fastseq triton", "fastseq torch", "eager"]}


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two views with random embeddings and T sorted frames out of 1.25 T. As in a training step,
    each view and video samples its own frames.
    """
    generator = torch.Generator().manual_seed(seed)
    span = case.t + case.t // 4

    def view() -> tuple[Tensor, Tensor]:
        z = torch.randn(case.n, case.t, case.d, generator=generator).to(case.device, case.dtype)
        t = torch.rand(case.n, span, generator=generator).argsort(1)[:, : case.t].sort(1).values
        return z.requires_grad_(), t.to(case.device)

    (z1, t1), (z2, t2) = view(), view()
    return z1, z2, t1, t2


def expected(case: Case, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, by the reference. Where its matrices do not fit in memory, by
    the blockwise backend, which the tests compare with the reference.
    """
    backend = "reference" if dense(case) else "torch"
    z1, z2 = (z.detach().double().requires_grad_() for z in args[:2])
    loss = fastseq.scl_loss(z1, z2, *args[2:], backend=backend)
    return (loss.detach(), *torch.autograd.grad(loss, (z1, z2)))


def dense(case: Case) -> bool:
    """Whether the reference's float64 matrices fit in memory."""
    return case.pairs <= (1 << 24 if case.device == "cpu" else 1 << 28)


def _fastseq(backend: str, case: Case):
    return partial(fastseq.scl_loss, backend=backend)


def _square_matrices(alive: int, case: Case) -> int:
    return alive * 4 * case.pairs


def _released_matrices(case: Case) -> int:
    return 15 * 4 * (2 * case.n * case.t) ** 2


def providers(device: str) -> list[Provider]:
    """All providers, fastseq's own first."""
    ours = ["triton", "torch"] if device == "cuda" else ["torch"]
    out = [Provider(f"fastseq {name}", partial(_fastseq, name)) for name in ours]
    out += [
        Provider("eager", lambda case: peers.eager, partial(_square_matrices, 8)),
        Provider("torch.compile", peers.build_compiled, partial(_square_matrices, 4)),
        # Its epsilon changes the gradient by up to 1.3 % at T = 4096.
        Provider(
            "released", peers.build_released, _released_matrices, tolerance=0.05, cpu_pairs=1 << 24
        ),
        Provider("KeOps", peers.build_keops, cpu_pairs=1 << 20, graph=False, own_process=True),
    ]
    if device == "cuda":
        out.append(Provider("FlexAttention", peers.build_flex))
    return out


def work(case: Case, mode: str) -> Work:
    """Work of a kernel in which each direction owns its rows, without atomics: 2 products for the T
    x T scores forward and 4 backward, and one exp for each score formed.
    """
    flop = 2 * case.pairs * case.d
    products, exps = {"forward": (2, 2), "backward": (4, 2), "both": (6, 4)}[mode]
    tensors = {"forward": 2, "backward": 4, "both": 4}[mode]  # z1, z2 in; gradients out
    moved = tensors * case.n * case.t * case.d * case.dtype.itemsize
    return Work(products * flop, exps * case.pairs, moved)


def least_flop(case: Case, mode: str) -> int:
    """Products that no method can avoid: the scores; in the backward the scores again and two
    more.
    """
    return {"forward": 1, "backward": 3, "both": 4}[mode] * 2 * case.pairs * case.d
