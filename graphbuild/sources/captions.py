"""Captions of image files: a text file beside each, or a table in their folder."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from graphbuild.errors import counted
from graphbuild.hashing import canonical_json

TABLES = tuple(f"{name}.{ending}" for ending in ("jsonl", "csv", "parquet") for name in ("captions", "metadata"))
"""File names of caption tables; a folder has at most one."""

MAX_TEXT = 100_000
"""Bytes of the longest caption, and of all further columns of a row; text encoders read a few hundred words."""

_COLUMNS = {
    "file": ("file", "file_name"),
    "caption": ("caption", "text"),
    "licence": ("licence", "license"),
    "attribution": ("attribution",),
    "group": ("group",),
    "split": ("split",),
}
_KNOWN = frozenset(name for names in _COLUMNS.values() for name in names)
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][+-]?\d{1,2})?")
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)

Row = Mapping[str, Any]
"""Facts of one file, where given: caption, licence, attribution, group, split; `meta`, further columns of a table; and
`refused`, why the file cannot be used."""


class CaptionError(ValueError):
    """A caption file that cannot be used as it is; the message names it and the fix."""


def caption_of(data: bytes, name: str) -> str | None:
    """The text of a caption file in UTF-8, or in what its byte order mark says; None if there is only white space.

    Raises:
        CaptionError: another encoding.
    """
    encoding = _encoding(data)
    try:
        return data.decode(encoding).strip() or None
    except UnicodeDecodeError as error:
        raise _not_text(name, error) from error


class Table:
    """One table of captions: its rows by the file names they give."""

    def __init__(self, path: Path, name: str) -> None:
        self.name, self._folder = name, path.parent
        rows = list(_rows(path, name))
        self.rows = dict(rows)
        self.repeated = [file for file, count in Counter(file for file, _ in rows).items() if count > 1]
        self._spelled = {_spelling(file): file for file in self.rows}
        self._folded = {file.casefold(): name for file, name in self._spelled.items()}

    def find(self, file: str) -> str | None:
        """The row of a file, by the name it gives: the same one, or one that differs in Unicode normalisation,
        slashes or case and is not another file's."""
        if file in self.rows:
            return file
        spelled = _spelling(file)
        found = self._spelled.get(spelled) or self._folded.get(spelled.casefold())
        if found is None or _is_another(self._folder / found, self._folder / file):
            return None
        return found


class Tables:
    """The tables in a folder and in the folders below it. Each names files relative to its own folder; of several
    with a row for one file, the nearest counts. A table that is a link out of `root` is read only on request."""

    def __init__(self, root: Path, *, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links
        self._tables: dict[str, Table | None] = {}
        self._used: dict[str, set[str]] = {}

    def row(self, key: str) -> Row:
        """The table row of the file `key`; empty if it has none."""
        folder = key
        while folder:
            folder = folder.rpartition("/")[0]
            table = self._at(folder)
            found = table.find(key.removeprefix(f"{folder}/")) if table else None
            if table is not None and found is not None:
                self._used.setdefault(table.name, set()).add(found)
                return table.rows[found]
        return {}

    def notes(self, folders: Iterable[str], example: str) -> Iterator[str]:
        """After `row` was asked for every file: a line for rows that name no image, and for files with several rows.

        Raises:
            CaptionError: no row of a table names an image (absolute paths, say): every caption would be lost.
        """
        for table in filter(None, map(self._at, folders)):
            lost = [file for file in table.rows if file not in self._used.get(table.name, ())]
            if lost and len(lost) == len(table.rows):
                raise CaptionError(
                    f"{table.name} names none of the images: it has {lost[0]!r}, the folder has {example!r}; "
                    "correct its names, or give the table another name"
                )
            if lost:
                yield f"{table.name}: {len(lost)} of {counted(len(table.rows), 'row')} name no image: {shown(lost)}"
            if table.repeated:
                files = counted(len(table.repeated), "file")
                yield f"{table.name}: {files} with several rows, of which the last counts: {shown(table.repeated)}"

    def _at(self, folder: str) -> Table | None:
        if folder not in self._tables:
            found = [path for name in TABLES if self._is_table(path := self._root / folder / name)]
            if len(found) > 1:
                both = " and ".join(os.path.join(folder, path.name) for path in found)
                raise CaptionError(f"{both}: keep one table of captions in a folder")
            self._tables[folder] = _table(found[0], os.path.join(folder, found[0].name)) if found else None
        return self._tables[folder]

    def _is_table(self, path: Path) -> bool:
        return path.is_file() and (self._follow_links or path.resolve().is_relative_to(self._root))


def shown(names: Sequence[str]) -> str:
    """The first names of a list, for a message: control and direction characters escaped."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _table(path: Path, name: str) -> Table:
    found = path.stat()
    return _parsed(path, name, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _parsed(path: Path, name: str, *_: int) -> Table:
    # Remembered, because sources are read unit by unit; size and time make a changed table a new one.
    return Table(path, name)


def _rows(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    for line in _parquet_rows(path, name) if path.suffix == ".parquet" else text_rows(path, name):
        yield _row(line, name)


def _parquet_rows(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(1024, use_threads=False):
                yield from json.loads(json.dumps(batch.to_pylist(), default=str))
    except (pa.ArrowException, ValueError) as error:
        raise CaptionError(f"{name}: {error}") from error


def text_rows(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a `.csv` file, or else of JSON lines; `name` is said of it in messages.

    Raises:
        CaptionError: it is not such a table.
    """
    with path.open("rb") as file:
        encoding = _encoding(file.read(4))
        file.seek(0)
        lines = io.TextIOWrapper(file, encoding, newline="")
        try:
            yield from _csv_rows(lines, name) if path.suffix == ".csv" else _json_lines(lines, name)
        except UnicodeDecodeError as error:
            raise _not_text(name, error) from error


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            if None in row:  # an unquoted comma would cut the caption short
                raise CaptionError(
                    f"{name} line {reader.line_num} has more cells than the header: quote texts with commas"
                )
            yield {column: _number(cell) if column not in _KNOWN else cell for column, cell in row.items()}
    except csv.Error as error:
        raise CaptionError(f"{name} line {reader.line_num}: {error}") from error


def _number(cell: str | None) -> str | int | float | None:
    """A cell of CSV as the number it spells, so that conditions can compare it."""
    if cell is None or not _NUMBER.fullmatch(cell):
        return cell
    return float(cell) if set(cell) & set(".eE") else int(cell)


def _json_lines(lines: Iterable[str], name: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda _: None)  # NaN and Infinity are no JSON
        except (json.JSONDecodeError, RecursionError) as error:
            raise CaptionError(f"{name} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise CaptionError(f"{name} line {number} is not a JSON object")
        yield row


def _row(line: Mapping[str, Any], name: str) -> tuple[str, Row]:
    texts = {ours: _text(line, theirs, name) for ours, theirs in _COLUMNS.items()}
    file = PurePosixPath(texts.pop("file")).as_posix()
    if file == ".":
        columns = ", ".join(str(column) for column in line)
        raise CaptionError(f"a row of {name} has no file or file_name, only {columns}")
    row: dict[str, Any] = {column: text for column, text in texts.items() if text}
    if meta := {column: value for column, value in line.items() if column not in _KNOWN and value not in (None, "")}:
        row["meta"] = meta
    if (nbytes := len(canonical_json(row))) > MAX_TEXT:
        return file, {"refused": too_long(name, nbytes)}
    return file, row


def too_long(name: str, nbytes: int) -> str:
    """Why a file with a text of this size is refused."""
    return f"{name}: {nbytes} bytes of text, the limit is {MAX_TEXT}"


def _text(line: Mapping[str, Any], columns: Sequence[str], name: str) -> str:
    value = next((line[column] for column in columns if line.get(column) not in (None, "")), "")
    if not isinstance(value, str | int | float):
        raise CaptionError(f"{name} has {value!r} as {columns[0]}; it must be text")
    return str(value).encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, which is no text


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")


def _not_text(name: str, error: UnicodeDecodeError) -> CaptionError:
    return CaptionError(
        f"{name} is not {error.encoding.upper()} (byte {error.start}: {error.reason}); convert it, for example with "
        "iconv -f LATIN1 -t UTF-8"
    )


def _spelling(file: str) -> str:
    return unicodedata.normalize("NFC", file.replace("\\", "/"))


def _is_another(found: Path, file: Path) -> bool:
    """Whether a row that is spelled otherwise names an existing file of its own."""
    try:
        return found.exists() and not found.samefile(file)
    except (OSError, ValueError):
        return False
