"""The options of one call, and the parts of the definition that the backends share."""

from typing import NamedTuple

# Exponents of unit vectors lie in [-2 rate, 0]. Down to this one exp is a normal float32, and sums
# of it are accurate without a shift by the maximum.
LEAST_EXPONENT = -80.0


class ColumnLSEOptions(NamedTuple):
    """``rate``: the inverse of the temperature, greater than 0."""

    rate: float

    @property
    def shifted(self) -> bool:
        """Whether exponentials need a shift by the greatest exponent of their column."""
        return -2 * self.rate < LEAST_EXPONENT
