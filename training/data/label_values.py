"""Values of a labels file: splits, times in frames or seconds, and how messages show a value."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

SPLITS = ("train", "val", "test")
UNITS = ("frames", "seconds")
_LISTED = 20  # known names that a hint lists


def in_seconds(entry: Mapping[str, Any]) -> bool:
    """Whether the times of an entry are in seconds; the default is frames."""
    return entry.get("unit") == "seconds"


def is_time(value: Any, seconds: bool) -> bool:
    """Whether a value is a whole number or, in seconds, a finite number."""
    return type(value) is int or (seconds and type(value) is float and math.isfinite(value))


def in_unit(value: Any, seconds: bool) -> str:
    """A time as messages show it."""
    return f"{value:g} s" if seconds else f"{value}"


def time_advice(value: Any) -> str:
    """Advice for a value that is not a frame number: a whole one written otherwise, or seconds."""
    if advice := whole_advice(value):
        return advice
    return '; for seconds, write "unit": "seconds"' if is_time(value, True) else ""


def whole_advice(value: Any) -> str:
    """Advice for a whole number that is written as a float or a string."""
    try:
        number = int(float(value)) if type(value) in (float, str) else None
    except (ValueError, OverflowError):
        return ""
    whole = number is not None and number == float(value)
    return f"; write {number}" if whole else ""


def shown(value: Any) -> str:
    """The beginning of a value's JSON."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def listed_names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def known_hint(key: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the most similar known one, or the known ones."""
    near = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known: {listed_names(known)}"
