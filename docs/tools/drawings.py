"""``python -m docs.tools.drawings``: the drawings of docs/how_the_kernels_work.md, as SVG.

Text stays text. Colours follow the page, light or dark.
"""

from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
STYLE = """<style>
svg { --ink: #24292f; --quiet: #6e7781; --line: #afb8c1; --soft: #ddf4ff; --blue: #0969da;
      --warm: #bc4c00; --sand: #fff1e5 }
@media (prefers-color-scheme: dark) {
  svg { --ink: #d0d7de; --quiet: #9198a1; --line: #57606a; --soft: #12324f; --blue: #58a6ff;
        --warm: #ffa657; --sand: #4a2c12 }
}
text { fill: var(--ink); font: 15px Helvetica, Arial, sans-serif }
.quiet { fill: var(--quiet); font-size: 13px }
.blue { fill: var(--blue) }
.warm { fill: var(--warm) }
.box { fill: none; stroke: var(--line) }
.cell { fill: var(--soft); stroke: var(--line) }
.hot { fill: var(--sand); stroke: var(--warm) }
.strip { fill: var(--warm) }
.kept { fill: none; stroke: var(--warm); stroke-width: 4 }
.arrow, .joint { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.arrow { marker-end: url(#head) }
#head path { fill: var(--ink) }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>
"""


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def line(points: str, kind: str = "arrow") -> str:
    return f'<polyline points="{points}" class="{kind}"/>'


def grid(x: float, y: float, rows: int, columns: int, side: float, kind: Callable) -> list[str]:
    """Cells whose class is ``kind(row, column)``; "hot" ones last, so that no neighbour's outline
    covers theirs."""
    cells = [(kind(i, j), x + side * j, y + side * i) for i in range(rows) for j in range(columns)]
    cells.sort(key=lambda cell: cell[0] == "hot")
    return [rect(left, top, side, side, name) for name, left, top in cells]


def matrix() -> tuple[int, int, list[str]]:
    """What one T x T matrix of float32 takes, beside the embeddings; to scale."""
    parts, x = [], 10
    for frames in (4096, 8192, 16384):
        side, strip = 50 * frames / 4096, 50 * 128 / 4096
        parts += [
            rect(x, 250 - side, side, side, "cell"),
            rect(x + side + 6, 250 - side, strip, side, "strip"),  # an outline would widen it
            text(x, 275, f"T = {frames:,}"),
            text(x, 296, f"T x T: {4 * frames**2 / 1e6:,.0f} MB", "blue"),
            text(x, 317, f"T x 128: {512 * frames / 1e6:.1f} MB", "warm"),
        ]
        x += max(side, 130) + 50
    return 700, 330, parts


def tile() -> tuple[int, int, list[str]]:
    """One tile of pairs: sums of its exponentials along rows and along columns."""
    parts = grid(140, 86, 6, 6, 38, lambda i, j: "hot" if (i, j) == (2, 3) else "cell")
    parts += [
        rect(104, 86, 22, 228, "box"),
        rect(104, 162, 22, 38, "hot"),
        text(115, 77, "z1", anchor="middle"),
        rect(140, 50, 228, 22, "box"),
        rect(254, 50, 38, 22, "hot"),
        text(376, 66, "z2"),
        rect(392, 86, 22, 228, "box"),
        rect(392, 162, 22, 38, "hot"),
        text(403, 332, "R", "warm", "middle"),
        rect(140, 328, 228, 22, "box"),
        rect(254, 328, 38, 22, "hot"),
        text(128, 345, "C", "warm", "end"),
        line("296,181 388,181"),
        line("273,204 273,324"),
        text(440, 110, "E = exp(z1 z2 / temperature) of each pair"),
        text(440, 142, "summed along the row: R", "warm"),
        text(440, 164, "summed along the column: C", "warm"),
        text(440, 204, "z1 to z2: p = E / R"),
        text(440, 226, "z2 to z1: q = E / C"),
        text(440, 266, "Kept: the sums, a few numbers a frame.", "quiet"),
        text(440, 286, "The tile is dropped; the backward forms it again.", "quiet"),
        text(54, 168, "blocks of", "quiet", "middle"),
        text(54, 186, "frames,", "quiet", "middle"),
        text(54, 204, "view 1", "quiet", "middle"),
        text(254, 40, "blocks of frames, view 2", "quiet", "middle"),
    ]
    return 790, 364, parts


def near_far() -> tuple[int, int, list[str]]:
    """Tiles that the Gaussian reaches, and all others."""
    parts = grid(20, 20, 12, 12, 24, lambda i, j: "hot" if abs(i - j) <= 1 else "cell")
    parts += [
        line("20,20 308,308", "kept"),
        rect(350, 50, 24, 24, "hot"),
        text(386, 67, "near: softmax and Gaussian targets"),
        rect(350, 94, 24, 24, "cell"),
        text(386, 111, "far: softmax alone, no mask, no Gaussian"),
        line("350,152 374,152", "kept"),
        text(386, 157, "pairs of frames of the same time"),
        text(350, 206, "Variance 10 frames²: weights end at a gap of 45 frames.", "quiet"),
        text(350, 228, "T = 4,096 in tiles of 64 x 64: 190 of 4,096 tiles are near.", "quiet"),
    ]
    return 760, 330, parts


def wave() -> tuple[int, int, list[str]]:
    """Strips of rows, the anti-diagonal that is computed in one step, and what is kept.

    Row r of a strip is at column s - r at step s. So blocks of steps are parallelograms, and the
    numbers that enter one, from the left and from above each row's next cell, form a staircase.
    """
    side, rows, columns, parts = 15, 8, 24, []
    for strip in range(2):
        y = 46 + strip * 150
        # The lower strip is in block 0 once the upper one has finished blocks 0 and 1.
        front = 20 - 13 * strip

        def kind(i, j, front=front):
            return "hot" if i + j == front else "cell" if i + j < front else "box"

        parts += grid(20, y, rows, columns, side, kind)
        bottom = y + side * rows
        parts += [line(f"20,{bottom} {20 + side * columns},{bottom}", "kept")]
        for first in range(rows, columns + 1, rows):
            corners = [(first, 0)]
            for r in range(rows):
                corners += [(first - r, r + 1), (first - r - 1, r + 1)]
            parts += [line(" ".join(f"{20 + side * j},{y + side * i}" for j, i in corners), "kept")]
        parts += [text(390, y + 20, f"strip {strip + 1}")]
    parts += [
        text(20, 32, "columns: frames of y; rows: frames of x", "quiet"),
        rect(470, 60, 18, 18, "hot"),
        text(500, 74, "one step: a cell of each row of the strip"),
        text(500, 94, "they do not depend on each other", "quiet"),
        rect(470, 118, 18, 18, "cell"),
        text(500, 132, "done before"),
        rect(470, 156, 18, 18, "box"),
        text(500, 170, "to come"),
        line("470,208 488,208", "kept"),
        text(500, 213, "kept for the backward: borders of tiles"),
        text(500, 233, "64 + 64 + 64 numbers for 64 x 64 cells: 3/64", "quiet"),
        text(470, 284, "A tile is one block of steps of one strip.", "quiet"),
        text(470, 304, "Drawn with 8 rows and 8 steps, computed with 64.", "quiet"),
    ]
    return 800, 330, parts


def cycle() -> tuple[int, int, list[str]]:
    """TCC: from a frame of u over v and back over u."""
    parts = []
    for y, name, walk in ((40, "pass 1", "tiles of v"), (190, "pass 2", "tiles of u")):
        parts += [text(20, y + 42, name)]
        parts += [rect(200 + 60 * k, y + 14, 52, 52, "cell") for k in range(5)]
        parts += [text(340, y + 4, walk, "quiet", "middle"), line(f"150,{y + 40} 194,{y + 40}")]
        parts += [line(f"496,{y + 40} 540,{y + 40}")]
    parts += [
        rect(90, 54, 56, 52, "hot"),
        text(118, 85, "u_i", anchor="middle"),
        rect(546, 54, 130, 52, "hot"),
        text(611, 85, "nn_i", anchor="middle"),
        rect(90, 204, 56, 52, "hot"),
        text(118, 235, "nn_i", anchor="middle"),
        rect(546, 204, 130, 52, "hot"),
        text(611, 228, "time error e_i", anchor="middle"),
        text(611, 247, "variance s_i", anchor="middle"),
        text(
            340, 128, "softmax over v, weighted sum of v: the soft nearest neighbour", "", "middle"
        ),
        text(340, 278, "softmax over u, weighted times of u: where the cycle ends", "", "middle"),
        line("611,108 611,158 118,158 118,198"),
    ]
    return 700, 296, parts


def queue() -> tuple[int, int, list[str]]:
    """The queue in parts, each of which leaves three results a query."""
    parts = [
        rect(20, 60, 70, 200, "box"),
        text(55, 50, "q (N, D)", anchor="middle"),
        rect(20, 110, 70, 40, "hot"),
        text(55, 135, "a block", "quiet", "middle"),
        text(215, 50, "queue (K, D)", anchor="middle"),
    ]
    for k in range(5):
        y = 60 + 41 * k
        parts += [
            rect(150, y, 130, 34, "cell"),
            text(215, y + 22, f"part {k + 1}" if k < 4 else "...", "quiet", "middle"),
            line(f"92,130 146,{y + 17}"),
            line(f"284,{y + 17} 336,{y + 17}"),
            rect(342, y, 230, 34, "hot"),
            text(457, y + 22, "maximum, sum, weighted sum", "quiet", "middle"),
            line(f"574,{y + 17} 600,{y + 17}", "joint"),
        ]
    parts += [
        line("600,77 600,241", "joint"),
        line("600,159 628,159"),
        rect(632, 131, 150, 56, "hot"),
        text(707, 154, "log-sum-exp (N,)", anchor="middle"),
        text(707, 175, "mean m (N, D)", anchor="middle"),
        text(
            20,
            290,
            "One matrix of N x K logits would take 268 MB at N = 512, K = 131,072. "
            "Only tiles of it exist.",
            "quiet",
        ),
    ]
    return 800, 305, parts


DRAWINGS = {
    "kernels_matrix": matrix,
    "kernels_tile": tile,
    "kernels_near_far": near_far,
    "kernels_wave": wave,
    "kernels_cycle": cycle,
    "kernels_queue": queue,
}


def draw(name: str) -> str:
    width, height, parts = DRAWINGS[name]()
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n'
    return head + STYLE + "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    for name in DRAWINGS:
        (FOLDER / f"{name}.svg").write_text(draw(name), "utf-8")
        print(f"docs/pictures/{name}.svg")


if __name__ == "__main__":
    main()
