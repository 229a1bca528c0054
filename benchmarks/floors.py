"""The least time a case can take: from a device's peak rates, or from a measured product."""

import time
from typing import NamedTuple

import torch


class Peaks(NamedTuple):
    """Rates that were reached or follow from the clock, per second."""

    bf16: float  # flop, dense products
    tf32: float
    memory: float  # bytes
    exp: float
    alu: float  # float32 instructions
    clock: float


class Work(NamedTuple):
    flop: float
    exps: float
    moved: float  # bytes that go in and out at least once
    clocks: float = 0.0  # of instructions that wait for each other


# 132 SMs at 1.98 GHz: 16 exp, 128 FP32 lanes a clock. The SXM boards of both have the same chip.
_HOPPER = Peaks(790e12, 395e12, 0, 132 * 16 * 1.98e9, 132 * 128 * 1.98e9, 1.98e9)
# Keyed by what PyTorch calls the device. Memory as reached: 4.3 of 4.8 TB/s, 3.0 of 3.35. The H100
# PCIe and NVL have other clocks and memories, and nobody has measured them for this table.
PEAKS = {
    "NVIDIA H200": _HOPPER._replace(memory=4.3e12),
    "NVIDIA H100 80GB HBM3": _HOPPER._replace(memory=3.0e12),
}
ALU_PER_EXP = 5  # scale, shift and accumulate around each exp


def floor_seconds(work: Work, precision: str, peaks: Peaks, overlap: bool = False) -> float:
    """Products, exps and the arithmetic around them one after another, or perfectly overlapped.

    Float32 at precision "highest" takes three tf32 products each (tf32x3).
    """
    flop = work.flop * (3 if precision == "fp32" else 1)
    products = flop / (peaks.bf16 if precision in ("bf16", "fp16") else peaks.tf32)
    exps = work.exps / peaks.exp
    least = max(work.moved / peaks.memory, work.clocks / peaks.clock)
    if overlap:
        return max(products, exps, least)
    arithmetic = work.exps * ALU_PER_EXP / peaks.alu
    return max(products + exps + arithmetic, least)


GEMM_SIZE = 1024
GEMM_FLOP = 2 * GEMM_SIZE**3


class Gemm:
    """One square float32 product on the CPU; timed among the providers, its rate is the floor."""

    def __init__(self) -> None:
        self.a, self.b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
        self.out = torch.empty(GEMM_SIZE, GEMM_SIZE)

    def __call__(self) -> dict[str, float]:
        start = time.perf_counter()
        torch.mm(self.a, self.b, out=self.out)
        return {"both": time.perf_counter() - start}
