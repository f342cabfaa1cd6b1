"""Rows of Parquet files and of Arrow streams, by number, without holding a file in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from graphbuild.errors import Unreachable
from graphbuild.sources.places import Place

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ENDINGS = (".parquet", ".arrow")
# Rows decoded at once, and bytes of a column read at once: with them it is the pages, not the row groups, that take
# memory (a row group of 341 MB: 16 MB held; with pyarrow's defaults 356 MB).
_BATCH_ROWS = 16
_BUFFER = 1 << 20


class _Run(NamedTuple):
    """Ascending rows of one row group; `start` is the group's first row. All are counted from the file's start."""

    group: int
    start: int
    rows: list[int]


class ParquetRows:
    """A Parquet file."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self.parquet = parquet

    @property
    def num_rows(self) -> int:
        count: int = self.parquet.metadata.num_rows
        return count

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
            start = run.start
            for batch in self.parquet.iter_batches(
                _BATCH_ROWS, row_groups=[run.group], columns=list(columns), use_threads=False
            ):
                stop = start + batch.num_rows
                for row in run.rows[bisect_left(run.rows, start) : bisect_left(run.rows, stop)]:
                    yield row, {name: batch.column(name)[row - start].as_py() for name in batch.schema.names}
                if run.rows[-1] < stop:
                    break  # the rest of the row group is not wanted
                start = stop


class ArrowRows:
    """An Arrow stream, as `datasets` saves to disk: read from its start, batch by batch."""

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
