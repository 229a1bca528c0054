"""Which loop is which: by the source line of its ``for``, with its tile and its trips.

The only place that knows the kernels' loops. A loop that is not listed here is reported under its
line and counted once by the time model.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Sampled frames of the benchmark's inputs are 1.25 apart, weights reach 45.4 frames at variance 10.
STEP, REACH = 1.25, 45.4


class Values(NamedTuple):
    """What trips depend on: the compile-time constants of a kernel, and the shape."""

    constants: dict[str, Any]
    n: int = 1
    t: int = 1
    d: int = 1

    def __getattr__(self, name: str) -> Any:
        return self.constants[name]


Count = Callable[[Values], float]


class Role(NamedTuple):
    """``names``: of the first, second ... such loop of a kernel (the last one is for all others).

    ``trips``: one function a name. ``tile``: rows and columns of a trip, or with ``whole`` of all
    trips together. ``folded``: counted as part of the loop around it. ``rereads``: what it loads is
    in L1 by then. ``last``: the last thread block alone goes through it.
    """

    kernels: str
    line: str
    names: tuple[str, ...]
    trips: tuple[Count, ...]
    tile: Callable[[Values], tuple[int, int]] | None = None
    whole: bool = False
    folded: bool = False
    rereads: bool = False
    last: bool = False


def _tiles(v: Values) -> int:
    return ceil(v.t / v.BN)


def _near(v: Values) -> float:
    """Tiles of columns within reach of BM rows; one more for where they begin and end."""
    return min(_tiles(v), (v.BM + 2 * REACH / STEP) / v.BN + 1)


def _block(v: Values) -> tuple[int, int]:
    return v.BM, v.BN


def _one(v: Values) -> int:
    return 1


def _never(v: Values) -> int:
    return 0


def _queue_tiles(v: Values) -> float:
    from fastseq.ops.queue_nce.triton import parts

    return parts(v.t, v.BN)[1] / v.BN


def _cells(v: Values) -> tuple[int, int]:
    return 32, 32


def _triton(kernels: str, line: str, name: str, trips: Count, **options) -> Role:
    return Role(kernels, re.escape(line), (name,), (trips,), **options)


def _cuda(line: str, name: str, trips: Count, **options) -> Role:
    return Role("soft_dtw", re.escape(line), (name,), (trips,), **options)


# Positives of the benchmark: 3. Sums are of 64 blocks of 64 rows for 16 sequences at a time.
ROLES = (
    Role(
        "scl_",
        re.escape("range(0, careful if CAREFUL else plain)"),
        ("near", "far"),
        (_near, lambda v: _tiles(v) - _near(v)),
        _block,
    ),
    _triton("scl_", "range(0, units, GROUP)", "units", lambda v: ceil(v.t / 64 / 128)),
    _triton("scl_stats", "range(0, turns)", "near", _near, tile=_block),
    _triton("scl_stats", "range(0, plain)", "far", lambda v: _tiles(v) - _near(v), tile=_block),
    _triton("scl_stats", "while turns > 0", "attempts", _one),
    # The loop over channels of planes has no instruction of its own line: one of what it calls.
    Role(
        "scl_",
        r"range\(0, DP, BK\)|b_z = tl\.load\(p_tile\)$",
        ("channels",),
        (lambda v: ceil(v.DP / v.BK),),
        folded=True,
    ),
    _triton(
        "cidm_loss",
        "range(0, tiles)",
        "tiles",
        lambda v: ceil(v.t / v.BM) / 2 + 0.5,
        tile=lambda v: (v.BM, v.BM),
    ),
    _triton("cidm_grad", "tl.cdiv(n, BN), 0)", "tiles", _tiles, tile=_block),
    _triton("queue_nce_scan", "range(i_s * span, stop, BN)", "tiles", _queue_tiles, tile=_block),
    _triton("queue_nce_", "range(0, D, BC)", "channels", lambda v: ceil(v.D / v.BC)),
    _triton("queue_nce_", "range(0, P)", "positives", lambda v: 3),
    _triton("tcc_nearest", "n_v, 0), BN)", "tiles", _tiles, tile=_block),
    _triton("tcc_", "n_u, 0), BN)", "tiles", _tiles, tile=_block),
    Role(
        "tcc_grad",
        re.escape("range(0, n_u, BN)"),
        ("as keys", "back"),
        (_tiles, _tiles),
        _block,
    ),
    _triton("tcc_grad", "range(0, n_v, BN)", "as queries", _tiles, tile=_block),
    _triton("tcc_grad", "range(0, hops // M)", "hops", _one),
    _triton("tcc_reduce", "range(0, hops)", "hops", lambda v: 2),
    _triton("tcc_centre", "range(0, n, BT)", "frames", lambda v: ceil(v.t / v.BT)),
    _triton("tcc_centre", "range(i_c, ", "sequences", _one),
    _triton("tcc_pack", "range(0, D, BK)", "channels", lambda v: ceil(v.D / v.BK)),
    _triton("tcc_pack", "range(0, N, BV)", "sequences", lambda v: ceil(v.n / 64)),
    _triton("", "range(BK, D, BK)", "channels", lambda v: ceil(v.D / v.BK) - 1, folded=True),
    _triton("", "range(0, N, BV)", "sequences", lambda v: ceil(v.n / 16), last=True),
    _triton("", "range(0, blocks, BB)", "blocks", lambda v: ceil(ceil(v.t / 64) / 64)),
    _cuda("k < kLanes; ++k", "recursion", lambda v: 32, tile=_cells, whole=True),
    _cuda("k = kLanes - 1; k >= 0", "E", lambda v: 32, tile=_cells, whole=True),
    _cuda(
        "d < p.channels; d += kChunk", "costs", lambda v: ceil(v.D / 32), tile=_cells, whole=True
    ),
    _cuda("d < kChunk; ++d", "channels", lambda v: 32, folded=True),
    _cuda(
        "d < p.channels; d += kGradientThreads",
        "gradients",
        lambda v: ceil(v.D / 128),
        tile=_cells,
        whole=True,
    ),
    _cuda("c < columns; c += kHalf", "halves", lambda v: 2, folded=True),
    _cuda("i < kLanes; i += kGroup", "rows", lambda v: 8, folded=True, rereads=True),
    _cuda("cell < kBlock; cell += kLanes", "is E 0", lambda v: 32),
    _cuda("while (seen < value)", "waiting", _one),
    _cuda("t >= strip.first_phase() - 1", "phases", _one),
    _cuda("t = first - 1; t <= last", "phases", _one),
    _cuda("begin[at] = T(0)", "zeros", _never),
    _cuda("a.dcost && r < rows", "zeros", _never),
)
# How many warps of a thread block of soft_dtw run a loop.
WARPS: dict[str, Count] = {
    "recursion": _one,
    "E": _one,
    "costs": lambda v: 4,
    "gradients": lambda v: min(4, ceil(v.D / 32)),  # a channel per thread
}


class Named(NamedTuple):
    """A loop that was recognised, in a form that processes can hand to each other."""

    name: str
    place: str  # triton_kernels.py:97
    role_at: int | None = None  # in ROLES
    which: int = 0  # of the role's names
    unrolled: int = 1  # trips that the compiler has made one

    @property
    def role(self) -> Role | None:
        return None if self.role_at is None else ROLES[self.role_at]

    def trips(self, values: Values) -> float:
        return self.role.trips[self.which](values) / self.unrolled if self.role else 1


class Namer:
    """Names the loops of one kernel in the order of their code."""

    def __init__(self, kernel: str) -> None:
        self.kernel, self.seen = kernel, Counter()

    def __call__(self, line: tuple[str, int] | None) -> Named:
        if line is None:
            return Named("?", "?")
        text, before = source_line(*line)
        place = f"{Path(line[0]).name}:{line[1]}"
        for k, role in enumerate(ROLES):
            if role.kernels in self.kernel and re.search(role.line, text):
                which = min(self.seen[k], len(role.names) - 1)
                self.seen[k] += 1
                unrolled = re.search(r"FASTSEQ_UNROLL\((\d+)\)", before)
                return Named(
                    role.names[which], place, k, which, int(unrolled[1]) if unrolled else 1
                )
        return Named(place, place)


@lru_cache(maxsize=4096)
def source_line(path: str, number: int) -> tuple[str, str]:
    """The line and the one before it, in this checkout wherever the code was compiled; empty where
    the file is none of ours."""
    for below in ("fastseq/ops/", "csrc/soft_dtw/"):
        if below in path:
            lines = _lines(ROOT / below / path.rpartition(below)[2])
            break
    else:
        lines = _lines(ROOT / "csrc/soft_dtw" / Path(path).name)  # NVRTC knows names alone
    if not 0 < number <= len(lines):
        return "", ""
    return lines[number - 1], lines[number - 2] if number > 1 else ""


@cache
def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
