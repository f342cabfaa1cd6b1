"""Byte offsets of the values of a Parquet column, so that one can be read without the others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from graphbuild.errors import GraphError


def value_offsets(path: str, leaf: str) -> list[tuple[int, int]]:
    """(offset, length) of every value of an uncompressed PLAIN byte-array leaf of a Parquet file, in row order.

    Source: parquet-format, data page v1: a Thrift header, then [u32 size][definition levels], then [u32 size][bytes]
    per value.
    """
    spans: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(c) for c in range(metadata.num_columns))
            chunk = next(column for column in columns if column.path_in_schema == leaf)
            file.seek(chunk.data_page_offset)
            spans.extend(_chunk_spans(file.read(chunk.total_compressed_size), chunk.data_page_offset))
    return spans


def _chunk_spans(chunk: bytes, base: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < len(chunk):
        header, start = _thrift_struct(chunk, position)
        position = end = start + header[3]
        start += 4 + struct.unpack_from("<I", chunk, start)[0]
        while start < end:
            (size,) = struct.unpack_from("<I", chunk, start)
            yield base + start + 4, size
            start += 4 + size


def _thrift_struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """A Thrift compact-protocol struct of integers, booleans, binaries and structs: enough for a page header."""
    fields: dict[int, Any] = {}
    number = 0
    while (byte := data[position]) != 0:
        position += 1
        delta, kind = byte >> 4, byte & 0x0F
        if delta:
            number += delta
        else:
            raw, position = _varint(data, position)
            number = (raw >> 1) ^ -(raw & 1)
        fields[number], position = _thrift_value(data, position, kind)
    return fields, position + 1


def _thrift_value(data: bytes, position: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, position
    if kind in (4, 5, 6):
        raw, position = _varint(data, position)
        return (raw >> 1) ^ -(raw & 1), position
    if kind == 8:
        size, position = _varint(data, position)
        return data[position : position + size], position + size
    if kind == 12:
        return _thrift_struct(data, position)
    raise GraphError(f"a Parquet page header holds an unexpected Thrift type {kind}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
