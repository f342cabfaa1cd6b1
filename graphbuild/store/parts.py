"""Parquet parts: node parts with byte offsets, items parts, and edges parts, whose publication is the commit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from graphbuild.contracts import (
    EDGES,
    FORMAT,
    ITEMS,
    NODES,
    CommitDocument,
    Document,
    Outcome,
    Parent,
    PartRef,
    Shard,
    Unit,
)
from graphbuild.errors import GraphError, Unreachable, writing
from graphbuild.hashing import canonical_json, checksum
from graphbuild.store.files import MOST_BYTES, Files, file_checksum
from graphbuild.store.page_offsets import value_offsets
from graphbuild.store.workspace import Workspace

ROW_GROUP_ROWS = 128
ROW_GROUP_BYTES = 64 << 20
PART_BYTES = 512 << 20
ROWS_PER_PAGE = 16

_FOOTER_GUESS = 32 << 10
_MOST_FOOTER_BYTES = 64 << 20
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
_WRITER = re.compile(r"parquet-cpp-arrow version \d{2}\.\d+\.\d+")
_EDGE_WORDS = ("kind", "status", "reason", "detail", "part", "format", "parents.list.element.kind")
_TEXT_FORMATS = ("text", "json")
_NODE_LEAVES = ("item_ix", "item_id", "variant", "image.bytes", "image.path", "payload", "width", "height")
_NODE_OPTIONS: dict[str, Any] = {
    # PLAIN and uncompressed, so that a value lies in the file as it is and can be read by offset.
    "compression": {leaf: "none" if leaf in ("image.bytes", "payload") else "zstd" for leaf in _NODE_LEAVES},
    "use_dictionary": False,
    "write_statistics": ["item_ix", "variant"],
    "write_page_checksum": True,
    "write_page_index": True,
    "max_rows_per_page": ROWS_PER_PAGE,
    "data_page_version": "1.0",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a node's bytes."""

    part: str
    offset: int
    nbytes: int


def edges_name(unit: Unit, revision: int) -> str:
    return commit_name(unit.annotator, unit.version, unit.shard.index, revision)


def commit_name(annotator: str, version: str, shard: int, revision: int) -> str:
    return f"{edges_folder(annotator, version)}/shard-{shard:05d}-r{revision:03d}.parquet"


def edges_folder(annotator: str, version: str) -> str:
    return f"edges/annotator={annotator}/version={version}"


def items_name(shard: Shard) -> str:
    """The first items part of a shard; its source commits name later ones."""
    return f"items/{shard.label}.parquet"


_ITEMS_END = re.compile(r"(-r\d{3,}-[0-9a-f]{16})?\.parquet")


def is_items_name(name: str, shard: Shard) -> bool:
    """Whether an items part of that name is of this shard, as first or as corrected later."""
    first = f"items/{shard.label}"
    return name.startswith(first) and _ITEMS_END.fullmatch(name, len(first)) is not None


def nodes_folder(kind: str, version: str) -> str:
    return f"nodes/kind={kind}/version={version}"


# ---- node parts ------------------------------------------------------------------------------------------------


def write_nodes(  # noqa: PLR0917 - what a part is named after, then what it holds
    files: Files, workspace: Workspace, unit: Unit, revision: int, kind: str, rows: Iterable[Outcome]
) -> tuple[list[PartRef], dict[tuple[int, int], Place]]:
    """Publish the stored nodes of one kind, given in (item_ix, variant) order.

    Returns:
        the parts, and (item_ix, variant) -> place of every row.
    """
    parts: list[PartRef] = []
    places: dict[tuple[int, int], Place] = {}
    prefix = f"{nodes_folder(kind, unit.version)}/{unit.shard.label}-r{revision:03d}"
    groups = _row_groups(rows)
    while group := next(groups, None):
        temp = workspace.temp()
        with writing(temp):
            written = _write_part(temp, group, groups)
        offsets = value_offsets(temp, "payload" if written[0].format in _TEXT_FORMATS else "image.bytes")
        digest = _verify_part(files, temp, written, offsets)
        name = f"{prefix}-{len(parts)}-{digest[:16]}.parquet"
        nbytes = os.path.getsize(temp)
        parts.append(PartRef(name=name, kind=kind, rows=len(written), nbytes=nbytes, checksum=digest))
        files.publish_file(temp, name)
        for row, (offset, size) in zip(written, offsets, strict=True):
            places[row.item_ix, row.variant] = Place(name, offset, size)
    return parts, places


def _row_groups(rows: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    group: list[Outcome] = []
    size = 0
    for row in rows:
        nbytes = len(row.data or b"")
        if group and (len(group) == ROW_GROUP_ROWS or size + nbytes > ROW_GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += nbytes
    if group:
        yield group


def _write_part(temp: str, first: list[Outcome], rest: Iterator[list[Outcome]]) -> list[Outcome]:
    """One file of whole row groups, closed at PART_BYTES. The writer is closed only on success: pyarrow would
    otherwise finish a valid file with rows missing."""
    sink = pa.OSFile(temp, "wb")
    writer = pq.ParquetWriter(sink, NODES, **_NODE_OPTIONS)
    written, size = list(first), 0
    group: list[Outcome] | None = first
    while group:
        writer.write_table(_node_table(group), row_group_size=len(group))
        size += sum(len(row.data or b"") for row in group)
        for row in group:
            row.data = None  # so that memory is bounded by a row group, not by a part
        group = next(rest, None) if size < PART_BYTES else None
        written.extend(group or ())
    writer.close()
    sink.close()
    return written


def _node_table(rows: Sequence[Outcome]) -> pa.Table:
    is_text = rows[0].format in _TEXT_FORMATS
    data = pa.array([_as_bytes(row.data) for row in rows], pa.binary())
    images = pa.nulls(len(rows), NODES.field("image").type)
    if not is_text:
        images = pa.StructArray.from_arrays([data, pa.nulls(len(rows), pa.string())], names=["bytes", "path"])
    columns = {
        "item_ix": [row.item_ix for row in rows],
        "item_id": [row.item_id for row in rows],
        "variant": [row.variant for row in rows],
        "image": images,
        "payload": data.cast(pa.string()) if is_text else pa.nulls(len(rows), pa.string()),
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
    }
    return pa.table(columns, schema=NODES)


def _as_bytes(data: bytes | pa.Buffer | None) -> bytes:
    return data.to_pybytes() if isinstance(data, pa.Buffer) else data or b""


def _verify_part(files: Files, temp: str, rows: Sequence[Outcome], offsets: Sequence[tuple[int, int]]) -> str:
    """Reopen what was just written: row count, schema, and every value at its offset. Returns the file's checksum."""
    with open(temp, "rb") as file, pq.ParquetFile(file) as parquet:
        if (
            parquet.metadata.num_rows != len(rows)
            or not parquet.schema_arrow.equals(NODES)
            or len(offsets) != len(rows)
        ):
            raise OSError(f"a part of {len(rows)} rows read back as {parquet.metadata.num_rows}; is the disk failing?")
        for row, (offset, size) in zip(rows, offsets, strict=True):
            file.seek(offset)
            if checksum(file.read(size)) != row.content_hash:
                raise OSError(f"item {row.item_ix} of a new part read back differently; is the disk failing?")
    return file_checksum(temp)


# ---- items and edges parts -------------------------------------------------------------------------------------


def write_items(
    files: Files, workspace: Workspace, unit: Unit, rows: Sequence[Mapping[str, Any]], revision: int | None = None
) -> PartRef:
    """Publish the spine of one shard, or with the source's `revision` a corrected one; its footer records the shard's
    range."""
    schema = ITEMS.with_metadata({"graphbuild": canonical_json({"format": FORMAT, "unit": unit.model_dump()})})
    data = _table_bytes(pa.Table.from_pylist(list(rows), schema=schema), use_dictionary=["source", "licence"])
    digest = checksum(data)
    corrected = f"items/{unit.shard.label}-r{revision or 0:03d}-{digest[:16]}.parquet"
    name = items_name(unit.shard) if revision is None else corrected
    files.publish(name, data, workspace)
    return PartRef(name=name, kind="items", rows=len(rows), nbytes=len(data), checksum=digest)


def edge_table(rows: Sequence[Outcome], places: Mapping[tuple[int, str, int], Place]) -> pa.Table:
    """The edge rows of a unit, in key order."""
    return pa.Table.from_pylist([_edge_row(row, places.get(row.key)) for row in rows], schema=EDGES)


def _edge_row(row: Outcome, place: Place | None) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in EDGES.names if name not in ("part", "offset", "nbytes", "parents")}
    values["parents"] = [parent._asdict() for parent in row.parents]
    if place is not None:
        values |= {"part": place.part, "offset": place.offset, "nbytes": place.nbytes}
    return values


def rows_digest(table: pa.Table) -> str:
    """xxh3_128 of the rows as canonical JSON, one line each: what a commit's footer pins them with."""
    return checksum("\n".join(canonical_json(row) for row in table.to_pylist()).encode())


def write_edges(files: Files, workspace: Workspace, table: pa.Table, document: CommitDocument) -> bool:
    """Publish an edges part: the commit of its unit.

    Returns:
        True if this call made the commit, False if an equal one was there.

    Raises:
        AlreadyPublished: another worker committed this revision with other rows first.
    """
    text = canonical_json(document.model_dump(mode="json"))
    data = edges_bytes(table.replace_schema_metadata({"graphbuild": text}))
    return files.publish(edges_name(document.unit, document.revision), data, workspace)


def _table_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, write_statistics=False, **options)
    data: bytes = sink.getvalue().to_pybytes()
    back = _read(data)
    if back.num_rows != table.num_rows or not back.schema.equals(table.schema):
        raise OSError(f"a table of {table.num_rows} rows did not survive writing; is the memory failing?")
    return data


def edges_bytes(table: pa.Table) -> bytes:
    """The file of an edges part, its document being the metadata of `table`."""
    return _table_bytes(table, use_dictionary=list(_EDGE_WORDS))


def is_as_written(data: bytes, write: Callable[[pa.Table], bytes]) -> bool:
    """Whether a Parquet file has the bytes that `write` makes of what it holds: nothing else pins all of a footer.

    True where another version of Arrow wrote it, whose bytes this one cannot tell.
    """
    writer = pq.read_metadata(pa.BufferReader(data)).created_by
    again = write(_read(data).combine_chunks())
    ours = pq.read_metadata(pa.BufferReader(again)).created_by
    return data == again or (writer != ours and _WRITER.fullmatch(writer) is not None)


def read_items_shard(files: Files, name: str) -> tuple[Shard, int]:
    """Which shard an items part is of, and how many items it has, by its footer alone.

    Raises:
        GraphError: not a readable items part.
    """
    metadata, _ = read_footer(files, name)
    try:
        found = _ItemsFooter.model_validate_json((metadata.metadata or {}).get(b"graphbuild", b""))
    except ValidationError as error:
        raise GraphError(f"{files.path(name)}: not a readable items part ({told(error)})") from error
    if not is_items_name(name, found.unit.shard):
        raise GraphError(f"{files.path(name)}: holds the items of {found.unit.shard.label}")
    return found.unit.shard, metadata.num_rows


class _ItemsFooter(Document):
    format: int
    unit: Unit


def read_footer(files: Files, name: str) -> tuple[pq.FileMetaData, bytes]:
    """A Parquet file's metadata and the bytes of its footer, from one read of its end.

    Raises:
        GraphError: missing, or not a Parquet file.
    """
    try:
        tail = files.tail(name, _FOOTER_GUESS)
        size = int.from_bytes(tail[-8:-4], "little") + 8
        if size > len(tail):
            tail = files.tail(name, min(size, _MOST_FOOTER_BYTES))
        return pq.read_metadata(pa.BufferReader(tail)), tail[-size:]
    except _UNREADABLE as error:
        raise unreadable(files, name, error) from error


def read_table(files: Files, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """An items or edges part, page checksums verified.

    Raises:
        GraphError: the file is missing or damaged.
    """
    try:
        return _read(files.read(name), columns)
    except _UNREADABLE as error:
        raise unreadable(files, name, error) from error


def unreadable(files: Files, name: str, error: Exception) -> GraphError | Unreachable:
    """What to tell of a file that could not be read."""
    if isinstance(error, GraphError | Unreachable):
        return error
    why = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return GraphError(f"{files.path(name)}: {why}; see graphbuild verify")


def told(error: ValidationError) -> str:
    """The first of what is wrong with a document."""
    first = error.errors(include_url=False, include_input=False)[0]
    return "".join(f"{at}: " for at in first["loc"]) + first["msg"]


def _read(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    # In this thread: one of Arrow's own that lets go of Python's bytes while the interpreter ends aborts the process.
    parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    if (nbytes := sum(group.total_byte_size for group in groups)) > MOST_BYTES:
        raise ValueError(f"would take {nbytes} bytes of memory")
    table = parquet.read(columns, use_threads=False)
    return table if columns is None else table.select(columns)


def outcomes(table: pa.Table) -> list[Outcome]:
    """Edge or spool rows as records; `data` is a zero-copy buffer where the table has it."""
    names = [name for name in table.column_names if name not in ("data", "part", "offset", "nbytes")]
    rows = []
    for values in table.select(names).to_pylist():
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        rows.append(Outcome(**{"item_id": "", **values}))
    if "data" in table.column_names:
        values = (value for chunk in table.column("data").chunks for value in _buffers(chunk))
        for row, value in zip(rows, values, strict=True):
            row.data = value
    return rows


def _buffers(values: pa.BinaryArray) -> Iterator[pa.Buffer | None]:
    """Each value as a part of the array's own buffer; its scalars would be copies."""
    _, offsets, data = values.buffers()
    starts = np.frombuffer(offsets, np.int32)[values.offset :].tolist()
    for number, valid in enumerate(values.is_valid().to_pylist()):
        yield data.slice(starts[number], starts[number + 1] - starts[number]) if valid else None
