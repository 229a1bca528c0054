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
.kept { fill: none; stroke: var(--warm); stroke-width: 4 }
.arrow { fill: none; stroke: var(--ink); stroke-width: 1.5; marker-end: url(#head) }
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
    """Cells whose class is ``kind(row, column)``."""
    return [
        rect(x + side * j, y + side * i, side, side, kind(i, j))
        for i in range(rows)
        for j in range(columns)
    ]


def matrix() -> tuple[int, int, list[str]]:
    """What one T x T matrix of float32 takes, beside the embeddings; to scale."""
    parts, x = [], 10
    for frames in (4096, 8192, 16384):
        side, strip = 50 * frames / 4096, 50 * 128 / 4096
        parts += [
            rect(x, 250 - side, side, side, "cell"),
            rect(x + side + 6, 250 - side, strip, side, "hot"),
            text(x, 275, f"T = {frames:,}"),
            text(x, 296, f"T x T: {4 * frames**2 / 1e6:,.0f} MB", "blue"),
            text(x, 317, f"T x 128: {512 * frames / 1e6:.1f} MB", "warm"),
        ]
        x += max(side, 130) + 50
    return 700, 330, parts


def tile() -> tuple[int, int, list[str]]:
    """One tile of pairs: sums of its exponentials along rows and along columns."""
    parts = grid(140, 50, 6, 6, 38, lambda i, j: "hot" if (i, j) == (2, 3) else "cell")
    parts += [
        rect(104, 50, 22, 228, "box"),
        text(115, 40, "z1", anchor="middle"),
        rect(140, 292, 228, 22, "box"),
        text(378, 309, "z2"),
        rect(392, 50, 22, 228, "hot"),
        text(403, 40, "R", "warm", "middle"),
        rect(140, 330, 228, 22, "hot"),
        text(378, 347, "C", "warm"),
        line("296,145 386,145"),
        line("273,166 273,326"),
        text(440, 90, "E = exp(z1 z2 / temperature), once a pair"),
        text(440, 122, "summed along the row: R", "warm"),
        text(440, 144, "summed along the column: C", "warm"),
        text(440, 184, "z1 to z2: E / R"),
        text(440, 206, "z2 to z1: E / C"),
        text(440, 246, "Kept: the sums, a few numbers a frame.", "quiet"),
        text(440, 266, "The tile is dropped; the backward forms it again.", "quiet"),
        text(60, 168, "frames", "quiet", "middle"),
        text(60, 186, "of view 1", "quiet", "middle"),
        text(254, 376, "frames of view 2", "quiet", "middle"),
    ]
    return 790, 390, parts


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
    """Strips of rows, the anti-diagonal that is computed in one step, and what is kept."""
    side, parts = 18, []
    for strip in range(2):
        y = 46 + strip * 172
        front = 13 - 10 * strip  # the lower strip follows a block behind

        def kind(i, j, front=front):
            return "hot" if i + j == front else "cell" if i + j < front else "box"

        parts += grid(20, y, 8, 16, side, kind)
        parts += [line(f"20,{y + 144} 308,{y + 144}", "kept")]
        parts += [line(f"{20 + x},{y} {20 + x},{y + 144}", "kept") for x in (0, 144)]
        parts += [text(322, y + 20, f"strip {strip + 1}")]
    parts += [
        text(20, 32, "columns: frames of y; rows: frames of x", "quiet"),
        rect(420, 60, 18, 18, "hot"),
        text(450, 74, "one step: a cell of each row of the strip"),
        text(450, 94, "they do not depend on each other", "quiet"),
        rect(420, 118, 18, 18, "cell"),
        text(450, 132, "done before"),
        rect(420, 156, 18, 18, "box"),
        text(450, 170, "to come"),
        line("420,208 438,208", "kept"),
        text(450, 213, "kept for the backward: borders of tiles"),
        text(450, 233, "64 + 64 + 64 numbers for 64 x 64 cells: 3/64", "quiet"),
        text(420, 288, "The lower strip follows the upper one.", "quiet"),
        text(420, 308, "Drawn with 8 rows a strip, computed with 64.", "quiet"),
    ]
    return 800, 380, parts


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
        text(611, 85, "nn_i, log-sum", anchor="middle"),
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
        text(55, 135, "64 rows", "quiet", "middle"),
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
            line(f"574,{y + 17} 626,156"),
        ]
    parts += [
        rect(632, 128, 150, 56, "hot"),
        text(707, 151, "log-sum-exp (N,)", anchor="middle"),
        text(707, 172, "mean m (N, D)", anchor="middle"),
        text(20, 290, "N x K logits exist as tiles only: 268 MB at N = 512, K = 131,072.", "quiet"),
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
