"""Contact sheets for checking events: the frames around the events of each clip, on pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from training.evaluation.pictures import INK, NEUTRAL, QUIET, Tile, shortened, typeface
from training.evaluation.videos import seconds_of
from training.support.files import replacing

if TYPE_CHECKING:
    from training.data.index import VideoRecord

GIVEN = "#1f4e79"
CARRIED = "#d35400"
NEIGHBOURS = (-2, -1, 0, 1, 2)  # steps from the event
STEPS_A_SECOND = 15  # so a step is 2 frames at 30 frames/s
TILE_AREA = 17000  # pixels of a picture, whatever its shape
PAGE = (2240, 2400)  # largest width and height of a page in pixels; a single row may exceed it
_BORDER, _GAP, _BLOCK_GAP, _LINE = 3, 2, 16, 15


@dataclass(frozen=True)
class Block:
    """A group of tiles with a title under them."""

    tiles: Sequence[Tile]
    title: str = ""


@dataclass(frozen=True)
class Row:
    """The blocks of one clip, on as many lines of the page as they need."""

    name: str
    note: str
    blocks: Sequence[Block]


def write_sheet(rows: Iterable[Row], file: Path) -> list[Path]:
    """Write rows as one PNG or, if they need several pages, as NAME_1.png, NAME_2.png, ...

    Rows are read while pages are filled, so one page at a time is in memory. Returns the files.
    """
    written: list[Path] = []
    waiting = None
    for page in _pages(rows):
        if waiting is not None:
            written.append(_save(waiting, file.with_name(f"{file.stem}_{len(written) + 1}.png")))
        waiting = _draw(page)
    if waiting is not None:
        several = file.with_name(f"{file.stem}_{len(written) + 1}.png")
        written.append(_save(waiting, several if written else file))
    return written


def event_row(
    record: VideoRecord, events: Sequence[tuple[str, int]], *, note: str, colour: str
) -> Row:
    """A row with the frame of each event (name, frame) in a border, and two frames on either side.

    An event at the clip's number of frames is never reached and has no pictures.
    """
    from fastseq.video.gaps import frames_of

    sound = frames_of(record)
    step = max(1, round(record.fps / STEPS_A_SECOND))
    shown = {
        frame: _nearest(sound, [frame + step * k for k in NEIGHBOURS])
        for _, frame in events
        if frame < record.frames
    }
    pictures = _read(record, sorted({number for numbers in shown.values() for number in numbers}))
    blocks = []
    for name, frame in events:
        tiles = [
            Tile(pictures[n], [f"{n}"], colour if [n] == _nearest(sound, [frame]) else NEUTRAL)
            for n in shown.get(frame, ())
        ]
        title = f"{name}: {frame}"
        blocks.append(Block(tiles, title if tiles else f"{name}: not in the clip"))
    return Row(record.id, note, blocks)


def frame_row(record: VideoRecord, every: int) -> Row:
    """A row with every ``every``-th sound frame of a clip, its number and its time."""
    from fastseq.video.gaps import frames_of

    numbers = frames_of(record)[::every].tolist()
    pictures = _read(record, numbers)
    seconds = seconds_of(record, numbers).tolist()
    blocks = [
        Block([Tile(pictures[n], [f"{n}", f"{time:.2f} s"])])
        for n, time in zip(numbers, seconds, strict=True)
    ]
    note = f"{record.frames} frames, {record.fps:.4g} frames/s"
    return Row(
        record.id,
        f"{note}; one in {every} is shown (--every 1: all)" if every > 1 else note,
        blocks,
    )


def _nearest(sound: np.ndarray, wanted: Sequence[int]) -> list[int]:
    """The sound frames nearest to the wanted frames, each once."""
    return sorted({int(sound[np.abs(sound - frame).argmin()]) for frame in wanted})


def _read(record: VideoRecord, numbers: Sequence[int]) -> dict[int, np.ndarray]:
    from fastseq.video import read_frames

    if not numbers:
        return {}
    width, height = record.crop[2:] if record.crop else (record.width, record.height)
    side = max(1, round((TILE_AREA * min(width, height) / max(width, height)) ** 0.5))
    frames = read_frames(record.path, numbers, short_side=side, crop=record.crop).numpy()
    return dict(zip(numbers, frames, strict=True))


@dataclass(frozen=True)
class _Line:
    """Blocks beside each other; the first line of a row has a heading above."""

    heading: tuple[str, str] | None
    blocks: Sequence[Block]
    height: int


def _pages(rows: Iterable[Row]) -> Iterator[list[_Line]]:
    page: list[_Line] = []
    height = 0
    for row in rows:
        for line in _lines(row):
            if page and height + line.height > PAGE[1]:
                yield page
                page, height = [], 0
            page.append(line)
            height += line.height
    if page:
        yield page


def _lines(row: Row) -> Iterator[_Line]:
    parts: list[list[Block]] = [[]]
    width = 0
    for block in row.blocks:
        if parts[-1] and width + _width(block) > PAGE[0]:
            parts.append([])
            width = 0
        parts[-1].append(block)
        width += _width(block)
    for number, blocks in enumerate(parts):
        tiles = [tile for block in blocks for tile in block.tiles]
        height = max((_tile_height(tile) for tile in tiles), default=0)
        height += _LINE * any(block.title for block in blocks) + _BLOCK_GAP
        heading = (row.name, row.note) if number == 0 else None
        yield _Line(heading, blocks, height + 2 * _LINE * (heading is not None))


def _width(block: Block) -> int:
    tiles = sum(tile.frame.shape[1] + 2 * _BORDER + _GAP for tile in block.tiles)
    return max(tiles, round(typeface(12).getlength(block.title))) + _BLOCK_GAP


def _tile_height(tile: Tile) -> int:
    return tile.frame.shape[0] + 2 * _BORDER + _LINE * len(tile.lines)


def _draw(page: Sequence[_Line]) -> Image.Image:
    text, bold = typeface(12), typeface(14)
    width = max(sum(map(_width, line.blocks)) for line in page)
    headings = [bold.getlength(" ".join(line.heading)) for line in page if line.heading]
    width = max([width, *(min(PAGE[0], round(length)) for length in headings)]) + _BLOCK_GAP
    sheet = Image.new("RGB", (width, sum(line.height for line in page) + _BLOCK_GAP), "white")
    draw = ImageDraw.Draw(sheet)
    y = _BLOCK_GAP // 2
    for line in page:
        end = y + line.height
        if line.heading:
            name, note = line.heading
            draw.line((0, y, width, y), fill=NEUTRAL)
            y += 6
            draw.text((_BLOCK_GAP, y), name, fill=INK, font=bold)
            start = _BLOCK_GAP + bold.getlength(name + "   ")
            shown = shortened(note, text, max(0, int(width - start - _BLOCK_GAP)))
            draw.text((start, y + 2), shown, fill=QUIET, font=text)
            y += 2 * _LINE - 6
        x = _BLOCK_GAP
        for block in line.blocks:
            below = _draw_tiles(sheet, draw, block, x, y)
            draw.text((x, below), block.title, fill=INK, font=bold)
            x += _width(block)
        y = end
    return sheet


def _draw_tiles(sheet: Image.Image, draw: ImageDraw.ImageDraw, block: Block, x: int, y: int) -> int:
    """Paint the tiles of a block beside each other; returns where its title goes."""
    text = typeface(12)
    for tile in block.tiles:
        height, width = tile.frame.shape[:2]
        box = (x, y, x + width + 2 * _BORDER - 1, y + height + 2 * _BORDER - 1)
        draw.rectangle(box, fill=tile.border)
        sheet.paste(Image.fromarray(tile.frame), (x + _BORDER, y + _BORDER))
        for number, line in enumerate(tile.lines):
            draw.text((x, box[3] + 1 + number * _LINE), line, fill=INK, font=text)
        x += width + 2 * _BORDER + _GAP
    return y + max((_tile_height(tile) for tile in block.tiles), default=0)


def _save(sheet: Image.Image, file: Path) -> Path:
    with replacing(file) as partial:
        sheet.save(partial, format="PNG")
    return file
