"""How a stored frame has to be turned and mirrored to be shown."""

from __future__ import annotations

from typing import Any

import numpy as np

# By (rows and columns change places, columns run backwards, rows run backwards): quarter turns
# counterclockwise, and whether the picture is mirrored left to right after them.
_STEPS = {
    (False, False, False): (0, False),
    (False, True, True): (2, False),
    (False, True, False): (0, True),
    (False, False, True): (2, True),
    (True, False, True): (1, False),
    (True, True, False): (3, False),
    (True, True, True): (1, True),
    (True, False, False): (3, True),
}
_SLACK = 0.01  # of the larger entries: fixed-point numbers are never quite 0


class UnknownOrientation(ValueError):
    """A display matrix that neither turns by right angles nor mirrors."""


def orientation_of(frame: Any) -> tuple[int, bool]:
    """(quarter turns counterclockwise, mirrored left to right after them) of a PyAV frame.

    Raises UnknownOrientation. Stretching is left alone, as pixels are taken as square.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return (0, False) if matrix is None else _from_matrix(np.frombuffer(bytes(matrix), np.int32))


def _from_matrix(entries: np.ndarray) -> tuple[int, bool]:
    # (x, y) is shown at (a x + c y, b x + d y), y running down.
    a, b, _, c, d = (float(entry) / 2**16 for entry in entries[:5])
    straight, crossed = (max(abs(a), abs(d)), max(abs(b), abs(c)))
    if not straight and not crossed:
        return 0, False  # no map at all: FFmpeg shows such frames as they are stored
    if crossed <= _SLACK * straight and a and d:
        return _STEPS[False, a < 0, d < 0]
    if straight <= _SLACK * crossed and b and c:
        return _STEPS[True, c < 0, b < 0]
    raise UnknownOrientation(
        f"its display matrix ({a:g}, {b:g}; {c:g}, {d:g}) turns the picture by no right angle; "
        "rewrite the file upright with a video editor or FFmpeg"
    )


def upright(pixels: np.ndarray, quarter_turns: int, mirrored: bool) -> np.ndarray:
    """A view of (H, W, ...) as it is shown."""
    if quarter_turns:
        pixels = np.rot90(pixels, quarter_turns)
    return pixels[:, ::-1] if mirrored else pixels
