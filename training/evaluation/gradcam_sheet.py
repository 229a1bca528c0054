"""The picture of Grad-CAM: frames of videos, and heat maps of one or two networks over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from training.evaluation.pictures import (
    INK,
    save_png,
    shortened,
    typeface,
    wrapped,
)

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.evaluation.gradcam import Heat, SeenVideo

COLOURS = "turbo"  # of matplotlib, from blue to red
STRENGTH = 0.55  # share of the colour in a pixel
GREYS = (60, 220)  # of black and white under the colours, so that these look alike on all frames
_TILE, _NAME, _GAP, _LINE = 128, 140, 4, 15  # pixels: a tile's width, a line's name, gaps, a text
_MARGIN, _BLOCK_GAP = 10, 18
_RAMP, _LEGEND_GAP, _LARGEST = 200, 8, "largest value of the line"


@dataclass(frozen=True)
class Line:
    """The frames of a video as one network sees them, and its heat maps over them.

    frames: uint8 (K, S, S, 3). heat: None shows the frames alone.
    """

    name: str
    frames: np.ndarray
    heat: Heat | None = None


@dataclass(frozen=True)
class Block:
    """The lines of one video; ``numbers`` are the frames', ``aspect`` is width / height."""

    record: VideoRecord
    numbers: np.ndarray
    aspect: float
    lines: Sequence[Line]


def blocks_of(seen: Sequence[Sequence[SeenVideo]]) -> list[Block]:
    """The blocks of videos; ``seen`` has the networks of each configuration, for the same videos.

    A network's heat is shown over the pixels that it gets.
    """
    blocks = []
    for videos in zip(*seen, strict=True):
        first = videos[0]
        lines = [Line("frames", first.frames)]
        lines += [Line(name, v.frames, heat) for v in videos for name, heat in v.heat.items()]
        blocks.append(Block(first.record, first.numbers, first.aspect, lines))
    return blocks


def over(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (K, S, S, 3): the colours of the heat (K, S, S) over the frames in grey.

    They cover the range from its smallest to its largest value. A map without a range has none.
    """
    from matplotlib import colormaps

    black, white = GREYS
    grey = frames @ np.array([0.299, 0.587, 0.114]) / 255 * (white - black) + black
    grey = grey[..., None].repeat(3, -1)
    extent = float(np.ptp(heat))
    if extent > 1e-12:
        colours = colormaps[COLOURS]((heat - heat.min()) / extent)[..., :3] * 255
        grey = grey * (1 - STRENGTH) + colours * STRENGTH
    return grey.round().astype(np.uint8)


def gradcam_sheet(
    blocks: Sequence[Block],
    file: str | Path,
    *,
    remarks: Sequence[str] = (),
) -> None:
    """Write the picture: a line of frames for each video, and a line for each network.

    remarks: paragraphs below the legend.
    """
    font, heading = typeface(12), typeface(14)
    columns = len(blocks[0].numbers)
    left = _MARGIN + _NAME
    largest = left + _RAMP + 2 * _LEGEND_GAP + round(font.getlength(_LARGEST))
    width = max(left + columns * (_TILE + _GAP), largest) + _MARGIN
    text = [line for one in _texts(blocks, remarks) for line in wrapped(one, font, width - 20)]
    heights = [round(_TILE / block.aspect) for block in blocks]
    tall = _MARGIN + sum(
        2 * _LINE + 4 + len(block.lines) * (height + _GAP) + _BLOCK_GAP
        for block, height in zip(blocks, heights, strict=True)
    )
    sheet = Image.new("RGB", (width, tall + 26 + len(text) * _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for block, height in zip(blocks, heights, strict=True):
        named = block.record.id
        named += f"   {block.record.action}" if block.record.action != "all" else ""
        draw.text((_MARGIN, y), shortened(named, heading, width - 20), fill=INK, font=heading)
        y += _LINE + 4
        for column, number in enumerate(block.numbers):
            place = (left + column * (_TILE + _GAP), y)
            draw.text(place, f"frame {number}", fill=INK, font=font)
        y += _LINE
        for line in block.lines:
            _write_name(draw, line, y, height)
            shown = line.frames if line.heat is None else over(line.frames, line.heat.maps)
            for column, frame in enumerate(shown):
                picture = Image.fromarray(frame).resize((_TILE, height), Image.Resampling.LANCZOS)
                sheet.paste(picture, (left + column * (_TILE + _GAP), y))
            y += height + _GAP
        y += _BLOCK_GAP
    _legend(sheet, draw, y)
    y += 26
    for one in text:
        draw.text((_MARGIN, y), one, fill=INK, font=font)
        y += _LINE
    save_png(sheet, file)


def _write_name(draw: ImageDraw.ImageDraw, line: Line, y: int, height: int) -> None:
    """The network's name, the class it predicts, and the range of its values.

    The range is in shares of the line's largest value.
    """
    font = typeface(12)
    lines = wrapped(line.name, font, _NAME - 8)
    if line.heat is not None:
        if line.heat.predicted:
            lines += wrapped(f"→ {line.heat.predicted}", font, _NAME - 8)
        lines.append(_range(line.heat.maps))
    top = y + max(0, (height - len(lines) * _LINE) // 2)
    for row, text in enumerate(lines):
        place = (_MARGIN, top + row * _LINE)
        draw.text(place, shortened(text, font, _NAME - 8), fill=INK, font=font)


def _range(maps: np.ndarray) -> str:
    """The smallest value in shares of the largest one; maps without a value above 0 are named."""
    largest = float(maps.max())
    return f"{float(maps.min()) / largest:.2f} to 1" if largest else "0 everywhere"


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int) -> None:
    """The colours over a middle grey."""
    font, left = typeface(12), _MARGIN + _NAME
    ramp = np.linspace(0, 1, _RAMP)[None, None].repeat(12, 1)
    grey = np.full((1, 12, _RAMP, 3), 160, dtype=np.uint8)
    draw.text((left - _LEGEND_GAP, y), "smallest", fill=INK, font=font, anchor="ra")
    sheet.paste(Image.fromarray(over(grey, ramp)[0]), (left, y + 1))
    draw.text((left + _RAMP + _LEGEND_GAP, y), _LARGEST, fill=INK, font=font)


def _texts(blocks: Sequence[Block], remarks: Sequence[str]) -> list[str]:
    scores = dict.fromkeys(
        line.heat.score for block in blocks for line in block.lines if line.heat is not None
    )
    return [
        "Beside a line is the range of its values, in shares of its largest value.",
        "Grad-CAM of the last map A of the backbone: ReLU(sum over c of w_c A_c), where w_c is the "
        "mean of dy/dA_c over the map.",
        *(f"{score}." for score in scores),
        *remarks,
    ]
