"""The options of one call."""

from typing import NamedTuple

from fastseq.ops.common.validate import REDUCTIONS, check_bool, check_choice, check_positive
from fastseq.ops.soft_dtw.options import check_bandwidth


class LRPropOptions(NamedTuple):
    variance: float
    temperature: float
    normalize: bool
    bandwidth: int | None
    reduction: str

    @classmethod
    def checked(
        cls,
        op: str,
        variance: float,
        temperature: float,
        normalize: bool,
        bandwidth: int | None,
        reduction: str,
    ) -> "LRPropOptions":
        check_bool(op, "normalize", normalize)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        variance = check_positive(op, "variance", variance)
        temperature = check_positive(op, "temperature", temperature)
        return cls(variance, temperature, normalize, check_bandwidth(op, bandwidth), reduction)
