"""The options of one call."""

from typing import NamedTuple

from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)
from fastseq.ops.soft_dtw.options import COSTS

FORMS = ("paper", "code")


class LAVOptions(NamedTuple):
    gamma: float
    alpha: float
    window: float
    margin: float
    form: str
    cost: str
    divergence: bool
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        gamma: float,
        alpha: float,
        window: float,
        margin: float,
        form: str,
        cost: str,
        divergence: bool,
        reduction: str,
    ) -> "LAVOptions":
        check_choice(op, "form", form, FORMS)
        check_choice(op, "cost", cost, COSTS)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        check_bool(op, "divergence", divergence)
        return cls(
            check_positive(op, "gamma", gamma),
            check_nonnegative(op, "alpha", alpha),
            check_nonnegative(op, "window", window),
            check_positive(op, "margin", margin),
            form,
            cost,
            divergence,
            reduction,
        )
