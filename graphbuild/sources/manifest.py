"""A table of file names: CSV or JSON lines, whose columns are nodes and facts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from graphbuild.config.lookup import suggestion
from graphbuild.sources.base import Entry, SourceItem, Unusable, columns_of, facts_digest
from graphbuild.sources.captions import CaptionError, text_rows
from graphbuild.sources.columns import Mapped, look_up
from graphbuild.sources.places import Place, nbytes_of


@dataclass(frozen=True, kw_only=True)
class Manifest(Mapped):
    """Every row of a `.csv` or `.jsonl` file, `path`. Columns of pictures name files relative to it; nothing outside
    its folder is read, and addresses are refused: fetch them with img2dataset and use `webdataset`. A table in Parquet
    is read by `parquet`.

    Args:
        key: the column that names an item; by default that of the picture. No two rows may have the same.
    """

    name: ClassVar[str] = "manifest"
    key: str | None = None

    def entries(self) -> Sequence[Entry]:
        """Every row, with the size and time of its picture.

        Raises:
            ValueError: no such file or column, rows of one name, or addresses instead of files.
        """
        place, rows = self._place(), self._rows()
        stamps = {key: place.stamp(self._picture(row)) for key, row in rows.items()}
        facts = {key: facts_digest(columns_of(self.item(key, row, _unread))) for key, row in rows.items()}
        return [Entry(key, stamp, facts[key], nbytes_of(stamp)) for key, stamp in stamps.items()]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The rows, in order, with the files that they name."""
        place, rows = self._place(), self._rows()
        for key in keys:
            yield self.item(key, rows[key], place.read)

    def _place(self) -> Place:
        return Place.at(os.path.dirname(os.path.abspath(self._file())), self.name)

    def _file(self) -> Path:
        if self.path is None or not Path(self.path).expanduser().is_file():
            raise ValueError(f"source {self.name!r}: {self.path} is no file; give --path with a .csv or .jsonl file")
        return Path(self.path).expanduser()

    def _picture(self, row: Mapping[str, Any]) -> str:
        return str(look_up(row, self.declared()[0].of[0]) or "")

    def _rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Key -> row, sorted by key."""
        file = self._file()
        try:
            found = _table(file, file.stat().st_size, file.stat().st_mtime_ns)
        except CaptionError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error
        if not self.nodes:
            raise ValueError(f"source {self.name!r}: say which column is the picture: nodes: {{image: COLUMN}}")
        self._check_columns(found, file.name)
        column = self.key or self.declared()[0].of[0]
        named = [(str(look_up(row, column) or ""), row) for row in found]
        twice = [key for key, count in Counter(key for key, _ in named).items() if count > 1 or not key]
        if twice:
            raise ValueError(
                f"source {self.name!r}: {file.name}: several rows have {column} {twice[0]!r}; say with key which "
                "column names an item"
            )
        addresses = [key for key, row in named if "://" in self._picture(row)]
        if addresses:
            raise ValueError(
                f"source {self.name!r}: {file.name} names addresses ({addresses[0]}); fetch them first: img2dataset "
                f"--url_list {file.name} --output_format webdataset, and use the source webdataset"
            )
        return dict(sorted(named, key=lambda pair: pair[0]))

    def _check_columns(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        if not rows:
            raise ValueError(f"source {self.name!r}: {name} has no rows")
        known = list(dict.fromkeys(column for row in rows[:1000] for column in row))
        asked = self.columns() | ({self.key} if self.key else set())
        for column in sorted(asked):
            tops = {part.partition(".")[0] for part in column.split(";")} | {column}
            if not tops & set(known):
                hint = suggestion(column, known)
                raise ValueError(
                    f"source {self.name!r}: {name} has no column {column!r}{hint}; it has {', '.join(known)}"
                )


def _unread(file: str) -> Unusable:
    return Unusable("missing")


@lru_cache(maxsize=4)
def _table(file: Path, *_: int) -> list[Mapping[str, Any]]:
    # Remembered, because sources are read unit by unit; size and time make a changed table a new one.
    return list(text_rows(file, file.name))
