"""``python -m docs.tools.gallery [PAGE ...]``: run the pages of docs/gallery, rewrite their output.

A page is a script: its ``python`` blocks run one after the other with the same names, in docs/, so
that ``savefig("pictures/x.svg")`` writes docs/pictures/x.svg. A ``text`` block right after a
``python`` block is replaced by what that block prints.
"""

import argparse
import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PAGES = DOCS / "gallery"
BLOCK = re.compile(
    r"```python\n(?P<code>.*?)```\n"
    r"(?:\n<!-- quick\n(?P<quick>.*?)-->\n)?"
    r"(?:\n```text\n(?P<said>.*?)```\n)?",
    re.DOTALL,
)
INK, DARK_INK = "#24292f", "#d0d7de"
DARK = f"""<style>
@media (prefers-color-scheme: dark) {{
 [style*="fill: {INK}"] {{ fill: {DARK_INK} !important }}
 [style*="stroke: {INK}"] {{ stroke: {DARK_INK} !important }}
}}
</style>
"""


def style() -> dict[str, object]:
    """Settings of matplotlib: text stays text, the paper is the page's, equal runs equal files."""
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return dict.fromkeys(inks, INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "fastseq",
        "savefig.transparent": True,
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#8b949e",
        "legend.frameon": False,
        "figure.dpi": 80,
    }


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(page: Path, folder: Path, quick: bool = False) -> Iterator[tuple[re.Match, str]]:
    """Each block of the page with what it printed. ``quick`` also runs the block's comment
    ``<!-- quick ... -->``, which makes the sizes small."""
    import matplotlib
    import matplotlib.pyplot as plt

    scope: dict[str, object] = {"__name__": "__main__"}
    (folder / "pictures").mkdir(exist_ok=True)
    with matplotlib.rc_context(style()), inside(folder):
        plt.switch_backend("Agg")
        for number, block in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                name = f"{page.name}, block {number + 1}"
                exec(compile(block["code"], name, "exec"), scope)
                if quick and block["quick"]:
                    exec(compile(block["quick"], f"{name}, quick", "exec"), scope)
            yield block, printed.getvalue()
        plt.close("all")


def rewrite(page: Path) -> None:
    text, written, end = page.read_text("utf-8"), [], 0
    for block, printed in run(page, DOCS):
        if block["said"] is not None:
            written += [text[end : block.start("said")], printed]
            end = block.end("said")
    page.write_text("".join([*written, text[end:]]), "utf-8")
    for name in pictures(text):
        if name.endswith(".svg"):
            adapt(page.parent / name)


def pictures(text: str) -> list[str]:
    """Files that a page shows, relative to it."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)


def adapt(picture: Path) -> None:
    """Text and axes of an SVG follow the page, light or dark."""
    text = picture.read_text("utf-8")
    if DARK not in text:
        # Without the date, and without blanks at the ends of lines, which matplotlib writes.
        text = re.sub(r" *<metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)
        head, defs, rest = text.partition(" <defs>\n")
        text = "\n".join(line.rstrip() for line in (head + DARK + defs + rest).split("\n"))
        picture.write_text(text, "utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.tools.gallery", description=__doc__)
    names = sorted(page.stem for page in PAGES.glob("*.md"))
    parser.add_argument("page", nargs="*", help=", ".join(names))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pages = parser.parse_args(argv).page
    if unknown := [page for page in pages if page not in names]:
        parser.error(f"no page {', '.join(unknown)} in docs/gallery; there are {', '.join(names)}")
    for name in pages or names:
        rewrite(PAGES / f"{name}.md")
        print(name)


if __name__ == "__main__":
    main()
