"""Elements of FineGym's events that overlap in time."""

from __future__ import annotations

from collections.abc import Iterable


def later_wins(
    given: Iterable[tuple[float, float, int]],
) -> tuple[list[list[float | int]], bool]:
    """Segments without overlaps: each one replaces what earlier ones have in its time.

    Args:
        given: (start, stop, class) in seconds, in the order of the annotation.
    Returns:
        ([start, stop, class] sorted by time, whether any two overlapped).
    """
    kept: list[tuple[float, float, int]] = []
    overlaps = False
    for start, stop, number in given:
        rest = []
        for first, last, other in kept:
            if first < stop and start < last:
                overlaps = True
                rest += [(first, start, other)] * (first < start)
                rest += [(stop, last, other)] * (stop < last)
            else:
                rest.append((first, last, other))
        kept = [*rest, (start, stop, number)]
    return [[*segment] for segment in sorted(kept)], overlaps
