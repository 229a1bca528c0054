"""Annotation files of data sets: text, tables, names and splits, with errors that name the line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.label_values import listed_names
from training.support.command import UserError

MOST_PHASES = 10_000  # a larger number in annotations is no phase
_SEPARATORS = ",;\t"
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def wrong_layout(source: Path, problem: str, layout: str) -> UserError:
    """The error for a SOURCE that is not the expected data set: what is there, what belongs there.

    Args:
        problem: what is wrong, such as 'no folder "frames"'.
        layout: the expected files, `Reader.layout`.
    """
    if source.is_dir():
        names = natural(entry.name + "/" * entry.is_dir() for entry in os.scandir(source))
        found = f"it contains {listed_names(names)}" if names else "it is empty"
    else:
        found = "it is a file" if source.exists() else "it does not exist"
    expected = "\n".join(f"  {line}" for line in layout.strip("\n").splitlines())
    return UserError(f"{source}: {problem}; {found}. Expected:\n{expected}")


def several(path: Path, problems: Sequence[str]) -> UserError:
    """One error for all problems of a file; the first 20 are shown."""
    from training.data.labels import listed  # loads numpy

    return UserError(listed(path, [*problems]))


def natural(names: Iterable[str]) -> list[str]:
    """Names in natural order: "a2" before "a10"."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key of natural order; numbers come before letters."""
    parts = re.findall(r"\d+|\D+", name)
    return [(not p.isdigit(), int(p) if p.isdigit() else 0, p.casefold()) for p in parts], name


def split_of(name: str) -> str | None:
    """ "train", "val" or "test" for a split's usual names ("training", "validation"), else None."""
    return _SPLITS.get(name.strip().casefold())


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises UserError for a file that cannot be read, and for other encodings, naming the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"  # Excel's "Unicode text"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8; save the file as UTF-8 (Excel: CSV UTF-8)"
        ) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text without surrounding blanks) of the lines that are not empty."""
    lines = enumerate(read_text(path).splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError for a file that is not JSON, naming the line."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not a readable JSON file: {error}") from error


def read_database(
    path: Path, problem_of: Callable[[Any], str], source: str = ""
) -> dict[str, dict[str, Any]]:
    """The object "database" of a JSON file; one UserError for all entries with a problem.

    Args:
        problem_of: what is wrong with an entry; an empty string if nothing is.
        source: words about the expected file, for the message.
    """
    content = read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise UserError(f'{path}: expected an object with "database"{source}')
    problems = [f"{name}: {text}" for name, one in database.items() if (text := problem_of(one))]
    if problems:
        raise several(path, problems)
    return database


@dataclass(frozen=True)
class Row:
    """One row of a table: its line in the file, from 1, and its cells without outer blanks."""

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a table with a header, separated by commas, semicolons or tabs.

    Column names may be in any order and case; empty rows are skipped. A column that is missing in
    the file has empty cells.

    Raises:
        UserError: the file has no such header, an unknown column, or a row with another number of
            cells than the header; the message names the line.
    """
    text = read_text(path)
    separator, header_line = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    rows, problems, line = [], [], 1
    try:
        for number, cells in enumerate(reader):
            first, line = line, reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            if not any(cells) or (number == 0 and header_line):
                continue
            if header is None:
                header = _header(path, cells, required, optional)
            elif len(cells) != len(header):
                problems.append(_wrong_count(first, cells, header, separator))
            else:
                rows.append(Row(first, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error
    if header is None:
        raise UserError(f"{path}: the file is empty; expected a header: {','.join(required)}")
    if problems:
        raise several(path, problems)
    return rows


def _separator(text: str) -> tuple[str, bool]:
    """(separator, whether the first line is Excel's "sep=;")."""
    first = text.lstrip("\n\r").split("\n", 1)[0].strip()
    if chosen := re.fullmatch(r"sep=(.)", first):
        return chosen[1], True
    return max(_SEPARATORS, key=first.count), False


def _header(
    path: Path, cells: list[str], required: Sequence[str], optional: Sequence[str]
) -> list[str]:
    known = [*required, *optional]
    header = [cell.casefold() for cell in cells]
    missing = [name for name in required if name not in header]
    unknown = [name for name in header if name not in known]
    twice = {name for name in header if header.count(name) > 1}
    problems = [f"no column {name!r}" for name in missing]
    problems += [f"unknown column {name!r}" for name in unknown]
    problems += [f"column {name!r} is there twice" for name in sorted(twice)]
    if problems:
        raise UserError(
            f"{path}: {'; '.join(problems)}; expected a header with the columns "
            f"{', '.join(required)}" + (f" and, if needed, {', '.join(optional)}" * bool(optional))
        )
    return header


def _wrong_count(line: int, cells: list[str], header: list[str], separator: str) -> str:
    advice = ""
    if separator == "," and len(cells) > len(header):
        advice = "; write a cell that contains a comma in double quotes, and numbers with a point"
    return f"line {line}: {len(cells)} cells, but the header has {len(header)}{advice}"


def number_of(text: str) -> float:
    """A number; "1,5" is accepted as 1.5. Raises ValueError for anything else."""
    if re.fullmatch(r"[+-]?\d+,\d+", text):
        text = text.replace(",", ".")
    value = float(text)
    if value - value != 0:
        raise ValueError("not a finite number")
    return value


def media_files(folder: Path) -> dict[str, Path]:
    """Video files below a folder, by their relative name with forward slashes.

    Files are judged by their extension alone; hidden files and folders are skipped.
    """
    from training.data.files import by_name, list_files

    names, _ = list_files(folder)
    return {name: Path(f"{folder}/{name}") for name in names if by_name(name) is True}


def by_stem(files: Iterable[str]) -> dict[str, list[str]]:
    """Base name without its extension -> the names of the files, for annotations by bare ids."""
    stems: dict[str, list[str]] = {}
    for name in files:
        stems.setdefault(PurePosixPath(name).stem, []).append(name)
    return stems
