"""A folder of one's own pictures as the rows of a task: a folder for each row, a file for each column."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from graphbuild.errors import GraphError
from graphbuild.images.decode import suffixes

Row = list[Path | None]


def read_rows(folder: Path, cells: Sequence[str], holes: Collection[int] | None = None) -> list[Row]:
    """The files of each row, None for those that are not there. Rows are sorted by name, numbers in it by value (2
    before 10), and the last is the query. A folder without folders is one query row.

    A file belongs to the column whose number its name begins with (`2-photo.jpg`) or whose cell it is called after
    (`canny.png`, `reference-a.png`). If none does, or numbers go beyond the columns, files are in the order of their
    names.

    Args:
        cells: roles of the columns.
        holes: columns of the query row that are to be made, which alone may lack a picture; by default any, or the last
            where names say nothing.

    Raises:
        GraphError: a picture is missing, comes twice or belongs to no column; the message names folder and column.
        FileNotFoundError: there is no such folder.
    """
    rows = in_order(path for path in folder.iterdir() if path.is_dir()) or [folder]
    found = {row: _pictures(row) for row in rows}
    columns = {file: _column(file.stem, cells) for files in found.values() for file in files}
    if all(column is None for column in columns.values()) or any(_beyond(file.stem, cells) for file in columns):
        return [_by_order(row, found[row], cells, holes, row == rows[-1]) for row in rows]
    return [_by_name(row, {file: columns[file] for file in found[row]}, cells, holes, row == rows[-1]) for row in rows]


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers in it by value, without hidden ones."""
    shown = [path for path in paths if not path.name.startswith(".")]
    return sorted(shown, key=lambda path: [int(part) if part.isdigit() else part
                                           for part in re.split(r"([0-9]+)", path.name)])  # fmt: skip


def _pictures(row: Path) -> list[Path]:
    return in_order(path for path in row.iterdir() if path.is_file() and path.suffix.lower() in suffixes())


def _column(stem: str, cells: Sequence[str]) -> int | None:
    """The column that a file's name speaks of."""
    roles = [cell.replace(":", "-") for cell in cells]
    if stem in roles:
        return roles.index(stem)
    number = re.match(r"[0-9]+", stem)
    return int(number[0]) - 1 if number and 1 <= int(number[0]) <= len(cells) else None


def _beyond(stem: str, cells: Sequence[str]) -> bool:
    """Whether a name begins with a number that no column has: then numbers only say the order."""
    number = re.match(r"[0-9]+", stem)
    return number is not None and not 1 <= int(number[0]) <= len(cells)


def _by_name(
    row: Path, columns: dict[Path, int | None], cells: Sequence[str], holes: Collection[int] | None, query: bool
) -> Row:
    placed: Row = [None] * len(cells)
    for file, column in columns.items():
        if column is None:
            raise GraphError(f"{file}: which column? Begin its name with 1 to {len(cells)}: {_listed(cells)}")
        if (other := placed[column]) is not None:
            raise GraphError(
                f"{row}: two pictures for column {column + 1} ({cells[column]}): {other.name}, {file.name}"
            )
        placed[column] = file
    allowed = () if not query else range(len(cells)) if holes is None else holes
    for column, placed_file in enumerate(placed):
        if placed_file is None and column not in allowed:
            some = ", ".join(file.name for file in columns) or "nothing"
            raise GraphError(f"{row}: no picture for column {column + 1} ({cells[column]}); there is {some}")
    return placed


def _by_order(row: Path, files: list[Path], cells: Sequence[str], holes: Collection[int] | None, query: bool) -> Row:
    empty = (set(holes) if holes is not None else {len(cells) - 1}) if query else set()
    filled = [column for column in range(len(cells)) if column not in empty or len(files) == len(cells)]
    if len(files) != len(filled):
        some = f" ({', '.join(file.name for file in files)})" if files else ""
        wanted = f"{len(filled)} ({', '.join(cells[column] for column in filled)})"
        raise GraphError(f"{row}: {len(files)} pictures{some}; wanted: {wanted}, in the order of their names")
    placed: Row = [None] * len(cells)
    for column, file in zip(filled, files, strict=True):
        placed[column] = file
    return placed


def _listed(cells: Sequence[str]) -> str:
    return ", ".join(f"{number} {cell}" for number, cell in enumerate(cells, start=1))
