"""Report on one compiled kernel: resources, loops, and their cost by the time model."""

from collections import Counter
from typing import Any, NamedTuple

from benchmarks.cost import model, sass
from benchmarks.cost.loops import WARPS, Named, Namer, Values
from benchmarks.cost.machine import VALUE, blocks_per_sm

OUTSIDE = Named("outside loops", "")


class LoopReport(NamedTuple):
    """One trip of a loop, or one tile if the loop has tiles. Includes folded loops."""

    named: Named
    rows: int | None
    columns: int | None
    warps: int
    instructions: float  # per warp
    made_of: str  # such as "616 + 7 x 247"
    classes: Counter
    shapes: Counter
    units: Counter  # as model.units returns them
    tensor_waits: float
    tiles_in_flight: float | None
    load: float
    alone: float
    inner: tuple["LoopReport", ...]

    @property
    def name(self) -> str:
        return self.named.name

    @property
    def per_element(self) -> float | None:
        """Instructions of a lane per element of the tile."""
        if self.rows is None:
            return None
        return self.instructions * self.warps * 32 / (self.rows * self.columns)

    def trips(self, values: Values) -> float:
        if self.named.role is not None and self.named.role.whole:
            return 1
        return self.named.trips(values)


class KernelReport(NamedTuple):
    op: str
    kernel: str
    configuration: str
    constants: dict[str, Any]
    warps: int
    stages: int | None
    registers: int
    stack: int
    spills: int
    shared: int
    blocks_per_sm: int
    digest: str  # of the machine code
    outside: LoopReport  # code outside loops; its inner loops are the outermost ones

    def loops(self) -> list[LoopReport]:
        """All loops; each is followed by the loops inside it."""

        def below(loop: LoopReport) -> list[LoopReport]:
            return [loop, *(one for inner in loop.inner for one in below(inner))]

        return below(self.outside)[1:]

    def parts(self, values: Values) -> tuple[list[model.Part], list[model.Part]]:
        """Code that a thread block runs at this shape, and the additional code of the last one."""
        every: list[model.Part] = []
        last: list[model.Part] = []

        def below(loop: LoopReport, times: float, to: list[model.Part]) -> None:
            to.append(model.Part(times, loop.load, loop.alone))
            for inner in loop.inner:
                role = inner.named.role
                below(inner, times * inner.trips(values), last if role and role.last else to)

        below(self.outside, 1.0, every)
        return every, last


def kernel_report(
    op: str,
    configuration: str,
    function: sass.Function,
    *,
    name: str,
    constants: dict[str, Any],
    warps: int,
    stages: int | None,
    usage: dict[str, int],
    shared: int,
    arch: int,
    digest: str,
) -> KernelReport:
    """``shared``: dynamic shared memory of the launch in bytes; ``usage``: as cuobjdump reports
    it.
    """
    reader = _Reader(function.code, Namer(f"{op} {name}" if op == "soft_dtw" else name), constants)
    loops = sass.loops(function)
    inside: set[int] = set()
    for loop in loops:
        inside |= _members(loop)
    rest = [(i, i + 1) for i in range(len(function.code)) if i not in inside]
    outside = reader.read(sass.Loop(0, tuple(rest), tuple(loops), None), warps, once=True)
    return KernelReport(
        op,
        name,
        configuration,
        constants,
        warps,
        stages,
        usage["REG"],
        usage["STACK"],
        sass.spills(function.code),
        shared,
        blocks_per_sm(arch, usage["REG"], shared, warps),
        digest,
        outside,
    )


def _members(loop: sass.Loop) -> set[int]:
    own = {i for first, stop in loop.own for i in range(first, stop)}
    return own.union(*(_members(inner) for inner in loop.inner))


class _Reader:
    def __init__(self, code: list[sass.Instruction], namer: Namer, constants: dict) -> None:
        self.code, self.namer, self.values = code, namer, Values(constants)

    def read(self, loop: sass.Loop, warps: int, *, once: bool = False) -> LoopReport:
        named = OUTSIDE if once else self.namer(loop.line)
        role = named.role
        warps = self.warps(loop, named, warps)
        body = loop.body(self.code)
        units, classes = model.units(body), sass.classes(body)
        shapes, waits = sass.tensor_shapes(body), float(sass.tensor_waits(body))
        made_of, apart = str(len(body)), []
        events = [(i, self.code[i]) for first, stop in loop.own for i in range(first, stop)]
        for one in loop.inner:
            got = self.read(one, warps)
            if got.named.role is None or not got.named.role.folded:
                apart.append(got)
                continue
            trips = got.trips(self.values)
            _add(units, got.units, trips)
            _add(classes, got.classes, trips)
            _add(shapes, got.shapes, trips)
            waits += trips * got.tensor_waits
            made_of += f" + {trips:g} x " + (
                f"({got.made_of})" if "+" in got.made_of else got.made_of
            )
            events.append((one.header, trips * got.alone))
        ordered = [event for _, event in sorted(events, key=lambda pair: pair[0])]
        latency = VALUE["again_clocks" if role and role.rereads else "load_clocks"]
        clocks = model.alone(ordered, warps, again=not once, load_clocks=latency)
        if role and role.whole:
            trips = named.trips(self.values)
            for counts in (units, classes, shapes):
                _add(counts, dict(counts), trips - 1)
            waits, clocks = waits * trips, clocks * trips
            made_of = f"{trips:g} x " + (f"({made_of})" if "+" in made_of else made_of)
        return LoopReport(
            named,
            *(role.tile(self.values) if role and role.tile else (None, None)),
            warps,
            units["instructions"],
            made_of,
            classes,
            shapes,
            units,
            waits,
            sass.tiles_in_flight(body),
            model.load(units, warps),
            clocks,
            tuple(apart),
        )

    def warps(self, loop: sass.Loop, named: Named, around: int) -> int:
        """Number of warps that run the loop: those of the thread block, or of soft_dtw's task."""
        if named.role is None or not named.role.kernels.startswith("soft_dtw"):
            return around
        if named.role.whole:
            return int(WARPS[named.name](self.values))
        if named.name != "phases":
            return around
        tasks = [name for inner in loop.inner if (name := self.task(inner))]
        counts = {int(WARPS[task](self.values)) for task in tasks}
        if len(counts) > 1:
            return around
        return counts.pop() if counts else 1

    def task(self, loop: sass.Loop) -> str:
        """The task that a loop implements; "" if none."""
        named = Namer(self.namer.kernel)(loop.line)
        return named.name if named.role and named.role.whole else ""


def _add(counts: Counter, more: dict, times: float) -> None:
    for key, n in more.items():
        counts[key] += times * n
