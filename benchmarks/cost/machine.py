"""Assumptions of the time model: limits of the architectures, cards, rates and latencies.

Every constant of the model is in this file, and the command prints them with its predictions.
Limits are from the CUDA programming guide. Rates and latencies are typical figures for Hopper from
the literature. None was fitted to a measurement, because a fit to one kernel would hide errors of
the model.
"""

from typing import NamedTuple


class Architecture(NamedTuple):
    """Limits of one multiprocessor."""

    registers: int
    shared: int  # bytes, all thread blocks together
    reserved: int  # additional bytes that each thread block occupies
    warps: int
    blocks: int


ARCHITECTURES = {
    80: Architecture(65536, 167936, 1024, 64, 32),
    86: Architecture(65536, 102400, 1024, 48, 16),
    89: Architecture(65536, 102400, 1024, 48, 24),
    90: Architecture(65536, 233472, 1024, 64, 32),
    100: Architecture(65536, 233472, 1024, 64, 32),
}
REGISTER_UNIT = 256  # granularity of the registers of a warp
SHARED_UNIT = 128
SCHEDULERS = 4  # of a multiprocessor; each warp belongs to one of them


class Card(NamedTuple):
    arch: int
    processors: int
    clock: float  # Hz under load


# Keyed by the name that PyTorch reports.
CARDS = {
    "NVIDIA H100 80GB HBM3": Card(90, 132, 1.755e9),
    "NVIDIA H200": Card(90, 132, 1.755e9),
    "NVIDIA A100-SXM4-80GB": Card(80, 108, 1.41e9),
}

CONSTANTS = {
    "busy": (0.8, "instructions per clock that a scheduler with enough warps issues"),
    "half_clocks": (2.0, "scheduler, one integer or predicate instruction: 16 lanes per clock"),
    "alu_clocks": (5.0, "latency of an arithmetic instruction"),
    "long_clocks": (23.0, "latency of MUFU, conversions and shuffles"),
    "shared_clocks": (29.0, "latency of a load from shared memory"),
    "load_clocks": (300.0, "latency of a load from L2"),
    "again_clocks": (40.0, "latency of a load from L1, where a loop reads the same data again"),
    "copy_clocks": (450.0, "latency of an asynchronous copy from L2 to shared memory"),
    "barrier_clocks": (20.0, "cost of a barrier of a thread block"),
    "tensor_clocks": (32.0, "from the end of a wgmma group to the warps that wait for it"),
    "hmma_clocks": (8.0, "tensor core, one HMMA"),
    "xu_clocks": (8.0, "scheduler, one MUFU or conversion: 4 lanes per clock"),
    "fp64_clocks": (2.0, "scheduler, one fp64 instruction: 16 lanes per clock"),
    "launch_us": (1.5, "a kernel in a CUDA graph: start, drain, gap"),
    "strip_us": (0.5, "soft_dtw: from the store of a number to the polling strip, through L2"),
}
VALUE = {name: value for name, (value, _) in CONSTANTS.items()}

# Factor of the uncertainty: predictions are multiplied and divided by it. A judgement until a card
# has been measured.
SPREAD = {"scl": 1.4, "contrastive_idm": 1.5, "tcc": 1.6, "queue_nce": 1.5, "soft_dtw": 1.8}


def named(what: str, table: dict, key):
    """Return the entry, or raise an error that lists the others."""
    if key not in table:
        known = ", ".join(str(k) for k in table)
        raise ValueError(f"{what} {key!r} is not known: expected one of {known}")
    return table[key]


def blocks_per_sm(arch: int, registers: int, shared: int, warps: int) -> int:
    """Thread blocks that fit on a multiprocessor: limited by registers, shared memory and warps."""
    has = named("architecture", ARCHITECTURES, arch)
    a_warp = _up(registers * 32, REGISTER_UNIT)
    # Each scheduler has a quarter of the registers, and warps are assigned to schedulers in turn.
    by_registers = has.registers // SCHEDULERS // a_warp * SCHEDULERS // warps
    by_shared = has.shared // (_up(shared, SHARED_UNIT) + has.reserved)
    return min(by_registers, by_shared, has.warps // warps, has.blocks)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
