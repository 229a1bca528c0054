"""A cost model of scl_loss over GPUs that share one video's T, and of the two all-gather forms.

Each of R ranks has B = T / R frames of both views, in bfloat16 with 128 channels. A block is the
pairs of a rank's frames with another rank's, in both directions: 2 N B² pairs.

- Ring: in R - 1 hops the blocks travel around. A hop sends the next block while the present one is
  computed, so forward and backward take (R - 1) max(hop, block) + block each.
- All-gather, own rows: all columns arrive first, then a rank computes its rows. The columns are
  kept for the backward, which gathers three numbers a frame.
- All-gather, whole loss: each rank computes all T rows and keeps its part of the gradient.

A pass of pairs has the time that ``benchmarks.cost`` derives from the compiled kernels of one GPU:
their thread blocks, tiles and clocks. Nothing here was measured.
"""

import csv
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.cost.machine import CARDS, VALUE, Card
from benchmarks.cost.model import Part, launch_us

CLOCKS = Path(__file__).parents[1] / "results/offline-sm_90/scl.csv"
CONFIGURATION = "bf16 D=128 shift"
CHANNELS, NUMBER_BYTES = 128, 2  # bfloat16
TIME_BYTES, MASK_BYTES = 8, 1  # int64 frame numbers, one bool
ROW_BYTES = 3 * 4  # log-sum-exp, weight and target of a row, float32
LONG = 1024  # frames from which scl's kernels use larger tiles


class Links(NamedTuple):
    """Rates in bytes per second and direction; latency in seconds."""

    nvlink: float = 450e9
    network: float = 50e9
    node: int = 8
    latency: float = 10e-6

    def rate(self, ranks: int) -> float:
        """The slowest link of the ring: over several nodes, one GPU of each sends to the next."""
        return self.nvlink if ranks <= self.node else self.network

    def gather_rate(self, ranks: int) -> float:
        """Of an all-gather: data enters a node once, over the adapters of all its GPUs (NCCL)."""
        if ranks <= self.node:
            return self.nvlink
        return min(self.nvlink, self.node * self.network)


class Problem(NamedTuple):
    """``videos`` pairs of views of ``frames`` frames, shared by ``ranks`` GPUs."""

    frames: int
    ranks: int
    videos: int = 1

    @property
    def part(self) -> int:
        """Frames of a view that the largest rank has."""
        return -(-self.frames // self.ranks)


class Kernel(NamedTuple):
    """A far tile and the rest of a thread block, in clocks (see ``benchmarks.cost.model``)."""

    rows: int
    columns: int
    load: float
    alone: float
    outside: Part
    side_by_side: int


class Way(NamedTuple):
    """One way to compute the loss: seconds and bytes of a rank."""

    forward: float
    backward: float
    memory: float  # bytes above the rank's inputs and gradients

    @property
    def both(self) -> float:
        return self.forward + self.backward


@cache
def kernels(name: str) -> dict[int, Kernel]:
    """The configurations of a kernel by the rows of their tile, from the analysis on file."""
    with CLOCKS.open(newline="") as file:
        lines = [r for r in csv.DictReader(file) if r["configuration"] == CONFIGURATION]
    found, tile = {}, None
    for line in lines:
        if line["kernel"] != name:
            continue
        load, alone = float(line["load_clocks"]), float(line["alone_clocks"])
        if line["loop"] == "far":
            tile = int(line["tile_rows"]), int(line["tile_columns"]), load, alone
        elif line["loop"] == "outside loops" and tile:
            outside = Part(1, load, alone)
            found[tile[0]] = Kernel(*tile, outside, int(line["blocks_per_sm"]))
            tile = None
    if not found:
        raise RuntimeError(
            f"{CLOCKS} has no loop 'far' of {name} at {CONFIGURATION}: run "
            "python -m benchmarks.cost --op scl"
        )
    return found


def kernel(name: str, columns: int) -> Kernel:
    """The configuration that the op chooses for this many columns."""
    sizes = kernels(name)
    return sizes[max(sizes) if columns >= LONG else min(sizes)]


def pass_seconds(name: str, rows: int, columns: int, videos: int, card: Card) -> float:
    """Seconds of one direction: ``rows`` by ``columns`` frames of each video, in one launch."""
    one = kernel(name, columns)
    grid = videos * -(-rows // one.rows)
    trips = -(-columns // one.columns)
    parts = (Part(trips, one.load, one.alone), one.outside)
    return launch_us(parts, grid, one.side_by_side, card) * 1e-6


def forward_block(rows: int, columns: int, videos: int, card: Card) -> float:
    return 2 * pass_seconds("scl_stats_kernel", rows, columns, videos, card)


def backward_block(rows: int, columns: int, videos: int, card: Card) -> float:
    return 2 * pass_seconds("scl_grad_kernel", rows, columns, videos, card)


def block_flop(part: int, videos: int, backward: bool = False) -> int:
    """Floating-point operations of a block: one product a direction, and one more backward."""
    return 2 * (2 if backward else 1) * 2 * videos * part**2 * CHANNELS


def frame_bytes(backward: bool = False) -> int:
    """Bytes that a hop sends for a frame of one view."""
    sent = CHANNELS * NUMBER_BYTES + TIME_BYTES + MASK_BYTES
    return sent + (ROW_BYTES if backward else 0)


def hop_bytes(problem: Problem, backward: bool = False) -> int:
    return 2 * problem.videos * problem.part * frame_bytes(backward)


def hop_seconds(problem: Problem, links: Links, backward: bool = False) -> float:
    return hop_bytes(problem, backward) / links.rate(problem.ranks) + links.latency


def exposed(problem: Problem, links: Links, card: Card) -> float:
    """Seconds of forward and backward in which a rank waits for a hop."""
    part, videos = problem.part, problem.videos
    waits = 0.0
    for backward, block in ((False, forward_block), (True, backward_block)):
        waits += max(0.0, hop_seconds(problem, links, backward) - block(part, part, videos, card))
    return (problem.ranks - 1) * waits


def ring(problem: Problem, links: Links, card: Card) -> Way:
    part, videos, hops = problem.part, problem.videos, problem.ranks - 1
    times = []
    for backward, block in ((False, forward_block), (True, backward_block)):
        here = block(part, part, videos, card)
        times.append(hops * max(hop_seconds(problem, links, backward), here) + here)
    frames = 2 * videos * part
    # The block in use and the one that arrives; sums of a block beside those of all blocks so far.
    forward = 2 * frames * frame_bytes() + 2 * frames * ROW_BYTES
    backward = 2 * frames * frame_bytes(backward=True) + frames * (4 * CHANNELS + ROW_BYTES)
    return Way(*times, max(forward, backward))


def gather_own_rows(problem: Problem, links: Links, card: Card) -> Way:
    part, videos, ranks = problem.part, problem.videos, problem.ranks
    columns = ranks * part
    forward = gather_seconds(hop_bytes(problem), ranks, links)
    forward += forward_block(part, columns, videos, card)
    backward = gather_seconds(2 * videos * part * ROW_BYTES, ranks, links)
    backward += backward_block(part, columns, videos, card)
    memory = 2 * videos * columns * frame_bytes(backward=True)
    memory += 2 * videos * part * (4 * CHANNELS + ROW_BYTES)
    return Way(forward, backward, memory)


def gather_whole(problem: Problem, links: Links, card: Card) -> Way:
    videos, ranks = problem.videos, problem.ranks
    columns = ranks * problem.part
    forward = gather_seconds(hop_bytes(problem), ranks, links)
    forward += forward_block(columns, columns, videos, card)
    backward = backward_block(columns, columns, videos, card)
    kept = 6 * 4  # float32 numbers a frame, fastseq/ops/scl/README.md
    memory = 2 * videos * columns * (frame_bytes() + kept + CHANNELS * NUMBER_BYTES)
    return Way(forward, backward, memory)


WAYS = {
    "ring": ring,
    "all-gather, own rows": gather_own_rows,
    "all-gather, whole loss": gather_whole,
}


def gather_seconds(part_bytes: float, ranks: int, links: Links) -> float:
    """An all-gather of ``part_bytes`` of each rank: one latency, the bytes of R - 1 hops."""
    if ranks == 1:
        return 0.0
    return (ranks - 1) * part_bytes / links.gather_rate(ranks) + links.latency


def hidden_from(
    videos: int, rate: float, latency: float, card: Card, backward: bool = False
) -> int:
    """Frames per rank from which every hop hides behind a block: the smaller of two bounds.

    A hop takes 2 N B b / rate + latency seconds, b = `frame_bytes`. A block takes at least

    - 2 N c B² on a full GPU, c = seconds per pair: the far tile's load over its pairs, the
      multiprocessors and the clock. So the hop hides from the positive root of
      2 N c B² = 2 N B b / rate + latency;
    - 2 (l + a B), what one thread block alone takes: l its start, a its seconds per column. If
      a > N b / rate, the hop hides from (latency - 2 l) / (2 (a - N b / rate)).

    Both are upper limits: launches and multiprocessors without work make a block slower.
    """
    sizes = kernels("scl_grad_kernel" if backward else "scl_stats_kernel").values()
    pair = min(k.load / (k.rows * k.columns) for k in sizes) / card.processors / card.clock
    per_frame = frame_bytes(backward) / rate
    full = per_frame + math.sqrt(per_frame**2 + 2 * pair * latency / videos)
    bounds = [full / (2 * pair)]
    column = min(k.alone / k.columns for k in sizes) / card.clock
    start = min(k.outside.alone for k in sizes) / card.clock + VALUE["launch_us"] * 1e-6
    if column > videos * per_frame:
        bounds.append((latency - 2 * start) / (2 * (column - videos * per_frame)))
    return max(1, math.ceil(min(bounds)))


class Transformer(NamedTuple):
    """The attention of an encoder over a clip; the default is recipes/carl.yaml."""

    layers: int = 3
    hidden: int = 256
    share: float = 0.35  # of the tensor cores' peak


class Attention(NamedTuple):
    """A layer over the ranks: bytes that a rank receives, seconds, and bytes kept by all layers."""

    received: float
    gather: float
    forward: float
    kept: float


def attention(problem: Problem, links: Links, card: Card, encoder: Transformer) -> Attention:
    """All-gather of keys and values: N videos of two views, each rank has its B queries.

    The backward sends the same bytes back (reduce-scatter).
    """
    own = 2 * problem.videos * problem.part * 2 * encoder.hidden * NUMBER_BYTES
    flop = 2 * problem.videos * 4 * problem.part * problem.frames * encoder.hidden
    return Attention(
        received=(problem.ranks - 1) * own,
        gather=gather_seconds(own, problem.ranks, links),
        forward=flop / (encoder.share * peak_flop(card)),
        kept=encoder.layers * problem.ranks * own,
    )


def peak_flop(card: Card) -> float:
    """bfloat16 products per second on sm_90: 2048 multiply-adds per multiprocessor and clock."""
    return card.processors * card.clock * 2 * 2048


SUPPORTED = tuple(name for name, card in CARDS.items() if card.arch == 90)
