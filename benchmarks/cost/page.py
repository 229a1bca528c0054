"""results/offline-sm_90/README.md and its picture, from the CSV files beside it."""

from pathlib import Path

from benchmarks.cost import predict, table
from benchmarks.cost.compile import MODES, OPS
from benchmarks.cost.machine import CARDS, CONSTANTS

_COLOURS = {
    "tensor": "#d62728",
    "mufu": "#ff7f0e",
    "fp32": "#1f77b4",
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
                f"{float(r['measured_us']):.3g}" for r in (ahead, both) if r and r["measured_us"]
            )
            lines.append(
                f"| {op} {shape.replace('x', ', ')} {dtype} | {_range(ahead)} | {_range(both)} | "
                f"{measured or 'not measured yet'} |"
            )
        error = predict.error(list(mine.values()))
        out += [
            f"## Predicted for {card}, microseconds",
            "In brackets the range that we would bet on at four to one. GPU time of a CUDA graph's "
            "replay; what the host needs comes on top in eager calls (`benchmarks/host.py`)."
            + (f" {error}" if error else ""),
            "\n".join(lines),
        ]
    return out


def _range(row: dict[str, str] | None) -> str:
    return f"{row['predicted_us']} ({row['low_us']}-{row['high_us']})" if row else "-"


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
        name = row["kernel"].replace("_kernel", "").replace("soft_dtw_", "")
        lines.append(f"| {name} {row['loop']} {dtype} | {tile} | {row['per_element']} | {held} |")
    return "\n".join(lines)


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
and the last wave counts in full. soft_dtw: a strip starts two phases and a hand-over after its
neighbour; a phase takes as long as its longest task or, where that is more, all of them together.
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
- Instructions are counted in the code, both sides of a branch included. That is exact for the
  Triton loops, which have none, and too much for soft_dtw's recursion (about 15 %).
- scl at (8, 480): one thread block a multiprocessor, so it is latency alone, and 40 % of it is the
  near loop, whose loads of times wait one after another for want of registers.
- soft_dtw backward: how long the gradients' loads take hangs on L1, which polls of flags empty; and
  blocks where E is exactly 0 are skipped, which the model does not know.
- contrastive_idm: loads inside the tile are taken to come from L2; many may come from L1.
- tcc: the kernels run one thread block a multiprocessor, and every wait counts in full.
- Rows and columns of unequal length, other gaps of the timestamps, L2 misses, clocks below 1.755
  GHz and the slack between kernels of other streams are not in it."""


def draw(tables: dict[str, list[dict[str, str]]], path: Path) -> Path | None:
    """Stacked bars; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} is left as it is: matplotlib is missing, pip install matplotlib")
        return path if path.exists() else None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[tuple[str, dict[str, str]]]] = {
        "bf16": [],
        "fp32": [],
        "soft_dtw fp32": [],
    }
    for op, rows in tables.items():
        for row in _main_loops(op, rows):
            panel = row["configuration"].split()[0]
            panel = "soft_dtw fp32" if op == "soft_dtw" else panel
            if panel in panels:
                name = row["kernel"].replace("_kernel", "").replace("soft_dtw_", "")
                panels[panel].append((f"{name} {row['loop']}", row))
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
        names = [name for name, _ in bars]
        left = [0.0] * len(bars)
        for kind, colour in _COLOURS.items():
            lengths = [
                int(row[kind]) / int(row["instructions"]) * float(row["per_element"])
                for _, row in bars
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
