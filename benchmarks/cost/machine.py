"""What the time model assumes: limits of the architectures, cards, rates and latencies.

Every constant of the model is here; the command prints them with its predictions. Limits are of
the CUDA programming guide. Rates and latencies are typical figures of Hopper from the literature
and none of them has been fitted to a measurement: a fit to one kernel would hide what is wrong.
"""

from typing import NamedTuple


class Architecture(NamedTuple):
    """Of one multiprocessor."""

    registers: int
    shared: int  # bytes, of all thread blocks together
    reserved: int  # bytes of it that each thread block costs besides its own
    warps: int
    blocks: int


ARCHITECTURES = {
    80: Architecture(65536, 167936, 1024, 64, 32),
    86: Architecture(65536, 102400, 1024, 48, 16),
    89: Architecture(65536, 102400, 1024, 48, 24),
    90: Architecture(65536, 233472, 1024, 64, 32),
    100: Architecture(65536, 233472, 1024, 64, 32),
}
REGISTER_UNIT = 256  # registers are given to a warp in such portions
SHARED_UNIT = 128
SCHEDULERS = 4  # of a multiprocessor; warps belong to one each


class Card(NamedTuple):
    arch: int
    processors: int
    clock: float  # Hz under load


# By what PyTorch calls the device.
CARDS = {
    "NVIDIA H100 80GB HBM3": Card(90, 132, 1.755e9),
    "NVIDIA H200": Card(90, 132, 1.755e9),
    "NVIDIA A100-SXM4-80GB": Card(80, 108, 1.41e9),
}

CONSTANTS = {
    "busy": (0.8, "instructions a clock that a scheduler issues when it has warps enough"),
    "half_clocks": (
        2.0,
        "of a scheduler for one integer or predicate instruction: 16 lanes a clock",
    ),
    "alu_clocks": (5.0, "from an arithmetic instruction to its result"),
    "long_clocks": (23.0, "the same of MUFU, conversions and shuffles"),
    "shared_clocks": (29.0, "the same of loads from shared memory"),
    "load_clocks": (300.0, "from a load to its data, out of L2"),
    "again_clocks": (40.0, "the same where a loop reads what it has just read, out of L1"),
    "copy_clocks": (450.0, "from an asynchronous copy to its data in shared memory, out of L2"),
    "barrier_clocks": (20.0, "that a barrier of a thread block adds"),
    "tensor_clocks": (32.0, "from the end of a wgmma group to the warps that wait for it"),
    "hmma_clocks": (8.0, "of a tensor core for one HMMA"),
    "xu_clocks": (8.0, "of a scheduler for one MUFU or conversion: 4 lanes a clock"),
    "fp64_clocks": (2.0, "of a scheduler for one fp64 instruction: 16 lanes a clock"),
    "launch_us": (1.5, "a kernel in a CUDA graph: start, drain, gap"),
    "strip_us": (0.5, "soft_dtw: from a number's store to the strip that polls it, by way of L2"),
}
VALUE = {name: value for name, (value, _) in CONSTANTS.items()}

# By what a prediction may be multiplied or divided; a judgement until a card has been measured.
SPREAD = {"scl": 1.4, "contrastive_idm": 1.5, "tcc": 1.6, "queue_nce": 1.5, "soft_dtw": 1.8}


def named(what: str, table: dict, key):
    """The entry, or an error that lists the others."""
    if key not in table:
        known = ", ".join(str(k) for k in table)
        raise ValueError(f"{what} {key!r} is not known: expected one of {known}")
    return table[key]


def blocks_per_sm(arch: int, registers: int, shared: int, warps: int) -> int:
    """Thread blocks that fit a multiprocessor: by registers, shared memory and warps."""
    has = named("architecture", ARCHITECTURES, arch)
    a_warp = _up(registers * 32, REGISTER_UNIT)
    # Each scheduler has a quarter of the registers, and warps go to the schedulers in turn.
    by_registers = has.registers // SCHEDULERS // a_warp * SCHEDULERS // warps
    by_shared = has.shared // (_up(shared, SHARED_UNIT) + has.reserved)
    return min(by_registers, by_shared, has.warps // warps, has.blocks)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
