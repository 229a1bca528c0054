"""How a stored frame has to be turned and mirrored for display."""

from __future__ import annotations

from typing import Any

import numpy as np

# By (rows and columns exchanged, columns reversed, rows reversed): quarter turns counterclockwise,
# and whether the picture is mirrored left to right after them.
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
_SLACK = 0.01  # fraction of the larger entries: fixed-point zeros are not exact


class UnknownOrientation(ValueError):
    """A display matrix that neither turns by right angles nor mirrors."""


def orientation_of(frame: Any) -> tuple[int, bool]:
    """(quarter turns counterclockwise, mirrored left to right after them) of a PyAV frame.

    Raises UnknownOrientation. Stretching is ignored: pixels are assumed square.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for one of the frame's entries, such as EXIF
        return round(frame.rotation / 90) % 4, False
    return (0, False) if matrix is None else _from_matrix(np.frombuffer(bytes(matrix), np.int32))


def _from_matrix(entries: np.ndarray) -> tuple[int, bool]:
    # (x, y) is shown at (a x + c y, b x + d y), y running down.
    a, b, _, c, d = (float(entry) / 2**16 for entry in entries[:5])
    straight, crossed = (max(abs(a), abs(d)), max(abs(b), abs(c)))
    if not straight and not crossed:
        return 0, False  # no map: FFmpeg shows such frames as stored
    if crossed <= _SLACK * straight and a and d:
        return _STEPS[False, a < 0, d < 0]
    if straight <= _SLACK * crossed and b and c:
        return _STEPS[True, c < 0, b < 0]
    raise UnknownOrientation(
        f"its display matrix ({a:g}, {b:g}; {c:g}, {d:g}) is not a turn by a right angle; "
        "rewrite the file upright with a video editor or FFmpeg"
    )


def upright(pixels: np.ndarray, quarter_turns: int, mirrored: bool) -> np.ndarray:
    """A view of (H, W, ...) as displayed."""
    if quarter_turns:
        pixels = np.rot90(pixels, quarter_turns)
    return pixels[:, ::-1] if mirrored else pixels
