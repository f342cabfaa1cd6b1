"""Rows of Parquet files and of Arrow streams, by number, without holding a file in memory."""

from __future__ import annotations

import atexit
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from graphbuild.errors import Unreachable
from graphbuild.sources.base import Entry
from graphbuild.sources.places import Place

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ENDINGS = (".parquet", ".arrow")
# Rows decoded at once, and bytes of a column read at once: with them it is the pages, not the row groups, that take
# memory (a row group of 341 MB: about 16 MB held; with pyarrow's defaults 356 MB).
_BATCH_ROWS = 8
_BUFFER = 1 << 20
_MOST_OPEN = 64


class _Run(NamedTuple):
    """Ascending rows of one row group; `start` is the group's first row. All are counted from the file's start."""

    group: int
    start: int
    rows: list[int]


class _Cursor:
    """Goes forward through one row group, a few rows at a time."""

    def __init__(self, parquet: pq.ParquetFile, group: int, start: int, columns: Sequence[str]) -> None:
        self._group, self._start, self._columns = group, start, list(columns)
        self._batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self._columns, use_threads=False)
        self._next()

    def _next(self) -> None:
        self._batch: pa.RecordBatch | None = next(self._batches)
        self._count, self._rows = self._batch.num_rows, list[dict[str, Any]]()

    def reaches(self, group: int, row: int, columns: Sequence[str]) -> bool:
        """Whether a row, counted from the file's start, is not behind."""
        return group == self._group and row >= self._start and list(columns) == self._columns

    def row(self, row: int) -> dict[str, Any]:
        while row >= self._start + self._count:
            self._start += self._count
            self._next()
        if self._batch is not None:  # all at once, a fifth of the time of cell by cell; then Arrow's are not held
            self._rows, self._batch = self._batch.to_pylist(), None
        return self._rows[row - self._start]


class ParquetRows:
    """A Parquet file. A read goes on in the row group where the last one stopped."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self.parquet = parquet
        self._cursor: _Cursor | None = None

    @property
    def num_rows(self) -> int:
        count: int = self.parquet.metadata.num_rows
        return count

    @property
    def row_nbytes(self) -> int:
        """About how large a row is."""
        footer = self.parquet.metadata
        groups = map(footer.row_group, range(footer.num_row_groups))
        nbytes: int = sum(group.total_byte_size for group in groups) // max(1, footer.num_rows)
        return nbytes

    @property
    def columns(self) -> list[str]:
        """Dotted names of its columns, with those inside structures."""
        schema = self.parquet.metadata.schema
        return [schema.column(index).path for index in range(len(schema))]

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those rows, in order, with those columns.

        Raises:
            ValueError: the file has fewer rows.
        """
        for run in _runs(self.parquet, rows):
            for row in run.rows:
                yield row, self._row(run, row, columns)

    def _row(self, run: _Run, row: int, columns: Sequence[str]) -> dict[str, Any]:
        cursor, self._cursor = self._cursor, None  # a cursor that fails is not used again
        if cursor is None or not cursor.reaches(run.group, row, columns):
            cursor = _Cursor(self.parquet, run.group, run.start, columns)
        values = cursor.row(row)
        self._cursor = cursor
        return values


class ArrowRows:
    """An Arrow stream, as `datasets` saves to disk: read from its start, batch by batch."""

    row_nbytes = 0

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.schema: pa.Schema = self._stream().schema

    def _stream(self) -> Any:
        import pyarrow as pa

        self._handle.seek(0)
        return pa.ipc.open_stream(self._handle)

    @property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch in self._stream())

    @property
    def columns(self) -> list[str]:
        """Dotted names of its columns, with those inside structures."""
        return [leaf for each in self.schema for leaf in _leaves(each.name, each.type)]

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those rows, in order, with those columns.

        Raises:
            ValueError: the file has fewer rows.
        """
        start, wanted, tops = 0, list(rows), list(dict.fromkeys(name.partition(".")[0] for name in columns))
        for batch in self._stream():
            while wanted and wanted[0] < start + batch.num_rows:
                row = wanted.pop(0)
                yield row, {name: batch.column(name)[row - start].as_py() for name in tops}
            start += batch.num_rows
        if wanted:
            raise ValueError(f"row {wanted[0]} asked of a file with {start}; it was replaced")


def _leaves(name: str, kind: pa.DataType) -> Iterator[str]:
    """Dotted names inside a column; lists are looked through."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(name, kind.value_type)
    elif pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{name}.{child.name}", child.type)
    else:
        yield name


@contextmanager
def opened(place: Place, file: str) -> Iterator[ParquetRows | ArrowRows]:
    """A table of a place.

    Raises:
        ValueError: it is gone, or is neither Parquet nor Arrow.
        OSError: it is damaged inside, or its file system failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with place.open(file) as handle:
            if file.lower().endswith(".arrow"):
                with pa.memory_map(place.path(file)) if place.local else pa.PythonFile(handle, "r") as source:
                    yield ArrowRows(source)
            else:
                # By default a whole row group, with all its images, is read ahead.
                options = {"pre_buffer": False, "buffer_size": _BUFFER, "page_checksum_verification": True}
                yield ParquetRows(pq.ParquetFile(handle, **options))
    except (FileNotFoundError, pa.ArrowException) as error:
        raise ValueError(f"source {place.source!r}: {file} cannot be read ({error}); fetch it again") from error
    except Unreachable:
        raise
    except OSError as error:
        raise OSError(f"source {place.source!r}: {file}: {error}") from error


class Tables:
    """Tables of a place that stay open, each where its last read stopped: the least recently used are closed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._open: OrderedDict[str, tuple[ParquetRows | ArrowRows, ExitStack]] = OrderedDict()

    def __getitem__(self, file: str) -> ParquetRows | ArrowRows:
        """Raises:
        ValueError, OSError: as `opened`.
        """
        if file not in self._open:
            stack = ExitStack()
            self._open[file] = (stack.enter_context(opened(self._place, file)), stack)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1][1].close()
        self._open.move_to_end(file)
        return self._open[file][0]


def listed(place: Place, endings: Sequence[str], check: Callable[[Sequence[str], str], None]) -> list[Entry]:
    """Every row of every table, from the footers alone, sorted by key: `file#row`. What `datasets` computed on the way,
    `cache-*.arrow`, is left out.

    Args:
        check: called with the columns and the name of each file.

    Raises:
        ValueError, OSError: as `opened`.
    """
    entries: list[Entry] = []
    for file, stamp in place.listing(endings):
        if not file.rpartition("/")[2].startswith("cache-"):
            with opened(place, file) as rows:
                check(rows.columns, file)
                nbytes = rows.row_nbytes
                entries += [Entry(f"{file}#{row:07d}", stamp, nbytes=nbytes) for row in range(rows.num_rows)]
    return sorted(entries, key=lambda entry: entry.key)


def rows_of(
    place: Place, keys: Sequence[str], columns: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """File, key and values of each row, in order. Only row groups with wanted rows are read, a few rows at a time.

    Args:
        columns: those of a file that are read.

    Raises:
        ValueError, OSError: as `opened`; or a file has fewer rows than it had when it was listed.
    """
    for file, numbered in groupby(keys, key=lambda key: key.rpartition("#")[0]):
        wanted = [int(key.rpartition("#")[2]) for key in numbered]
        with going_on(place, file) as rows:
            for row, values in rows.read(wanted, columns(rows.columns)):
                yield file, f"{file}#{row:07d}", values


_Key = tuple[int, Place, str, str]
"""Process, place, file and its stamp."""


class _Kept(NamedTuple):
    """A table that stays open."""

    key: _Key
    rows: ParquetRows | ArrowRows
    stack: ExitStack


_kept: list[_Kept] = []
"""At most one; a reader takes it out while it reads, so that no other moves it on."""


@contextmanager
def going_on(place: Place, file: str) -> Iterator[ParquetRows | ArrowRows]:
    """`opened`, for one reader after the other: the table stays open until another one is read. Units of a source are
    read like this, so that a worker reads a row group once, however many units it has rows of.

    Raises:
        ValueError, OSError: as `opened`.
    """
    key = (os.getpid(), place, file, place.stamp(file))
    kept = _take(key) or _open(key)
    with kept.stack as stack:
        try:
            yield kept.rows
        except GeneratorExit:  # the reader has what it wanted
            _keep(kept._replace(stack=stack.pop_all()))
            raise
        _keep(kept._replace(stack=stack.pop_all()))


def _open(key: _Key) -> _Kept:
    stack, (_, place, file, _) = ExitStack(), key
    return _Kept(key, stack.enter_context(opened(place, file)), stack)


def _take(key: _Key) -> _Kept | None:
    """The table that is kept, if it is this one; another one is closed."""
    with suppress(IndexError):
        while (kept := _kept.pop()).key != key:
            kept.stack.close()
        return kept
    return None


def _keep(kept: _Kept) -> None:
    _kept.append(kept)
    while len(_kept) > 1:
        _kept.pop(0).stack.close()


@atexit.register
def _close() -> None:
    while _kept:
        _kept.pop().stack.close()


def _runs(parquet: pq.ParquetFile, rows: Sequence[int]) -> Iterator[_Run]:
    footer = parquet.metadata
    starts = [0, *accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))]
    run: _Run | None = None
    for row in rows:
        group = bisect_right(starts, row) - 1
        if group == footer.num_row_groups:
            raise ValueError(f"row {row} asked of a file with {starts[-1]}; it was replaced")
        if run is not None and run.group == group and run.rows[-1] < row:
            run.rows.append(row)
            continue
        if run is not None:
            yield run
        run = _Run(group, starts[group], [row])
    if run is not None:
        yield run
