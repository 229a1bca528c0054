"""The options of one call."""

from typing import NamedTuple

from fastseq.ops.common.validate import (
    REDUCTIONS,
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
)
from fastseq.ops.soft_dtw.options import SOFTMINS


class GTAOptions(NamedTuple):
    gamma: float
    temperature: float
    softmin: str
    consistency: bool
    label_smoothing: float
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        gamma: float,
        temperature: float,
        softmin: str,
        consistency: bool,
        label_smoothing: float,
        reduction: str,
    ) -> "GTAOptions":
        check_choice(op, "softmin", softmin, SOFTMINS)
        check_bool(op, "consistency", consistency)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(
            check_positive(op, "gamma", gamma),
            check_positive(op, "temperature", temperature),
            softmin,
            consistency,
            check_nonnegative(op, "label_smoothing", label_smoothing, below=1),
            reduction,
        )


class AE2Options(NamedTuple):
    gamma: float
    temperature: float
    softmin: str
    margin: float
    ratio: float
    scale: float
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        gamma: float,
        temperature: float,
        softmin: str,
        margin: float,
        ratio: float,
        scale: float,
        reduction: str,
    ) -> "AE2Options":
        check_choice(op, "softmin", softmin, SOFTMINS)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        return cls(
            check_positive(op, "gamma", gamma),
            check_positive(op, "temperature", temperature),
            softmin,
            check_nonnegative(op, "margin", margin),
            check_nonnegative(op, "ratio", ratio),
            check_positive(op, "scale", scale),
            reduction,
        )
