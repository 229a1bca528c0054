"""<op>.csv: one row per loop of a kernel in a configuration."""

import csv
from pathlib import Path

from benchmarks.cost.compile import Result
from benchmarks.cost.report import KernelReport, LoopReport

_CLASSES = ("fp32", "fp64", "conversion", "shuffle", "shared", "global", "local", "barrier")
_REST = ("integer", "predicate", "branch")
COLUMNS = (
    *("kernel", "configuration", "loop", "tile_rows", "tile_columns", "instructions"),
    *("per_element", "tensor", "mufu", "registers", "spills", "shared_bytes", "blocks_per_sm"),
    "tiles_in_flight",
    *(*_CLASSES, *_REST),
    *("tensor_shapes", "tensor_waits", "made_of", "line", "warps", "stages", "stack"),
    *("load_clocks", "alone_clocks", "compiler"),
)


def rows(results: list[Result], compiler: str) -> list[dict[str, str]]:
    """Rows of all kernels. A kernel that several configurations share is listed under the first."""
    found, seen = [], set()
    for result in results:
        for kernel in result.kernels:
            if kernel.digest not in seen:
                seen.add(kernel.digest)
                found += _rows(kernel, result.note or compiler)
    return found


def _rows(kernel: KernelReport, compiler: str) -> list[dict[str, str]]:
    return [
        {
            "kernel": kernel.kernel,
            "configuration": kernel.configuration,
            "registers": str(kernel.registers),
            "spills": str(kernel.spills),
            "shared_bytes": str(kernel.shared),
            "blocks_per_sm": str(kernel.blocks_per_sm),
            "stages": "" if kernel.stages is None else str(kernel.stages),
            "stack": str(kernel.stack),
            "compiler": compiler,
            **_columns(loop),
        }
        for loop in (*kernel.loops(), kernel.outside)
        if loop.instructions  # a task whose loop counts as never run has none
    ]


def _columns(loop: LoopReport) -> dict[str, str]:
    shapes = sorted(loop.shapes.items())
    return {
        "loop": loop.name,
        "tile_rows": _number(loop.rows),
        "tile_columns": _number(loop.columns),
        "instructions": _number(loop.instructions),
        "per_element": _number(loop.per_element, 1),
        "tiles_in_flight": _number(loop.tiles_in_flight, 2),
        **{name: _number(loop.classes[name]) for name in ("tensor", "mufu", *_CLASSES, *_REST)},
        "tensor_shapes": ", ".join(f"{_number(n)} {shape}" for shape, n in shapes if n),
        "tensor_waits": _number(loop.tensor_waits),
        "made_of": loop.made_of,
        "line": loop.named.place,
        "warps": str(loop.warps),
        "load_clocks": _number(loop.load),
        "alone_clocks": _number(loop.alone),
    }


def _number(value: float | None, digits: int = 0) -> str:
    if value is None:
        return ""
    return f"{round(value, digits):g}" if digits else str(round(value))


def write(path: Path, columns: tuple[str, ...], lines: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    part.replace(path)


def serialised(row: dict[str, str]) -> bool:
    """Products of warp groups wait for each other one by one."""
    products = sum(int(p.split()[0]) for p in row["tensor_shapes"].split(", ") if "HGMMA" in p)
    return products > 1 and int(row["tensor_waits"]) >= products


def text(lines: list[dict[str, str]], classes: bool) -> str:
    """Text for a terminal: resources, then loops, of each kernel."""
    out, last = [], None
    for row in lines:
        kernel = row["kernel"], row["configuration"]
        if kernel != last:
            last = kernel
            stages = f", {row['stages']} stages" if row["stages"] else ""
            out.append(
                f"\n{row['kernel']}  {row['configuration']}\n  {row['registers']} registers, "
                f"{row['spills']} spills, stack {row['stack']}, {row['shared_bytes']} bytes shared"
                f"{stages}: {row['blocks_per_sm']} thread blocks per multiprocessor"
            )
        tile = f"{row['tile_rows']}x{row['tile_columns']}" if row["tile_rows"] else ""
        each = f", {row['per_element']} per element" if tile else ""
        flight = f", {row['tiles_in_flight']} in flight" if row["tiles_in_flight"] else ""
        out.append(
            f"  {row['loop']:<14} {tile:<7} {row['warps']} warps, {row['instructions']} "
            f"instructions ({row['made_of']}){each}{flight}; clocks: load {row['load_clocks']}, "
            f"alone {row['alone_clocks']}"
        )
        if row["tensor_shapes"]:
            waits = f"{row['tensor_waits']} waits" + (" (serialised)" if serialised(row) else "")
            out.append(f"{'':17}{row['tensor_shapes']}; {waits}")
        if classes:
            names = ("tensor", "mufu", *_CLASSES, *_REST)
            out.append(f"{'':17}" + ", ".join(f"{n} {row[n]}" for n in names if row[n] != "0"))
    return "\n".join(out).lstrip("\n")
