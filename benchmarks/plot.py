"""``python -m benchmarks.plot``: plots time and memory by shape from each results/<device>/<op>.csv
and writes the tables beside it (results/<device>/<op>.md).
"""

import argparse
from pathlib import Path

from benchmarks import results

# Fixed, so that a provider has the same colour and marker in every figure.
STYLES = {
    "fastseq triton": ("#d62728", "o"),
    "fastseq torch": ("#ff7f0e", "o"),
    "fastseq cuda": ("#d62728", "o"),
    "fastseq numba": ("#e377c2", "o"),
    "eager": ("#1f77b4", "s"),
    "torch.compile": ("#2ca02c", "^"),
    "released": ("#7f7f7f", "v"),
    "KeOps": ("#9467bd", "D"),
    "FlexAttention": ("#8c564b", "P"),
    "wavefront": ("#1f77b4", "s"),
    "pysdtw": ("#2ca02c", "^"),
    "tslearn": ("#7f7f7f", "v"),
    "ddtw": ("#9467bd", "D"),
    "ddtw, costs given": ("#8c564b", "D"),
    "sdtw-cuda-torch": ("#17becf", "X"),
    "pytorch-softdtw-cuda": ("#bcbd22", "P"),
    "logits once": ("#1f77b4", "s"),
    "shared lse": ("#17becf", "X"),
    "attention": ("#8c564b", "P"),
}
PANELS = (
    ("median_ms", "forward + backward, ms"),
    ("peak_mb", "peak above inputs and gradients, MB"),
)


def draw(path: Path) -> Path:
    """Draw one figure from the CSV, with a row of panels for each precision. Returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results.read(path) if row["mode"] == "both"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure, axes = plt.subplots(
        len(precisions), 2, figsize=(11, 4.2 * len(precisions)), squeeze=False, layout="constrained"
    )
    for line, precision in zip(axes, precisions, strict=True):
        for ax, (column, label) in zip(line, PANELS, strict=True):
            _panel(ax, [r for r in rows if r["precision"] == precision], column)
            ax.set_title(f"{precision}: {label}", fontsize=11)
    handles, labels = axes[0][1].get_legend_handles_labels()
    more, names = axes[0][0].get_legend_handles_labels()
    legend = dict(zip(labels + names, handles + more, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{path.stem} on {rows[0]['device']}, torch {rows[0]['torch']}", fontsize=12)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture


def _panel(ax, rows: list[dict[str, str]], column: str) -> None:
    # Ordered by size at equal distances: on an axis of T, (4, 480) and (32, 512) would overlap.
    shapes = sorted(
        {tuple(int(row[key]) for key in "ntd") for row in rows},
        key=lambda shape: (shape[0] * shape[1] ** 2, *shape),
    )
    for name in dict.fromkeys(row["provider"] for row in rows):
        points = sorted(
            (shapes.index(tuple(int(row[key]) for key in "ntd")), float(row[column]))
            for row in rows
            if row["provider"] == name and float(row[column] or 0) > 0
        )
        if points:
            color, marker = STYLES.get(name, (None, "x"))
            ours = name.startswith("fastseq")
            ax.plot(
                *zip(*points, strict=True),
                color=color,
                marker=marker,
                linewidth=2.4 if ours else 1.4,
                markersize=6,
                label=name,
                zorder=3 if ours else 2,
            )
    ax.set_yscale("log")
    ax.set_xticks(range(len(shapes)), ["×".join(map(str, shape)) for shape in shapes], fontsize=8)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_xlabel("N×T×D")
    ax.grid(alpha=0.3)


def write_table(path: Path) -> Path:
    rows = results.read(path)
    first = rows[0]
    versions = [f"torch {first['torch']}", f"Python {first['python']}"]
    versions += [f"triton {first['triton']}"] if first["triton"] else []
    versions += [f"driver {first['driver']}"] if first["driver"] else []
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    loads = [float(row["load"]) for row in rows]
    text = (
        f"# {path.stem} on {first['device']}\n\n"
        f"{', '.join(versions)}; {first['threads']} CPU threads; commit {commits}; "
        f"load average before the runs {min(loads):.2f} to {max(loads):.2f}. "
        f"Written by `python -m benchmarks.plot` from `{path.name}`.\n\n"
        f"![time and memory by shape]({path.stem}.png)\n\n{results.table(rows)}\n"
    )
    page = path.with_suffix(".md")
    page.write_text(text)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    folder = parser.parse_args().results
    # benchmarks.video and benchmarks.cost write their own tables.
    found = [
        path
        for path in sorted(folder.glob("*/*.csv"))
        if path.stem != "video" and not path.parent.name.startswith("offline-")
    ]
    if not found:
        raise SystemExit(f"no CSV below {folder}: run `python -m benchmarks.run` first")
    for path in found:
        print(write_table(path), draw(path), sep="\n")


if __name__ == "__main__":
    main()
