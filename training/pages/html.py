"""A self-contained HTML page: headings, tables, pictures and videos as data URIs."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")

# Nothing is loaded from elsewhere: pictures and videos travel in the page. A video too large for
# that is a file beside it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data: blob:; media-src data: blob: 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def page(
    title: str, body: Sequence[str], *, styles: Sequence[str] = (), scripts: Sequence[str] = ()
) -> str:
    """The whole document, with the style sheet of every page inside.

    title: title of the window, plain text.
    body: ready HTML, one string per block.
    styles: further style sheets as CSS text, applied after the shared one.
    scripts: JavaScript as text. Each runs as a module, after the body is there.
    """
    sheets = (STYLE.read_text(encoding="utf-8"), *styles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n"
        + "".join(f"<style>\n{sheet}</style>\n" for sheet in sheets)
        + "</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n"
        + "".join(f'<script type="module">\n{script}</script>\n' for script in scripts)
        + "</body>\n</html>\n"
    )


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A paragraph of plain text; words between backticks are code."""
    inside = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="quiet">{inside}</p>' if quiet else f"<p>{inside}</p>"


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
