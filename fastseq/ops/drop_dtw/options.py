"""The options of one call, as the backends receive them."""

from typing import NamedTuple

from fastseq.ops.common.validate import REDUCTIONS, check_bool, check_choice, check_positive

SOFTMINS = ("logsumexp", "prob")


class DropDTWOptions(NamedTuple):
    """``up``: where a frame may be matched to the next row too: in no column ("never"), in every
    column ("always"), or in the first and the last real column ("ends")."""

    gamma: float
    softmin: str
    contiguous: bool
    up: str

    @classmethod
    def checked(
        cls,
        op: str,
        gamma: float,
        softmin: str,
        contiguous: bool = True,
        exclusive: bool = True,
        reduction: str = "none",
    ) -> "DropDTWOptions":
        """reduction is only checked here."""
        check_choice(op, "softmin", softmin, SOFTMINS)
        check_choice(op, "reduction", reduction, REDUCTIONS)
        check_bool(op, "contiguous", contiguous)
        check_bool(op, "exclusive", exclusive)
        return cls(
            check_positive(op, "gamma", gamma),
            softmin,
            contiguous,
            "never" if exclusive else "always",
        )
