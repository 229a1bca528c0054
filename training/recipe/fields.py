"""Fields of a recipe's sections: defaults with choices and limits, which `load` checks."""

from dataclasses import field
from typing import Any


def anything(default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata=metadata)


def one_of(default: Any, *choices: Any, **metadata: Any) -> Any:
    return anything(default, choices=choices, **metadata)


def above(default: Any, limit: float, **metadata: Any) -> Any:
    return anything(default, above=limit, **metadata)


def at_least(default: Any, minimum: float, **metadata: Any) -> Any:
    return anything(default, minimum=minimum, **metadata)


def share(default: Any) -> Any:
    return anything(default, minimum=0, maximum=1)


def part(default: Any) -> Any:
    """A share below 1: the whole would leave nothing to learn from."""
    return anything(default, minimum=0, maximum=0.99)


def loss_weight() -> Any:
    return anything(None, minimum=0, maximum=1e12)  # finite


def backend() -> Any:
    return anything("auto", may_change=True)
