"""Pictures made of video frames: the retrieval sheet and the aligned side-by-side video."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.support.files import replacing

SAME = "#2e8b57"
OTHER = "#c0392b"
NEUTRAL = "#9aa0a6"
INK = "#222222"
QUIET = "#666666"
LARGEST = 1_000_000  # bytes of a sheet, which is also part of the report's page


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet: uint8 (H, W, 3), the lines under it, its border colour."""

    frame: np.ndarray
    lines: Sequence[str]
    border: str = NEUTRAL


def contact_sheet(
    rows: Sequence[Sequence[Tile]],
    file: str | Path,
    *,
    width: int = 160,
    headings: tuple[str, str] = ("query frame", "most similar frames"),
    titles: Sequence[str] = (),
    footer: Sequence[str] = (),
) -> None:
    """Rows of tiles; the first tile of each row is the query and stands a little apart.

    width: width of each picture in pixels.
    headings: texts above the first tiles and above the others.
    titles: a text above each row, or none at all.
    footer: paragraphs below the rows.
    """
    gap, border, query_gap = 10, 4, 26
    font = typeface(12)
    line_height = 15
    lines = max(len(tile.lines) for row in rows for tile in row)
    pictures = [[_fit(tile.frame, width) for tile in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in pictures]
    cell = width + 2 * border
    columns = max(len(row) for row in rows)
    top, above = 28, 20 * bool(titles)
    wide = gap + columns * (cell + gap) + query_gap
    below = [line for text in footer for line in wrapped(text, font, wide - 2 * gap)]
    tall = top + sum(above + h + 2 * border + lines * line_height + 2 * gap for h in heights)
    sheet = Image.new("RGB", (wide, tall + len(below) * line_height + gap * bool(below)), "white")
    draw = ImageDraw.Draw(sheet)
    heading = typeface(14)
    draw.text((gap, 7), headings[0], fill=INK, font=heading)
    draw.text((gap + cell + gap + query_gap, 7), headings[1], fill=INK, font=heading)
    y = top
    for number, (row, row_pictures, height) in enumerate(zip(rows, pictures, heights, strict=True)):
        if titles:
            text = shortened(titles[number], font, sheet.width - 2 * gap)
            draw.text((gap, y), text, fill=QUIET, font=font)
            y += above
        for column, (tile, picture) in enumerate(zip(row, row_pictures, strict=True)):
            x = gap + column * (cell + gap) + (query_gap if column else 0)
            draw.rectangle(
                (x, y, x + cell - 1, y + picture.height + 2 * border - 1), fill=tile.border
            )
            sheet.paste(picture, (x + border, y + border))
            for place, line in enumerate(tile.lines):
                text = shortened(line, font, cell)
                y_text = y + picture.height + 2 * border + 3 + place * line_height
                draw.text((x, y_text), text, fill=INK, font=font)
        y += height + 2 * border + lines * line_height + 2 * gap
    for line in below:
        draw.text((gap, y), line, fill=INK, font=font)
        y += line_height
    save_png(sheet, file)


def save_png(picture: Image.Image, file: str | Path) -> None:
    """Write a PNG whole or not at all; one above LARGEST bytes is reduced to 256 colours."""
    with replacing(Path(file)) as partial:
        picture.save(partial, format="PNG", optimize=True)
        if partial.stat().st_size > LARGEST:
            palette = picture.quantize(256, Image.Quantize.MEDIANCUT)
            reduced = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            reduced.save(partial, format="PNG", optimize=True)


@functools.cache
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; Pillow's own font has no tick and no cross."""
    import matplotlib

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )


def _fit(frame: np.ndarray, width: int) -> Image.Image:
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    return Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The end of a text that is too long; file names differ at the end."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a paragraph of this width in pixels; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class Panel:
    """A video in `side_by_side`.

    frames: uint8 (n, H, W, 3). numbers: their frame numbers in the video, ascending. shown: for
    every output frame the index into ``frames``, -1 for none.
    """

    title: str
    name: str
    frames: np.ndarray
    numbers: np.ndarray
    shown: np.ndarray


def side_by_side(panels: Sequence[Panel], *, height: int = 240) -> Iterator[np.ndarray]:
    """Frames of a video that plays several panels next to each other.

    Args:
        panels: panels with the same number of ``shown`` frames.
        height: height of each panel's picture in pixels.
    Yields:
        uint8 (h, w, 3), both even. Over each panel stand the title, the frame number and the name,
        where a player's controls do not hide them; under it a bar for the frame's place in its
        video.
    """
    pad, caption, bar_height = 8, 40, 12
    font = typeface(12)
    widths = [
        max(180, round(panel.frames.shape[2] * height / panel.frames.shape[1])) for panel in panels
    ]
    total = sum(widths) + pad * (len(panels) + 1)
    tall = caption + height + bar_height + pad
    canvas_size = (total + total % 2, tall + tall % 2)
    for step in range(len(panels[0].shown)):
        canvas = Image.new("RGB", canvas_size, "white")
        draw = ImageDraw.Draw(canvas)
        x = pad
        for panel, width in zip(panels, widths, strict=True):
            bar = caption + height + 5
            draw.rectangle((x, bar, x + width - 1, bar + 3), fill="#dddddd")
            place = int(panel.shown[step])
            if place < 0:
                label = "no match"
                box = (x, caption, x + width - 1, caption + height - 1)
                draw.rectangle(box, fill="#dddddd")
            else:
                number = int(panel.numbers[place])
                label = f"frame {number}"
                canvas.paste(_letterbox(panel.frames[place], width, height), (x, caption))
                last = max(int(panel.numbers[-1]), 1)
                end = x + round((width - 1) * number / last)
                draw.rectangle((x, bar, end, bar + 3), fill="#1f4e79")
            draw.text((x, 4), panel.title, fill=INK, font=font)
            draw.text((x + width - 1, 4), label, fill=INK, font=font, anchor="ra")
            draw.text((x, 21), shortened(panel.name, font, width), fill=QUIET, font=font)
            x += width + pad
        yield np.asarray(canvas)


def _letterbox(frame: np.ndarray, width: int, height: int) -> Image.Image:
    scale = min(width / frame.shape[1], height / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    picture = Image.new("RGB", (width, height), "black")
    resized = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    picture.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return picture
