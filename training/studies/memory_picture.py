"""The picture of training.memory: peaks with their lines, and memory by part of the step."""

from pathlib import Path
from typing import Any

from training.studies.memory_fit import equation

LABELS = {
    "recipe": "as the recipe says",
    "plain": "plain: all frames at once, dense loss",
}


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    for way, line in result["fits"].items():
        runs = _measured(result, way)
        frames = [run["frames"] for run in runs]
        (dots,) = left.plot(frames, [run["peak"] / 1e9 for run in runs], "o", label=LABELS[way])
        if line is not None:
            ends = [line["from"], max(frames)]
            height = [(line["a"] + line["b"] * t) / 1e9 for t in ends]
            left.plot(ends, height, "-", color=dots.get_color(), label=equation(line))
    left.set(xlabel="T, frames of a clip", ylabel="peak above model and optimizer, GB")
    left.set(xlim=(0, None), ylim=(0, None))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))  # below: lines fill the axes
    _parts(right, _measured(result, "recipe"))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _measured(result: dict[str, Any], way: str) -> list[dict[str, Any]]:
    return [run for run in result["runs"] if run["way"] == way and "peak" in run]


def _parts(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Stacked bars: memory that each part keeps until backward, and temporary memory."""
    ticks = [str(run["frames"]) for run in runs]
    bottom = [0.0] * len(runs)
    for name in runs[0]["parts"] if runs else ():
        heights = [max(run["parts"][name], 0) / 1e6 for run in runs]
        axes.bar(ticks, heights, bottom=bottom, label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    rest = [max(run["peak"] / 1e6 - b, 0) for run, b in zip(runs, bottom, strict=True)]
    axes.bar(ticks, rest, bottom=bottom, label="scratch and gradients", color="lightgrey")
    axes.set(xlabel="T, frames of a clip, as the recipe says", ylabel="peak by part, MB")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
