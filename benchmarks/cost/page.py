"""Writes results/offline-sm_90/README.md and its picture from the CSV files beside it."""

import re
from pathlib import Path

import fastseq
from benchmarks.cost import predict, table
from benchmarks.cost.compile import MODES, OPS
from benchmarks.cost.machine import CARDS, CONSTANTS

_COLOURS = {
    "tensor": "#d62728",
    "mufu": "#ff7f0e",
    "fp32": "#1f77b4",
    "fp64": "#0b3d66",
    "conversion": "#17becf",
    "shuffle": "#9467bd",
    "shared": "#8c564b",
    "global": "#e377c2",
    "barrier": "#7f7f7f",
    "integer": "#bcbd22",
    "predicate": "#2ca02c",
    "branch": "#c7c7c7",
}


def write(folder: Path, arch: int) -> Path:
    tables = {op: predict.read(folder / f"{op}.csv") for op in OPS}
    tables = {op: rows for op, rows in tables.items() if rows}
    predicted = predict.read(folder / "predicted.csv")
    text = [_intro(tables, arch), *_predictions(predicted)]
    if picture := draw(tables, folder / "instructions.png"):
        text += [
            "## Instructions per element, by class",
            f"![instructions of a lane per element of a tile, by class]({picture.name})",
            "D = 128. A bar is the number of instructions that one lane executes for each visit of "
            "an element of the T x T matrix. Hand-tuned attention kernels need 6 to 9.",
        ]
    for op, rows in tables.items():
        text.append(f"## {op}")
        text.append(_op(op, rows))
    text += [_model(), _weak()]
    page = folder / "README.md"
    page.write_text("\n\n".join(part.strip() for part in text) + "\n")
    return page


def _intro(tables: dict[str, list], arch: int) -> str:
    compilers = ", ".join(dict.fromkeys(row["compiler"] for t in tables.values() for row in t))
    return f"""# Static analysis of the compiled kernels, sm_{arch}

Nothing on this page was measured, and no GPU was used. Each kernel was compiled as it is launched
({compilers}). Its machine code was analysed loop by loop, and a time was derived from it.

```
python -m benchmarks.cost                  # writes this page and its tables anew
python -m benchmarks.cost --op scl         # one op
python -m benchmarks.cost --op scl --kernel grad --dtype bf16 --set rows=128,columns=64,warps=8
```

| file | content |
|---|---|
| `<op>.csv` | one row per loop: tile, instructions by class, resources, waits |
| `predicted.csv` | predicted microseconds of the benchmark's shapes, and measured ones if any |"""


def _predictions(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    out = []
    for card in dict.fromkeys(row["card"] for row in rows):
        mine = {(r["op"], r["shape"], r["dtype"], r["mode"]): r for r in rows if r["card"] == card}
        lines = [
            "| op, shape, dtype | forward | forward and backward | measured |",
            "|---|---|---|---|",
        ]
        for op, shape, dtype in dict.fromkeys(key[:3] for key in mine):
            ahead = mine.get((op, shape, dtype, "forward"))
            both = mine.get((op, shape, dtype, "both"))
            measured = " / ".join(
                f"{float(r['measured_us']):.4g} us" for r in (ahead, both) if r and r["measured_us"]
            )
            lines.append(
                f"| {op} {shape.replace('x', ', ')} {dtype} | {_range(ahead)} | {_range(both)} | "
                f"{measured or 'not measured yet'} |"
            )
        error = predict.error(list(mine.values()))
        out += [
            f"## Predicted for {card}",
            "GPU time of a CUDA graph's replay, and in brackets the range that we expect to "
            "contain it in four of five cases. Eager calls also need host time "
            "(`benchmarks/host.py`)." + (f" {error}" if error else ""),
            "\n".join(lines),
        ]
    return out


def _range(row: dict[str, str] | None) -> str:
    if not row:
        return "-"
    us, low, high = (float(row[key]) for key in ("predicted_us", "low_us", "high_us"))
    unit, by = ("ms", 1e3) if us >= 1e4 else ("us", 1)
    return f"{_short(us / by)} {unit} ({_short(low / by)}-{_short(high / by)})"


def _short(value: float) -> str:
    """Formatted with two digits, or three from 100 on."""
    return f"{value:.2g}" if value < 100 else f"{float(f'{value:.3g}'):.0f}"


def _main_loops(op: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Table of the loops over tiles at D = 128 in the default mode."""
    default = next(iter(MODES[op]))
    return [
        row
        for row in rows
        if row["tile_rows"]
        and row["configuration"].split()[1:] == ["D=128", *([default] if default else [])]
    ]


def _op(op: str, rows: list[dict[str, str]]) -> str:
    lines = [
        "| kernel, loop, dtype | tile, warps | instructions per element | resources |",
        "|---|---|---|---|",
    ]
    for row in _main_loops(op, rows):
        dtype = row["configuration"].split()[0]
        tile = f"{row['tile_rows']}x{row['tile_columns']}, {row['warps']}"
        held = f"{row['registers']} registers, {row['blocks_per_sm']} blocks"
        if row["tiles_in_flight"]:
            held += f", {row['tiles_in_flight']} in flight"
        if table.serialised(row):
            held += ", serialised"
        if row["spills"] != "0":
            held += f", {row['spills']} spills"
        lines.append(f"| {_name(row)} {dtype} | {tile} | {row['per_element']} | {held} |")
    return "\n".join(lines)


# The README of an op quotes its figures between these comments.
QUOTE = re.compile(r"(<!-- benchmarks\.cost -->).*?(<!-- /benchmarks\.cost -->)", re.DOTALL)
_SOURCES = Path(fastseq.__file__).parent / "ops"


def quote(op: str, rows: list[dict[str, str]], predicted: list[dict[str, str]]) -> str:
    """Text for an op's README: instructions of the main loops, times of the first two shapes."""
    dtype = "fp32" if op == "soft_dtw" else "bf16"
    loops = [r for r in _main_loops(op, rows) if r["configuration"].split()[0] == dtype]
    named = zip(_names(loops), loops, strict=True)
    each = ", ".join(f"{name} {row['per_element']}" for name, row in named)
    times = [r for r in predicted if r["op"] == op and r["dtype"] == dtype and r["mode"] == "both"]
    said = ", ".join(f"{_range(r)} at ({r['shape'].replace('x', ', ')})" for r in times[:2])
    card = times[0]["card"].split(" 80GB")[0]
    link = "../../../benchmarks/results/offline-sm_90/README.md"
    return (
        f"Compiled for sm_90, {dtype}, D = 128, instructions an element: {each}. From that "
        f"`python -m benchmarks.cost` predicts for an {card}, forward and backward: {said} "
        f"([tables and model]({link}); not measured yet)."
    )


def write_quotes(folder: Path) -> None:
    """Write the quotes into the READMEs of the ops."""
    predicted = predict.read(folder / "predicted.csv")
    for op in OPS:
        rows, path = predict.read(folder / f"{op}.csv"), _SOURCES / op / "README.md"
        if rows and any(row["op"] == op for row in predicted):
            said = quote(op, rows, predicted)
            path.write_text(QUOTE.sub(lambda m, s=said: f"{m[1]}\n{s}\n{m[2]}", path.read_text()))


def _name(row: dict[str, str]) -> str:
    """Such as scl_stats far, queue_nce_scan, forward costs."""
    name = row["kernel"].replace("_kernel", "").replace("soft_dtw_", "")
    return name if row["loop"] == "tiles" else f"{name} {row['loop']}"


def _names(rows: list[dict[str, str]]) -> list[str]:
    """Includes the tile where shapes have different ones."""
    names = [_name(row) for row in rows]
    return [
        f"{name} {row['tile_rows']}x{row['tile_columns']}" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _model() -> str:
    cards = ", ".join(
        f"{name} {card.processors} at {card.clock / 1e9:g} GHz" for name, card in CARDS.items()
    )
    lines = "\n".join(
        f"| {name} | {value:g} | {what} |" for name, (value, what) in CONSTANTS.items()
    )
    return f"""## The model

A tile has two costs:

- **load**: clocks for which its warps occupy the busiest unit of a multiprocessor (issue slots,
  integer units, tensor cores, MUFU, shared memory);
- **alone**: clocks until a thread block that is alone on the multiprocessor has finished it: the
  instructions of a warp in order, each issued when its operands are ready, and the waits for
  copies, products and barriers.

R thread blocks side by side take max(R load, alone). They run in waves of R per multiprocessor,
and the last wave counts in full.

soft_dtw: a phase has 32 steps. A strip starts 47 steps (backward: 63) and a hand-over after its
neighbour. A phase takes as long as its longest task, or as all tasks together if the
multiprocessor needs longer for those.

Multiprocessors: {cards}.

| constant | value | meaning |
|---|---|---|
{lines}

The model is in `benchmarks/cost/machine.py` and `model.py`. No constant was fitted."""


def _weak() -> str:
    return """## How to read it, and which figures are weak
- *Instructions per element*: of one lane for one element of the tile.
- *Resources*: registers per thread, thread blocks per multiprocessor, tiles in flight while one is
  processed (0: each tile waits for memory in full). *Serialised*: as many waits as wgmma
  instructions.
- The CSV lists a kernel that several configurations share under the first of them.
- Instructions are counted in the code, including both sides of a branch. The count is exact for
  Triton's loops over tiles, which have no branches. It leaves out code for a diverged warp
  (BRA.DIV), and soft_dtw's loops for the edges of a strip and for single channels.
- scl at (8, 480): each multiprocessor has one thread block, so the time consists of waits; a third
  of it is outside the loops over tiles.
- soft_dtw: the forward is limited by the recursion, and the backward by the gradients where E is
  not 0. The model assumes that E is not 0 anywhere, although the kernel skips blocks where it is.
  The model leaves out blocks whose costs are formed by differences (frames that almost coincide).
  Calls with given costs use other kernels, which are not in the table.
- contrastive_idm: the model assumes that loads inside a tile come from L2; many may come from L1.
- tcc: each multiprocessor runs one or two thread blocks, and every wait counts in full.
- Not modelled: rows and columns of unequal length, other gaps between timestamps, L2 misses, other
  clocks, other work on the card."""


def draw(tables: dict[str, list[dict[str, str]]], path: Path) -> Path | None:
    """Draw stacked bars. Returns None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} was not redrawn: matplotlib is missing, pip install matplotlib")
        return path if path.exists() else None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[dict[str, str]]] = {"bf16": [], "fp32": [], "soft_dtw fp32": []}
    for op, rows in tables.items():
        for row in _main_loops(op, rows):
            panel = row["configuration"].split()[0]
            panel = "soft_dtw fp32" if op == "soft_dtw" else panel
            if panel in panels:
                panels[panel].append(row)
    panels = {name: bars for name, bars in panels.items() if bars}
    heights = [len(bars) + 1.5 for bars in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(10, 0.32 * sum(heights) + 1),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for ax, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        names = _names(bars)
        left = [0.0] * len(bars)
        for kind, colour in _COLOURS.items():
            lengths = [
                int(row[kind]) / int(row["instructions"]) * float(row["per_element"])
                for row in bars
            ]
            ax.barh(names, lengths, left=left, color=colour, label=kind)
            left = [a + b for a, b in zip(left, lengths, strict=True)]
        for k, total in enumerate(left):
            ax.text(total, k, f" {total:.0f}", va="center", fontsize=8)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=10, loc="left")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    figure.supxlabel("instructions per element", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
