"""What a cost model expects of a case, from the table that ``python -m benchmarks.cost`` writes."""

import csv
import re
from functools import lru_cache

from benchmarks.case import Case
from benchmarks.cost.machine import CARDS
from benchmarks.results import FOLDER

TABLE = FOLDER / "offline-sm_90" / "predicted.csv"


@lru_cache
def table() -> dict[tuple, str]:
    """(op, shape, precision, mode, card) to microseconds; empty where there is no table."""
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
    """Empty where nothing is expected of this card, nor of one that the model takes for equal (an
    H200 has the processors of an H100)."""
    equal = [name for name, one in CARDS.items() if one == CARDS.get(card)]
    found = (table().get((op, tuple(case[:3]), case.precision, mode, c)) for c in (card, *equal))
    return next(filter(None, found), "")


def _numbers(shape: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", shape))
