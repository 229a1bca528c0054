"""Reading and writing FOLDER/fastseq_index.sqlite.

Table `about` has one JSON value by name, `columns` the values of all videos by column, `files` the
checked files of each folder with their stamps, and `bad` the files that are left out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from training.data.packing import Ragged, as_bytes, as_text
from training.support.files import replacing

FORMAT = 6

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, json TEXT);
CREATE TABLE columns (name TEXT PRIMARY KEY, type TEXT, data BLOB);
CREATE TABLE files (folder BLOB PRIMARY KEY, names BLOB, stamps BLOB);
CREATE TABLE bad (path BLOB PRIMARY KEY, reason TEXT, checked TEXT);
"""

Stamp = tuple[int, int]
Files = Mapping[str, Stamp]  # of one folder: name of the file -> stamp


class DamagedIndex(ValueError):
    """The file is no index, or not whole."""


def write_store(
    path: Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    texts: Mapping[str, Ragged],
    files: Mapping[str, Files],
    bad: Iterable[tuple[str, str, str]],
) -> None:
    """Write an index whole or not at all.

    Args:
        bad: path, reason and JSON of the check of each file that is left out.
    """
    columns = dict(arrays)
    for name, text in texts.items():
        columns[f"{name}.data"], columns[f"{name}.offsets"] = text.data, text.offsets
        if text.rows is not None:
            columns[f"{name}.rows"] = text.rows
    with replacing(path) as partial:
        partial.unlink(missing_ok=True)  # of a killed process with the same number
        connection = sqlite3.connect(partial)
        try:
            connection.execute("PRAGMA journal_mode = OFF")  # the file appears when it is whole
            connection.executescript(_TABLES)
            connection.executemany(
                "INSERT INTO about VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in about.items()],
            )
            connection.executemany(
                "INSERT INTO columns VALUES (?, ?, ?)",
                ((name, data.dtype.str, data.tobytes()) for name, data in columns.items()),
            )
            connection.executemany(
                "INSERT INTO files VALUES (?, ?, ?)",
                (
                    (
                        as_bytes(folder),
                        b"/".join(map(as_bytes, inside)),
                        np.array([*inside.values()], "<i8").tobytes(),
                    )
                    for folder, inside in files.items()
                ),
            )
            connection.executemany(
                "INSERT INTO bad VALUES (?, ?, ?)",
                ((as_bytes(name), json.dumps(reason), made) for name, reason, made in bad),
            )
            connection.commit()
        except sqlite3.OperationalError as error:
            raise OSError(f"{path} cannot be written: {error}") from error  # such as a full disk
        finally:
            connection.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())


class Store:
    """An index file, open for reading: with Store(path) as store.

    It is opened read-only and without locks, so that read-only folders, network file systems and
    forked processes need no care; a new index replaces the file and never changes it.

    Attributes:
        about: the JSON values by name.
    Raises:
        DamagedIndex: on opening and on each reading.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Store:
        name = quote(os.fsencode(os.path.abspath(self.path)))
        self._connection = self._guarded(
            lambda: sqlite3.connect(f"file:{name}?mode=ro&immutable=1", uri=True)
        )
        try:
            rows = self._rows("SELECT name, json FROM about")
            self.about = {name: json.loads(value) for name, value in rows}
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def columns(self, wanted: Iterable[str]) -> tuple[dict[str, np.ndarray], dict[str, Ragged]]:
        """The arrays and the texts among these columns."""
        arrays, texts = {}, {}
        for name in wanted:
            read = {
                key: np.frombuffer(data, type_)
                for key, type_, data in self._rows(
                    "SELECT name, type, data FROM columns WHERE name IN (?, ?, ?, ?)",
                    (name, f"{name}.data", f"{name}.offsets", f"{name}.rows"),
                )
            }
            if name in read:
                arrays[name] = read[name]
            elif f"{name}.data" in read:
                texts[name] = Ragged(
                    read[f"{name}.data"], read[f"{name}.offsets"], read.get(f"{name}.rows")
                )
            else:
                raise DamagedIndex(f"the column {name!r} is missing")
        return arrays, texts

    def files(self, folder: str) -> tuple[list[str], np.ndarray] | None:
        """Names of the checked files of one folder and their stamps, int64 (files, 2).

        None if the folder is unknown.
        """
        rows = self._rows("SELECT names, stamps FROM files WHERE folder = ?", (as_bytes(folder),))
        if not rows:
            return None
        names, stamps = rows[0]
        names = as_text(names).split("/") if names else []
        return names, np.frombuffer(stamps, "<i8").reshape(-1, 2)

    def folders(self) -> list[str]:
        """The folders of the checked files and those above them."""
        return [as_text(folder) for (folder,) in self._rows("SELECT folder FROM files")]

    def bad(self) -> list[tuple[str, str, str]]:
        """Path, reason and JSON of the check of each file that is left out."""
        rows = self._rows("SELECT path, reason, checked FROM bad ORDER BY path")
        return [(as_text(path), json.loads(reason), made) for path, reason, made in rows]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._guarded(lambda: self._connection.execute(query, values).fetchall())

    def _guarded(self, read: Any) -> Any:
        try:
            return read()
        except sqlite3.Error as error:
            raise DamagedIndex(str(error)) from error
