"""The options of one call."""

from collections.abc import Sequence
from typing import NamedTuple

from fastseq.ops.common.validate import (
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)

FORMS = ("paper", "code")


class VCLROptions(NamedTuple):
    """The checked options. ``temperature`` is 1 where the call has it as a tensor."""

    weights: tuple[float, ...]
    temperature: float
    normalize: bool
    form: str

    @classmethod
    def checked(
        cls, op: str, weights: Sequence[float], temperature: float, normalize: bool, form: str
    ) -> "VCLROptions":
        try:
            count = len(weights)
        except TypeError:
            raise TypeError(f"{op}: weights must be 4 numbers, got {weights!r}") from None
        if count != 4:
            raise ValueError(f"{op}: weights must be 4 numbers, got {count}")
        temperature = check_positive(op, "temperature", temperature)
        check_bool(op, "normalize", normalize)
        checked = [check_nonnegative(op, f"weights[{i}]", w) for i, w in enumerate(weights)]
        check_choice(op, "form", form, FORMS)
        return cls(tuple(checked), temperature, normalize, form)
