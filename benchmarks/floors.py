"""The least time that a case can take, from a device's peak rates or from a measured product."""

import time
from typing import NamedTuple

import torch


class Peaks(NamedTuple):
    """Rates per second, either reached in practice or derived from the clock."""

    bf16: float  # flop, dense products
    tf32: float
    memory: float  # bytes, as reached
    exp: float
    alu: float  # float32 instructions
    clock: float


class Work(NamedTuple):
    flop: float
    exps: float
    moved: float  # bytes read or written at least once
    clocks: float = 0.0  # clocks of instructions that wait for each other


# 132 SMs at 1.98 GHz; per clock 16 exp and 128 FP32 lanes. The SXM boards of both have the same
# chip.
_HOPPER = Peaks(790e12, 395e12, 0, 132 * 16 * 1.98e9, 132 * 128 * 1.98e9, 1.98e9)
# Keyed by the name that PyTorch reports. Memory rates as reached: 4.3 of 4.8 TB/s, 3.0 of 3.35. The
# H100 PCIe and NVL have other clocks and memories and were not measured for this table.
PEAKS = {
    "NVIDIA H200": _HOPPER._replace(memory=4.3e12),
    "NVIDIA H100 80GB HBM3": _HOPPER._replace(memory=3.0e12),
}
ALU_PER_EXP = 5  # scale, shift and accumulate around each exp


def floor_seconds(work: Work, precision: str, peaks: Peaks, overlap: bool = False) -> float:
    """Seconds for products, exps and the arithmetic around them, in sequence or perfectly
    overlapped.

    A float32 product at precision "highest" takes three tf32 products (tf32x3).
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
    """A square float32 product on the CPU, timed in the same rounds; its rate determines the
    floor.
    """

    def __init__(self) -> None:
        self.a, self.b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
        self.out = torch.empty(GEMM_SIZE, GEMM_SIZE)

    def __call__(self) -> dict[str, float]:
        start = time.perf_counter()
        torch.mm(self.a, self.b, out=self.out)
        return {"both": time.perf_counter() - start}
