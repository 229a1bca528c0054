"""results/offline-sm_90/README.md and its picture, from the CSV files beside it."""

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
            "## Instructions an element, by class",
            f"![instructions of a lane for each element of a tile, by class]({picture.name})",
            "D = 128. Stacked: what one lane executes for one element of the T x T matrix, at each "
            "visit; 6 to 9 is what attention kernels need that were tuned by hand.",
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
    return f"""# What the compiler made of the kernels, sm_{arch}

Nothing here was measured: no GPU is needed, and none was used. Each kernel was compiled as it is
launched ({compilers}), its machine code taken apart loop by loop, and a time worked out from it.

```
python -m benchmarks.cost                  # all of this again
python -m benchmarks.cost --op scl         # one op
python -m benchmarks.cost --op scl --kernel grad --dtype bf16 --set rows=128,columns=64,warps=8
```

| file | holds |
|---|---|
| `<op>.csv` | a row for each loop: tile, instructions by class, resources, waits |
| `predicted.csv` | microseconds of the benchmark's shapes; measured ones once there are any |"""


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
            "In brackets the range that we would bet on at four to one. GPU time of a CUDA graph's "
            "replay; what the host needs comes on top in eager calls (`benchmarks/host.py`)."
            + (f" {error}" if error else ""),
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
    """Two digits, three from 100 on."""
    return f"{value:.2g}" if value < 100 else f"{float(f'{value:.3g}'):.0f}"


def _main_loops(op: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Loops over tiles at D = 128 in the default mode."""
    default = next(iter(MODES[op]))
    return [
        row
        for row in rows
        if row["tile_rows"]
        and row["configuration"].split()[1:] == ["D=128", *([default] if default else [])]
    ]


def _op(op: str, rows: list[dict[str, str]]) -> str:
    lines = ["| kernel, loop, dtype | tile, warps | an element | held |", "|---|---|---|---|"]
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


# Between these the README of an op quotes its figures.
QUOTE = re.compile(r"(<!-- benchmarks\.cost -->).*?(<!-- /benchmarks\.cost -->)", re.DOTALL)
_SOURCES = Path(fastseq.__file__).parent / "ops"


def quote(op: str, rows: list[dict[str, str]], predicted: list[dict[str, str]]) -> str:
    """What an op's README says: instructions of the main loops, times of the first two shapes."""
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
    """Into the READMEs of the ops."""
    predicted = predict.read(folder / "predicted.csv")
    for op in OPS:
        rows, path = predict.read(folder / f"{op}.csv"), _SOURCES / op / "README.md"
        if rows and any(row["op"] == op for row in predicted):
            said = quote(op, rows, predicted)
            path.write_text(QUOTE.sub(lambda m, s=said: f"{m[1]}\n{s}\n{m[2]}", path.read_text()))


def _name(row: dict[str, str]) -> str:
    """scl_stats far, queue_nce_scan, forward costs."""
    name = row["kernel"].replace("_kernel", "").replace("soft_dtw_", "")
    return name if row["loop"] == "tiles" else f"{name} {row['loop']}"


def _names(rows: list[dict[str, str]]) -> list[str]:
    """With the tile where shapes have different ones."""
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

A tile has two prices. Its **load**: clocks for which its warps keep the busiest unit of a
multiprocessor (issue slots, integer units, tensor cores, MUFU, shared memory). **Alone**: clocks
until a thread block that has the multiprocessor for itself is done with it: the instructions of a
warp in order, each when its operands are there, and the waits for copies, products and barriers.
R thread blocks side by side take max(R load, alone). They come in waves of R to a multiprocessor,
and the last wave counts in full. soft_dtw: a strip starts 47 steps (backward: 63) and a hand-over
after its neighbour, of 32 to a phase; a phase takes as long as its longest task or, where that is
more, all of them together.
Multiprocessors: {cards}.

| constant | value | what |
|---|---|---|
{lines}

All of it stands in `benchmarks/cost/machine.py` and `model.py`. No constant was fitted."""


def _weak() -> str:
    return """## How to read it, and which figures are weak
- *An element*: instructions of one lane for one element of the tile. *Held*: registers of a thread,
  thread blocks a multiprocessor, tiles on their way while one is worked on (0: each tile waits for
  memory in full). *Serialised*: as many waits as wgmma instructions.
- A kernel that several configurations share stands under the first of them in the CSV.
- Instructions are counted in the code, both sides of a branch included. That is exact for the
  loops over tiles of Triton, which have none. Code for a warp that has come apart (BRA.DIV) is left
  out, and so are soft_dtw's loops for the edges of a strip and for channels one by one.
- scl at (8, 480): one thread block a multiprocessor, so all of it is waiting; a third of the time
  lies outside the loops over tiles.
- soft_dtw: the recursion sets the pace of the forward, the gradients that of the backward where E
  is not 0. The model takes it to be so everywhere, though blocks where E is exactly 0 are skipped.
  Of blocks whose costs are formed by differences (frames that nearly meet) it knows nothing. Calls
  with given costs have kernels of their own, which are not in the table.
- contrastive_idm: loads inside the tile are taken to come from L2; many may come from L1.
- tcc: the kernels run one or two thread blocks a multiprocessor, and every wait counts in full.
- Rows and columns of unequal length, other gaps of the timestamps, L2 misses, other clocks and what
  else runs on the card are not in it."""


def draw(tables: dict[str, list[dict[str, str]]], path: Path) -> Path | None:
    """Stacked bars; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} is left as it is: matplotlib is missing, pip install matplotlib")
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
    figure.supxlabel("instructions an element", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
