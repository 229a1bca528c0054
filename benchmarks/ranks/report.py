"""The cost model as text: tables with their assumptions."""

from collections.abc import Sequence

from benchmarks.cost.machine import CARDS, Card
from benchmarks.ranks.model import (
    CHANNELS,
    WAYS,
    Links,
    Problem,
    Transformer,
    attention,
    backward_block,
    block_flop,
    exposed,
    forward_block,
    hidden_from,
    hop_bytes,
    hop_seconds,
    peak_flop,
)

COMMAND = "python -m benchmarks.ranks"


def page(gpus: Sequence[int], lengths: Sequence[int], videos: int, links: Links, name: str) -> str:
    """The whole text in Markdown."""
    card, encoder = CARDS[name], Transformer()
    parts = [
        "# scl_loss over GPUs that share one video: a cost model",
        f"Not measured yet on GPUs: every figure below is computed. Written by `{COMMAND}`.",
        _assumptions(videos, links, name, encoder),
        _hiding(videos, links, card),
    ]
    for frames in lengths:
        problems = [Problem(frames, ranks, videos) for ranks in gpus if ranks <= frames]
        if problems:
            parts += [f"## T = {frames:,}", _ring(problems, links, card)]
            parts += [_ways(problems, links, card), _attention(problems, links, card, encoder)]
    return "\n\n".join(parts) + "\n"


def _assumptions(videos: int, links: Links, name: str, encoder: Transformer) -> str:
    lines = [
        f"{videos} video{'s' * (videos > 1)} with two views of T frames, D = {CHANNELS}, "
        "bfloat16, int64 frame numbers, a bool mask; each GPU has T / R frames of both views.",
        f"Inside a node of {links.node} GPUs {links.nvlink / 1e9:g} GB/s a direction (H100 SXM: "
        "NVLink 900 GB/s, both directions together; NVIDIA's data sheet); between nodes "
        f"{links.network / 1e9:g} GB/s for each GPU (DGX H100: one 400 Gb/s NDR adapter a GPU). "
        "Nominal rates, without contention: pass measured ones by `--nvlink` and `--network`.",
        "Over several nodes a hop takes as long as the one GPU of each node that sends to the next "
        f"node; an all-gather enters a node once, over its {links.node} adapters, and has the "
        f"lower of NVLink's rate and {links.node * links.network / 1e9:g} GB/s.",
        f"A hop or an all-gather has a latency of {links.latency * 1e6:g} us (a judgement); in an "
        "all-gather it counts once, whatever the number of GPUs.",
        f"A block has the time of scl's kernels on {name}, from the clocks that "
        "`python -m benchmarks.cost` derives from their machine code, two launches a pass, "
        "bounded scores. All tiles count as far from the diagonal. That prediction has an "
        "uncertainty of a factor of 1.4.",
        "A hop overlaps completely with a block; sending takes no multiprocessor.",
        "Left out: host time, the sum of the loss over GPUs, preparation kernels, workspace.",
        "Own rows: keys gathered once and kept; the backward gathers three float32 a frame. Whole "
        "loss: each GPU computes all rows, and its backward sends nothing.",
        "Memory is that of one GPU, above its frames and their gradients.",
        f"Attention: carl.yaml's {encoder.layers} layers of {encoder.hidden} channels, keys and "
        f"values gathered in bfloat16 and kept; {encoder.share:.0%} of the peak (FlashAttention-2 "
        "on an H100, arXiv 2407.08608). The backward sends the same bytes back.",
    ]
    return "Assumptions:\n\n" + "\n".join(f"- {line}" for line in lines)


def _hiding(videos: int, links: Links, card: Card) -> str:
    rows = [
        (
            f"{what}, {rate / 1e9:g} GB/s",
            *(f"{hidden_from(videos, rate, links.latency, card, b):,}" for b in (False, True)),
        )
        for what, rate in (("inside a node", links.nvlink), ("between nodes", links.network))
    ]
    text = (
        "A hop hides behind a block at the latest from T / R = min(r, (latency - 2 l) / (2 (a - N "
        "b / rate))), r the positive root of 2 N c r² = 2 N r b / rate + latency; the second "
        "only if a > N b / rate. b: bytes a frame, N: videos, c: seconds a pair on a full GPU, l "
        "and a: start and seconds a column of one thread block (`hidden_from` in model.py)."
    )
    return text + "\n\n" + table(("frames per GPU", "forward", "backward"), rows)


def _ring(problems: Sequence[Problem], links: Links, card: Card) -> str:
    rows = []
    for one in problems:
        cells = [f"{one.ranks}: {one.part:,}"]
        for backward, block in ((False, forward_block), (True, backward_block)):
            seconds = block(one.part, one.part, one.videos, card)
            share = block_flop(one.part, one.videos, backward) / seconds / peak_flop(card)
            cells.append(
                f"{_mb(hop_bytes(one, backward))} MB, {_us(hop_seconds(one, links, backward))}, "
                f"{_us(seconds)} ({share:.0%})"
            )
        rows.append((*cells, _us(exposed(one, links, card))))
    header = ("GPUs: frames each", "forward", "backward", "waits, us")
    return (
        "The ring: bytes of a hop, us of a hop, us of a block (share of the tensor cores' peak). "
        "Waits: time of forward and backward that no block hides.\n\n" + table(header, rows)
    )


def _ways(problems: Sequence[Problem], links: Links, card: Card) -> str:
    rows = []
    for one in problems:
        ways = [way(one, links, card) for way in WAYS.values()]
        rows.append(
            (str(one.ranks), *(f"{way.both * 1e3:.2f} ms, {_mb(way.memory)} MB" for way in ways))
        )
    return "Forward and backward, memory of a GPU:\n\n" + table(("GPUs", *WAYS), rows)


def _attention(problems: Sequence[Problem], links: Links, card: Card, encoder: Transformer) -> str:
    rows = []
    for one in problems:
        found = attention(one, links, card, encoder)
        rows.append(
            (
                str(one.ranks),
                f"{_mb(found.received)} MB",
                f"{_us(found.gather)}, {_us(found.forward)}",
                f"{_mb(found.kept)} MB",
            )
        )
    header = ("GPUs", "received a layer", "us: gather, attention", f"kept, {encoder.layers} layers")
    return "Keys and values of the encoder's attention, forward:\n\n" + table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mb(count: float) -> str:
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"
