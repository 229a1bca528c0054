"""Times that the cost model predicts for a case, from the table of ``python -m
benchmarks.cost``.
"""

import csv
import re
from functools import lru_cache

from benchmarks.case import Case
from benchmarks.cost.machine import CARDS
from benchmarks.results import FOLDER

TABLE = FOLDER / "offline-sm_90" / "predicted.csv"


@lru_cache
def table() -> dict[tuple, str]:
    """(op, shape, precision, mode, card) to microseconds; empty if there is no table."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {
            (row["op"], _numbers(row["shape"]), row["dtype"], row["mode"], row["card"]): row[
                "predicted_us"
            ]
            for row in csv.DictReader(file)
        }


def microseconds(op: str, case: Case, mode: str, card: str) -> str:
    """Prediction for this card, or for one that the model treats as equal (an H200 has the
    processors of an H100); empty if there is none.
    """
    equal = [name for name, one in CARDS.items() if one == CARDS.get(card)]
    found = (table().get((op, tuple(case[:3]), case.precision, mode, c)) for c in (card, *equal))
    return next(filter(None, found), "")


def _numbers(shape: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", shape))
