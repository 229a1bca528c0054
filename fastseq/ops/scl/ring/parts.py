"""This rank's part of a call and what the ranks tell each other about theirs."""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.common.ring import Ring, Shapes
from fastseq.ops.scl.ring.options import RingOptions, Side

_TIMES = (torch.int64, torch.float32, torch.float64)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Part(NamedTuple):
    """Both views of one rank's frames."""

    views: tuple[Side, Side]

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        return tuple(valid_mask(s.valid, *s.z.shape[:2], s.z.device) for s in self.views)


class Parts:
    """The parts of all ranks: their shapes, and this rank's part as it travels.

    ``way`` names what the caller does with the parts, ``needed`` states whether gradients are.
    Raises ValueError, on all ranks, if the ranks' calls do not fit together.
    """

    def __init__(
        self,
        z1: Tensor,
        z2: Tensor,
        tau: Tensor | None,
        var: Tensor | None,
        t1: Tensor | None,
        t2: Tensor | None,
        valid1: Tensor | None,
        valid2: Tensor | None,
        opts: RingOptions,
        way: str,
        needed: bool,
    ) -> None:
        self.opts, self.ring = opts, Ring("scl_loss", opts.group, z1.device)
        kind = -1 if t1 is None else max(_kind(t1), _kind(t2))
        mixed = t1 is not None and _kind(t1) != _kind(t2)
        row = [*z1.shape, z2.shape[1], _FLOATS.index(z1.dtype), kind, mixed]
        row += [valid1 is not None, valid2 is not None, tau is not None, var is not None, needed]
        row += [zlib.crc32(repr(option).encode()) for option in (*opts[:-2], opts.split, way)]
        table = self.ring.integers(row)
        self._check(table)
        self.sizes = [(row[0], row[1], row[3]) for row in table]  # N, T1, T2 of each rank
        self.channels, self.dtype = z1.shape[2], z1.dtype
        self.masked = tuple(any(row[place] for row in table) for place in (7, 8))
        kinds = {row[5] for row in table}
        one = len(kinds) == 1 and not any(row[6] for row in table)
        self.times = _TIMES[kind] if one else torch.float64
        if opts.split == "frames":
            starts = [sum(row[place] for row in table[: self.ring.rank]) for place in (1, 3)]
        else:
            starts = [0, 0]
        sides = zip((z1, z2), (t1, t2), (valid1, valid2), starts, self.masked, strict=True)
        self.mine = Part(tuple(self._side(*side) for side in sides))

    def _side(self, z, t, valid, start: int, masked: bool) -> Side:
        n, frames = z.shape[:2]
        if t is None:
            t = torch.arange(start, start + frames, device=z.device).expand(n, frames)
        else:
            t = t.to(self.times)
        valid = valid_mask(valid, n, frames, z.device).contiguous() if masked else None
        return Side(z.contiguous(), t.contiguous(), valid)

    def travel(self, *more: Tensor) -> Iterator[tuple[int, Part, list[Tensor]]]:
        """(rank, its part, its ``more``) for every rank that this one's rows need, this one first.

        ``more``: tensors (k, N, T1 + T2) with the same k and dtype on all ranks.
        """
        if not self.opts.meet:
            yield self.ring.rank, self.mine, list(more)
            return
        mine = self._packed(self.mine) + list(more)
        shapes = [self._shapes(size, [len(x) for x in more]) for size in self.sizes]
        for rank, tensors in self.ring.blocks(mine, shapes):
            count = len(tensors) - len(more)
            yield rank, self._unpacked(tensors[:count]), tensors[count:]
            del tensors  # before the next block is received

    def _packed(self, part: Part) -> list[Tensor]:
        masks = [s.valid.view(torch.uint8) for s in part.views if s.valid is not None]
        return [*(s.z for s in part.views), *(s.t for s in part.views), *masks]

    def _unpacked(self, tensors: list[Tensor]) -> Part:
        masks = iter(tensors[4:])
        valid = [next(masks).view(torch.bool) if masked else None for masked in self.masked]
        return Part(tuple(map(Side, tensors[:2], tensors[2:4], valid)))

    def _shapes(self, size: Sequence[int], more: Sequence[int]) -> Shapes:
        n, *frames = size
        masks = [(n, t) for t, masked in zip(frames, self.masked, strict=True) if masked]
        sides = [(n, t, self.channels) for t in frames]
        return [*sides, *((n, t) for t in frames), *masks, *((k, n, sum(frames)) for k in more)]

    def _check(self, table: list[list[int]]) -> None:
        names = {2: "another D", 4: "another dtype"}
        if self.opts.split == "frames":
            names[0] = "another N"
        names[9] = "another kind of temperature (tensor or number)"
        names[10] = "another kind of variance (tensor or number)"
        options = (*RingOptions._fields[:-2], "split", "kind of backend")
        names |= {12 + k: f"another {name}" for k, name in enumerate(options)}
        first = table[0]
        for place, name in names.items():
            for rank, row in enumerate(table):
                if row[place] != first[place]:
                    raise ValueError(
                        f"scl_loss: rank {rank} of the group passed {name} than rank 0"
                        f"{_shown(name, row[place], first[place])}; pass the same on all ranks"
                    )
        needed = [bool(row[11]) for row in table]
        if any(needed) and not all(needed):
            raise ValueError(
                f"scl_loss: rank {needed.index(True)} of the group needs gradients, rank "
                f"{needed.index(False)} does not, so its backward would wait for ever; pass the "
                "encoder's output on every rank, also for no frames, or call all under no_grad"
            )
        given = [row[5] >= 0 for row in table]
        if any(given) and not all(given):
            raise ValueError(
                f"scl_loss: rank {given.index(True)} of the group passed t1 and t2, rank "
                f"{given.index(False)} did not; pass them on all ranks or on none"
            )


def _kind(t: Tensor) -> int:
    return _TIMES.index(t.dtype) if t.is_floating_point() else 0


def _shown(name: str, other: int, first: int) -> str:
    if name.endswith((" D", " N")):
        return f" ({other} and {first})"
    return f" ({_FLOATS[other]} and {_FLOATS[first]})" if name.endswith("dtype") else ""
