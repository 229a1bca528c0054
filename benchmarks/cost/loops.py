"""Identifies each loop by the source line of its ``for`` and gives its tile and trip count.

All knowledge about the kernels' loops is in this file. A loop that is not listed is reported under
its line, and the time model counts it once.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Sampled frames of the benchmark's inputs are 1.25 apart; weights extend over 45.4 frames at
# variance 10.
STEP, REACH = 1.25, 45.4


class Values(NamedTuple):
    """The values that trip counts depend on: the compile-time constants of a kernel, and the
    shape.
    """

    constants: dict[str, Any]
    n: int = 1
    t: int = 1
    d: int = 1

    def __getattr__(self, name: str) -> Any:
        return self.constants[name]


Count = Callable[[Values], float]


class Role(NamedTuple):
    """A kind of loop, found by its source line, with what the time model needs to know about it.

    Attributes:
        names: of the first, second, ... such loop of a kernel; the last name is for all others.
        trips: one function for each name.
        tile: rows and columns of one trip, or with ``whole`` of all trips together.
        folded: whether it counts as part of the loop around it.
        rereads: whether the data that it loads are in L1 already.
        last: whether only the last thread block runs it.
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
    """Tiles of columns within reach of BM rows, plus one since they start and end inside a tile."""
    return min(_tiles(v), (v.BM + 2 * REACH / STEP) / v.BN + 1)


def _block(v: Values) -> tuple[int, int]:
    return v.BM, v.BN


def _half(v: Values) -> float:
    """Tiles that a program of contrastive_idm's loss visits: half of all, and the one on the
    diagonal.
    """
    return ceil(v.t / v.BM) / 2 + 0.5


def _square(v: Values) -> tuple[int, int]:
    return v.BM, v.BM


def _beside(v: Values) -> float:
    """Tiles with the frames of BM rows and the frames beside them; in float32 this loop runs over
    all.
    """
    if v.PLANES > 1:
        return _tiles(v)
    return min(_tiles(v), max(v.BM / v.BN, 1) + 2)


def _one(v: Values) -> int:
    return 1


def _never(v: Values) -> int:
    return 0


def _queue_tiles(v: Values) -> float:
    from fastseq.ops.queue_nce.triton import parts

    return parts(v.t, v.BN)[1] // v.BN


def _parts(v: Values) -> int:
    """Parts of the queue that one program scans, as queue_nce's launcher chooses."""
    from fastseq.ops.queue_nce.triton import ENOUGH, parts

    return 1 if ceil(v.n / v.BM) * parts(v.t, v.BN)[0] <= ENOUGH else 2


def _cells(v: Values) -> tuple[int, int]:
    return 32, 32


def _triton(kernels: str, line: str, name: str, trips: Count, **options) -> Role:
    return Role(kernels, re.escape(line), (name,), (trips,), **options)


def _cuda(line: str, name: str, trips: Count, **options) -> Role:
    return Role("soft_dtw", re.escape(line), (name,), (trips,), **options)


# The benchmark has 3 positives. Sums are over 64 blocks of 64 rows for 16 sequences at a time.
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
    # The loop over channels of planes has no instruction on its own line, so a line of its body is
    # used.
    Role(
        "scl_",
        r"range\(0, DP, BK\)|b_z = tl\.load\(p_tile\)$",
        ("channels",),
        (lambda v: ceil(v.DP / v.BK),),
        folded=True,
    ),
    # contrastive_idm's benchmark has one frame within the window, so the tiles beside one are near
    # too.
    _triton(
        "cidm_loss",
        "range(0, near)",
        "near",
        lambda v: _half(v) if v.PLANES == 3 else min(_half(v), 2),
        tile=_square,
    ),
    _triton("cidm_loss", "range(near, tiles)", "far", lambda v: max(_half(v) - 2, 0), tile=_square),
    _triton("cidm_grad", "range(0, end - begin)", "near", _beside, tile=_block),
    _triton(
        "cidm_grad",
        "range(0, tiles - (end - begin))",
        "far",
        lambda v: _tiles(v) - _beside(v),
        tile=_block,
    ),
    _triton("cidm_direct_loss", "range(0, tiles)", "tiles", lambda v: _half(v), tile=_square),
    _triton("cidm_direct_grad", "tl.cdiv(n, BN), 0)", "tiles", _tiles, tile=_block),
    _triton("cidm_", "range(0, tiles, 64)", "spans", lambda v: ceil(v.t / v.BM / 64)),
    _triton("cidm_prepare", "range(0, D, BK)", "channels", lambda v: ceil(v.D / v.BK)),
    _triton("queue_nce_scan", "range(0, whole, BN", "tiles", _queue_tiles, tile=_block),
    _triton("queue_nce_scan", "tl.maximum(whole, 0), count", "last tile", _never),
    _triton("queue_nce_scan", "range(i_s * fold, (i_s + 1) * fold)", "parts", _parts),
    _triton("queue_nce_", "range(0, P, BP)", "positives", lambda v: ceil(3 / v.BP)),
    _triton("queue_nce_", "range(0, P)", "positives", lambda v: 3),
    _triton("tcc_", "n_v, 0), BN)", "tiles", _tiles, tile=_block),
    _triton("tcc_", "n_u, 0), BN)", "tiles", _tiles, tile=_block),
    _triton("tcc_through", "tl.load(p_len + i_u), 0), BN)", "tiles", _tiles, tile=_block),
    _triton("tcc_", "range(0, hops // M)", "hops", _one),
    _triton("tcc_reduce", "range(0, hops)", "hops", lambda v: 2),
    _triton("tcc_centre", "range(0, n, BT)", "frames", lambda v: ceil(v.t / v.BT)),
    _triton("tcc_centre", "range(i_c, ", "sequences", _one),
    _triton("tcc_pack", "range(0, D, BK)", "channels", lambda v: ceil(v.D / v.BK)),
    _triton("tcc_finish", "range(0, D, BK)", "channels", lambda v: ceil(v.D / v.BK)),
    _triton("tcc_pack", "range(0, N, BV)", "sequences", lambda v: ceil(v.n / 64)),
    _triton("tcc_", "len(c) * BK, D, BK)", "channels", lambda v: ceil(v.D / v.BK) - 1, folded=True),
    _triton("", "range(BK, D, BK)", "channels", lambda v: ceil(v.D / v.BK) - 1, folded=True),
    _triton("", "range(0, N, BV)", "sequences", lambda v: ceil(v.n / 16), last=True),
    _triton("", "range(0, blocks, BB)", "blocks", lambda v: ceil(ceil(v.t / 64) / 64)),
    # For each wave there are two loops, of eight steps per trip: one for phases whose cells all
    # exist, and one for the others, which the compiler places first.
    Role(
        "soft_dtw_forward",
        re.escape("first = begin; first < end"),
        ("recursion at an edge", "recursion"),
        (_never, lambda v: 4),
        _cells,
        whole=True,
    ),
    Role(
        "soft_dtw_backward",
        re.escape("first = begin; first < end"),
        ("weights at an edge", "weights"),
        (_never, lambda v: 2),  # two warps take turns: half a phase each
        _cells,
        whole=True,
    ),
    Role(
        "soft_dtw",
        re.escape("last = kLanes - 1; last >= 0"),
        ("E at an edge", "E"),
        (_never, lambda v: 4),
        _cells,
        whole=True,
    ),
    # Channels come in groups of 16; each warp handles every other group. The code that reads four
    # channels at once comes first, then the code that reads one.
    Role(
        "soft_dtw",
        re.escape("group = half;"),
        ("costs", "costs in single channels"),
        (lambda v: ceil(v.D / 32), _never),
        _cells,
        whole=True,
    ),
    # A warp computes dx or dy of 32 channels; the loop contains the code of both.
    Role(
        "soft_dtw",
        re.escape("task < 2 * ((p.channels + 31) / 32)"),
        ("gradients", "gradients in single channels"),
        (lambda v: ceil(ceil(v.D / 32) / 2) / 2, _never),
        _cells,
        whole=True,
    ),
    _cuda("step = 0; step < 4", "frames", lambda v: 4, folded=True),
    _cuda("group = 0; group < x.channels", "differences", _never),
    _cuda("d = group; d < lesser", "differences", _never),
    _cuda("int polls = 0;", "waiting", _one),
    _cuda("t >= first - 2", "phases", _one),
    _cuda("t = first - 1; t <= last", "phases", _one),
    _cuda("begin[at] = T(0)", "zeros", _never),
    _cuda("a.dcost && r < rows", "zeros", _never),
    _cuda("row = 0; row < count", "centre", _never),
    _cuda("d = thread; d < lesser", "centre", _never),
)
# Number of warps of a soft_dtw thread block that run a loop.
WARPS: dict[str, Count] = {
    "recursion": _one,
    "recursion at an edge": _one,
    "weights": lambda v: 2,
    "weights at an edge": lambda v: 2,
    "E": _one,
    "E at an edge": _one,
    "costs": lambda v: 4,
    "costs in single channels": lambda v: 4,
    "gradients": lambda v: min(4, 2 * ceil(v.D / 32)),  # dx or dy of 32 channels per warp
    "gradients in single channels": lambda v: min(4, 2 * ceil(v.D / 32)),
}


class Named(NamedTuple):
    """A loop that was recognised, in a form that can be passed between processes."""

    name: str
    place: str  # such as triton_kernels.py:97
    role_at: int | None = None  # index in ROLES
    which: int = 0  # index in the role's names
    unrolled: int = 1  # trips that the compiler merged into one

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
    """The source line and the one before it, read from this checkout wherever the code was
    compiled. Empty for files outside the project.
    """
    for below in ("fastseq/ops/", "csrc/soft_dtw/"):
        if below in path:
            lines = _lines(ROOT / below / path.rpartition(below)[2])
            break
    else:
        lines = _lines(ROOT / "csrc/soft_dtw" / Path(path).name)  # NVRTC records only the file name
    if not 0 < number <= len(lines):
        return "", ""
    return lines[number - 1], lines[number - 2] if number > 1 else ""


@cache
def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
