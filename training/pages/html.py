"""A self-contained HTML page: headings, tables, pictures and videos as data URIs."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222;
       max-width: 62rem; margin: 2.5rem auto 5rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.6rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
p, li { max-width: 46rem; }
.quiet { color: #666; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
table.facts td:nth-child(2) { white-space: normal; }
table.facts td, table.facts th { text-align: left; vertical-align: top; }
table.facts th { color: #555; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
tr.main td { background: #eef4fa; }
td.best { font-weight: 700; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0 0 0 1.2rem; max-width: 46rem; }
img, video { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; color: #1f4e79; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document; ``body`` holds ready HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def paragraph(text: str, *, quiet: bool = False) -> str:
    return f'<p class="quiet">{escape(text)}</p>' if quiet else f"<p>{escape(text)}</p>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A two-column table of names and values."""
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return '<table class="facts">' + "".join(cells) + "</table>"


def definitions(items: Sequence[tuple[str, str]]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items)
        + "</dl>"
    )


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def picture(file: Path, alt: str) -> str:
    return f'<img src="data:image/png;base64,{_base64(file)}" alt="{escape(alt)}">'


def video(file: Path, page_folder: Path, *, embed_below: int = 12_000_000) -> str:
    """A player; the file itself up to ``embed_below`` bytes, a link relative to the page above."""
    if file.stat().st_size <= embed_below:
        source = f"data:video/mp4;base64,{_base64(file)}"
    else:
        source = escape(Path(os.path.relpath(file, page_folder)).as_posix())
    return f'<video controls loop muted playsinline src="{source}"></video>'


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")
