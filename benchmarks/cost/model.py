"""From machine code to microseconds: the cost of a tile on a multiprocessor, of a launch on a card.

A tile has two costs. ``load``: clocks for which its warps occupy the busiest unit of the
multiprocessor (issue slots, tensor cores, MUFU, shared memory). ``alone``: clocks until a thread
block that is alone on the multiprocessor has finished it, waits included. With R thread blocks side
by side, each takes max(R load, alone). Thread blocks run in waves of R per multiprocessor; the last
wave has fewer per multiprocessor and counts accordingly.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from benchmarks.cost import sass
from benchmarks.cost.machine import SCHEDULERS, VALUE, Card

_WIDE = {"128": 4, "64": 2}
_REGISTER = re.compile(r"\b(R|UR|P|UP)(\d+)")
# Includes instructions that write asynchronously, such as HGMMA: the code waits for those itself.
_WRITES_NOTHING = {
    *("STS", "STG", "ST", "STL", "STSM", "RED", "REDG", "LDGSTS", "HGMMA", "BAR", "BRA", "EXIT"),
    *("RET", "CALL", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC", "MEMBAR", "FENCE", "ERRBAR"),
    *("CCTL", "NOP", "BSSY", "BSYNC", "YIELD"),
}
_XU = {"MUFU", "F2F", "F2I", "I2F", "FRND"}


def product_clocks(one: sass.Instruction) -> float:
    """Tensor-core clocks of a multiprocessor for one HGMMA of a warp group: 2048 bf16 or 1024 tf32
    multiply-adds per clock, N / 2 in both cases, or the time to read its operands at 128 bytes per
    clock if that is longer.
    """
    shape = re.match(r"HGMMA\.64x(\d+)x", one.op)
    if not shape:
        return 0.0
    n = int(shape[1])
    a_in_shared = "gdesc" in one.operands.split(",")[1]
    return max(n / 2, (16 if a_in_shared else 0) + n / 4)


def load(counts: Counter, warps: int) -> float:
    """Clocks of a multiprocessor, from the ``units`` of one warp's instructions."""
    per_scheduler = warps / SCHEDULERS
    return max(
        counts["instructions"] * per_scheduler / VALUE["busy"],
        counts["xu"] * per_scheduler * VALUE["xu_clocks"],
        counts["fp64"] * per_scheduler * VALUE["fp64_clocks"],
        counts["half"] * per_scheduler * VALUE["half_clocks"],
        counts["products"] * per_scheduler,  # each scheduler has one warp of a warp group
        counts["shared"] * warps,
    )


def units(code: Sequence[sass.Instruction]) -> Counter:
    """Use of each unit by one warp: in instructions, or in clocks for units that need several per
    instruction.
    """
    counts: Counter = Counter(instructions=len(code))
    for one in code:
        kind = one.kind
        counts["half"] += half_rate(one)
        if one.name in _XU:
            counts["xu"] += 1
        elif kind == "fp64":
            counts["fp64"] += 1
        elif one.name == "HMMA":
            counts["products"] += VALUE["hmma_clocks"]
        elif kind == "tensor":
            counts["products"] += product_clocks(one)
        elif kind in ("shared", "shuffle") or one.name == "LDGSTS":
            parts = one.op.split(".")
            width = next((w for key, w in _WIDE.items() if key in parts), 1)
            counts["shared"] += 4 if one.name == "LDSM" and "4" in parts else width
    return counts


def alone(
    code: Sequence[sass.Instruction | float],
    warps: int,
    *,
    again: bool = True,
    load_clocks: float = VALUE["load_clocks"],
) -> float:
    """Clocks of a thread block alone for this code. Numbers in the code are clocks of inner loops.

    Simulates one warp, in order, beside the warps that share its scheduler. An instruction is
    issued when its operands are ready. Asynchronous copies and products are waited for where the
    code waits. ``again`` returns the clocks of a second pass, which starts with the operations that
    the first has left in flight.
    """
    step = warps / SCHEDULERS / VALUE["busy"]
    now = begin = tensor_free = half_free = 0.0
    ready: dict[str, float] = {}  # when a register can be read
    copies: list[float] = []  # when each group arrives
    products: list[float] = []  # when each group is finished
    for _ in range(2 if again else 1):
        begin = now
        for one in code:
            if not isinstance(one, sass.Instruction):
                now += one
                continue
            used, written = registers(one)
            now = max([now, *(ready[r] for r in used if r in ready)])
            if half_rate(one):
                now = max(now, half_free)
                half_free = now + VALUE["half_clocks"]
            latency = load_clocks if one.name in ("LDG", "LD") else _latency(one)
            ready.update(dict.fromkeys(written, now + latency))
            if one.name == "LDGDEPBAR":
                copies.append(now + VALUE["copy_clocks"])
            elif one.name == "HGMMA":
                took = product_clocks(one) * max(1.0, warps / SCHEDULERS)
                tensor_free = max(now, tensor_free) + took
                if "gsb" in one.operands:
                    products.append(tensor_free + VALUE["tensor_clocks"])
            elif one.op.startswith("BAR.SYNC"):
                now += VALUE["barrier_clocks"]
            elif (left := sass.copy_wait(one)) is not None:
                copies, now = _wait(copies, left, now)
            elif (left := sass.product_wait(one)) is not None:
                products, now = _wait(products, left, now)
            now += max(step, 1.0)
    return now - begin


def half_rate(one: sass.Instruction) -> bool:
    """Whether it runs at sixteen lanes per clock. IMAD and its moves run on the FP32 units."""
    return one.kind in ("integer", "predicate") and not one.name.startswith(("IMAD", "U", "LDC"))


def _latency(one: sass.Instruction) -> float:
    if one.kind in ("mufu", "shuffle") or one.name in _XU:
        return VALUE["long_clocks"]
    if one.name == "HMMA":
        return VALUE["long_clocks"]
    return VALUE["shared_clocks"] if one.kind == "shared" else VALUE["alu_clocks"]


@lru_cache(maxsize=1 << 16)
def registers(one: sass.Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Registers that it mentions (reads, or must not overtake), and registers that it writes."""
    used = [f"{kind}{number}" for kind, number in _REGISTER.findall(one.operands)]
    used += [f"R{int(n) + 1}" for n in re.findall(r"\bR(\d+)(?:\.reuse)?\.64", one.operands)]
    used += [f"{kind}{number}" for kind, number in _REGISTER.findall(one.guard)]
    if one.name in _WRITES_NOTHING:
        return tuple(used), ()
    first, second = (*one.operands.split(","), "", "")[:2]
    targets = first + second if one.kind == "shuffle" or first.strip()[:1] == "P" else first
    written = []
    width = next((w for key, w in _WIDE.items() if key in one.op.split(".")), 1)
    width = max(width, 2 if one.kind == "fp64" or ".WIDE" in one.op else 1)
    for kind, number in _REGISTER.findall(targets):
        wide = width if kind == "R" else 1
        written += [f"{kind}{int(number) + k}" for k in range(wide)]
    return tuple(used), tuple(written)


def _wait(groups: list[float], left: int, now: float) -> tuple[list[float], float]:
    """Wait until at most ``left`` groups are open."""
    done = groups[: len(groups) - left]
    return groups[len(done) :], max([now, *done])


class Part(NamedTuple):
    """Code that a thread block runs ``trips`` times."""

    trips: float
    load: float
    alone: float


def block_clocks(parts: Sequence[Part], side_by_side: int) -> float:
    """Clocks of a thread block beside others of the same kind."""
    return sum(p.trips * max(side_by_side * p.load, p.alone) for p in parts)


def launch_us(
    parts: Sequence[Part],
    grid: int,
    blocks_per_sm: int,
    card: Card,
    last: Sequence[Part] = (),
) -> float:
    """Microseconds of one launch of ``grid`` equal thread blocks; the one that ends last also runs
    ``last``.
    """
    full, rest = divmod(grid, card.processors * blocks_per_sm)
    clocks = full * block_clocks(parts, blocks_per_sm) + block_clocks(last, 1)
    if rest:
        clocks += block_clocks(parts, -(-rest // card.processors))
    return clocks / card.clock * 1e6 + VALUE["launch_us"]


class Task(NamedTuple):
    """Work of some warps of a soft_dtw thread block in one phase: ``load``, the clocks of a
    multiprocessor that they use, and ``alone``, the clocks until they are done.
    """

    load: float
    alone: float


def wavefront_us(
    tasks: Sequence[Task],
    *,
    batch: int,
    strips: int,
    phases: int,
    lag: float,
    blocks_per_sm: int,
    card: Card,
) -> float:
    """Microseconds of one launch of soft_dtw. Each strip starts ``lag`` phases and a hand-over
    after its neighbour. The launch takes at least as long as the multiprocessors need for all
    phases.
    """
    grid = batch * strips
    here = min(blocks_per_sm, -(-grid // card.processors))
    work = sum(task.load for task in tasks)
    phase = max([here * work, *(task.alone for task in tasks)])
    hand_over = VALUE["strip_us"] * 1e-6 * card.clock
    waiting = (strips - 1) * (lag * phase + hand_over) + phases * phase
    busy = grid * phases * phase / here / min(card.processors, grid)
    return max(waiting, busy) / card.clock * 1e6 + VALUE["launch_us"]
