"""The line a + b T through the peaks that training.memory measures."""

from typing import Any


def fit(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Fit peak = a + b T by least squares, in bytes; None for fewer than two measurements.

    R^2 is None for two measurements, which a line always fits.
    """
    import numpy as np

    points = [(run["frames"], run["peak"]) for run in runs if "peak" in run]
    if len(points) < 2:
        return None
    frames, peaks = np.array(points, dtype=float).T
    b, a = np.polyfit(frames, peaks, 1)
    r2 = None
    if len(points) > 2:
        left = ((peaks - a - b * frames) ** 2).sum()
        r2 = float(1 - left / ((peaks - peaks.mean()) ** 2).sum())
    return {"a": float(a), "b": float(b), "r2": r2, "from": float(frames.min())}


def equation(line: dict[str, Any]) -> str:
    """A fitted line as text."""
    quality = "two lengths" if line["r2"] is None else f"R^2 = {line['r2']:.5f}"
    return f"{line['a'] / 1e6:.0f} MB + {line['b'] / 1e3:.1f} kB x T, {quality}"
