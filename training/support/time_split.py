"""The frames of a clip that one rank has when ``data.split_time`` ranks share every clip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist


@dataclass(frozen=True)
class TimeSplit:
    """Of every clip of T frames, this rank has frames ``part`` T / ``parts`` to ``(part + 1)`` T /
    ``parts``; the ranks of ``group``, in their order, have the other parts.

    T is the padded length of a clip, a multiple of ``parts``. Its real frames come first, so that
    a rank may have only padding.
    """

    parts: int
    part: int
    group: "dist.ProcessGroup"
