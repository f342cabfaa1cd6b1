"""Byte offsets of all nodes of one kind: a memory-mapped array with one record per node, for random access.

Built once from the edges parts and cached by snapshot digest. It only saves time: where a record is missing or wrong,
the edges part is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from graphbuild.images.node import Node
from graphbuild.store.cache import Arrays, Form, cached
from graphbuild.store.commits import Commit
from graphbuild.store.edges import unit_rows
from graphbuild.store.files import Files, Span

RECORD = np.dtype(
    [
        ("part", "<i4"),  # position in `parts`; -1: not stored
        ("format", "<i4"),  # position in `formats`
        ("offset", "<i8"),
        ("attrs", "<i8"),  # where the attributes start among all of them
        ("nbytes", "<i4"),
        ("attrs_nbytes", "<i4"),
        ("width", "<i4"),  # 0 for text
        ("height", "<i4"),
        ("hash", "V16"),  # xxh3_128 of the stored bytes
    ]
)
_RECORD = struct.Struct("<iiqqiiii16s")
_BYTES: Form = (np.uint8, (None,))
_FORMS: dict[str, Form] = {"records": (RECORD, (None, None)), "attrs": _BYTES, "names": _BYTES}
_COLUMNS = ["item_ix", "kind", "variant", "status", "part", "offset", "nbytes", "format", "width", "height",
            "content_hash", "attrs"]  # fmt: skip


class Spot(NamedTuple):
    """One record: location, format and hash of a node's bytes."""

    part: int
    format: int
    offset: int
    attrs: int
    nbytes: int
    attrs_nbytes: int
    width: int
    height: int
    hash: bytes


class Offsets:
    """Locations of all stored nodes of one (kind, version).

    Args:
        kind: their kind; `version`: the lineage key of their producer; `codec`: how their bytes hold the value.
        records: items x variants of `RECORD`.
        attrs: uint8, the attributes of all nodes one after the other, JSON.
        parts: graph-relative names of node parts; `formats`: names of formats.
    """

    def __init__(
        self, kind: str, version: str, codec: str, *, records: NDArray[Any], attrs: NDArray[np.uint8],
        parts: Sequence[str], formats: Sequence[str],
    ) -> None:  # fmt: skip
        self.kind, self.version, self.codec = kind, version, codec
        self.num_items, self.num_variants = records.shape
        self.parts, self.formats = list(parts), list(formats)
        self._records: memoryview = records.reshape(-1).view(np.uint8).data
        self._attrs: memoryview = attrs.data

    def spot(self, item_ix: int, variant: int) -> Spot | None:
        """The record of a stored node; None if it is not stored."""
        if not (0 <= item_ix < self.num_items and 0 <= variant < self.num_variants):
            return None
        at = (item_ix * self.num_variants + variant) * _RECORD.size
        found = Spot._make(_RECORD.unpack_from(self._records, at))
        return None if found.part < 0 else found

    def span(self, item_ix: int, variant: int) -> Span | None:
        """Part, offset and length of a stored node; None if it is not stored."""
        spot = self.spot(item_ix, variant)
        return None if spot is None else (self.parts[spot.part], spot.offset, spot.nbytes)

    def attrs(self, spot: Spot) -> bytes:
        """The attributes of a node as stored, JSON; empty for none."""
        return bytes(self._attrs[spot.attrs : spot.attrs + spot.attrs_nbytes])

    def read(self, files: Files, item_ix: int, variant: int, edge: Mapping[str, Any]) -> Node | None:
        """A stored node, its bytes checked; None where the edges part has to say what is wrong."""
        if (spot := self.spot(item_ix, variant)) is None:
            return None
        try:
            data = files.pread(self.parts[spot.part], spot.offset, spot.nbytes)
            attrs = json.loads(self.attrs(spot)) if spot.attrs_nbytes else {}
            form = self.formats[spot.format]
        except (OSError, IndexError, ValueError, RecursionError):
            return None
        if xxhash.xxh3_128_digest(data) != spot.hash:
            return None
        return Node(item_ix, self.kind, variant, self.version, data, form, self.codec, attrs, edge)


def cached_offsets(
    digest: str, files: Files, commits: Sequence[Commit], *, kind: str, version: str, num_items: int
) -> Offsets:
    """The index of (kind, version) at a snapshot: from the cache, else built and kept there if it can be."""
    codec = commits[0].document.lineage.codec[kind] if commits else ""
    compute = partial(build, files, commits, kind, num_items)
    found = cached(digest, f"offsets-{kind}-{version}", _FORMS, compute)
    try:
        names = json.loads(found["names"].tobytes())
    except ValueError:
        found = compute()
        names = json.loads(found["names"].tobytes())
    return Offsets(kind, version, codec, records=found["records"], attrs=found["attrs"], **names)


def build(files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> Arrays:
    """The index from the edges parts of `commits`: each is read once, some columns of it."""
    variants = max((commit.document.variants[kind] for commit in commits), default=1)
    records = np.zeros((num_items, variants), RECORD)
    records["part"] = -1
    parts: dict[str, int] = {}
    formats: dict[str, int] = {}
    attrs = bytearray()
    for commit in commits:
        table = unit_rows(files, commit, _COLUMNS)
        stored = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
        rows = _records(table.filter(stored).combine_chunks(), parts, formats, attrs)
        records[rows.places] = rows.values
    names = json.dumps({"parts": list(parts), "formats": list(formats)}).encode()
    return {"records": records, "attrs": np.frombuffer(attrs, np.uint8), "names": np.frombuffer(names, np.uint8)}


class _Rows(NamedTuple):
    places: tuple[NDArray[Any], NDArray[Any]]
    values: NDArray[Any]


def _records(table: pa.Table, parts: dict[str, int], formats: dict[str, int], attrs: bytearray) -> _Rows:
    values = np.zeros(table.num_rows, RECORD)
    values["part"] = _numbered(table.column("part"), parts)
    values["format"] = _numbered(table.column("format"), formats)
    for name in ("offset", "nbytes", "width", "height"):
        values[name] = table.column(name).fill_null(0).to_numpy()
    values["hash"] = np.frombuffer(bytes.fromhex("".join(table.column("content_hash").to_pylist())), "V16")
    values["attrs"], values["attrs_nbytes"] = _appended(table.column("attrs").to_pylist(), attrs)
    return _Rows((table.column("item_ix").to_numpy(), table.column("variant").to_numpy()), values)


def _numbered(column: pa.ChunkedArray, numbers: dict[str, int]) -> list[int]:
    """The number of each name; a new name gets the next one."""
    return [numbers.setdefault(name, len(numbers)) for name in column.to_pylist()]


def _appended(texts: Sequence[str | None], blob: bytearray) -> tuple[list[int], list[int]]:
    """Where each text starts in `blob` and how long it is; equal texts of one part are kept once."""
    spans: dict[str | None, tuple[int, int]] = {None: (0, 0)}
    for text in texts:
        if text not in spans and text is not None:
            data = text.encode()
            spans[text] = (len(blob), len(data))
            blob += data
    return [spans[text][0] for text in texts], [spans[text][1] for text in texts]
