"""Where every node of one kind lies: a record a node, memory-mapped, so that a read at random costs no table.

Built once from the edges parts and kept in the user's cache folder under the snapshot's digest. It only finds bytes
faster: whatever it lacks, or holds wrongly, the edges parts answer.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from graphbuild.contracts import EDGES
from graphbuild.errors import MissingNode
from graphbuild.images.node import Node
from graphbuild.kinds.registry import kind_of, parents_of
from graphbuild.store.edges import cache_folder, forget_old
from graphbuild.store.files import Files
from graphbuild.store.parts import Commit, read_table

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
_COLUMNS = ["item_ix", "kind", "variant", "status", "part", "offset", "nbytes", "format", "width", "height",
            "content_hash", "attrs"]  # fmt: skip


class Spot(NamedTuple):
    """One record: where a node lies and how to check it."""

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
    """The places of all stored nodes of one (kind, version).

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

    def attrs(self, spot: Spot) -> bytes:
        """The attributes of a node as stored, JSON; empty for none."""
        return bytes(self._attrs[spot.attrs : spot.attrs + spot.attrs_nbytes])

    def read(self, files: Files, item_ix: int, variant: int, edge: Mapping[str, Any]) -> Node | None:
        """A stored node, its bytes checked; None where the edges part has to say what is wrong."""
        if (spot := self.spot(item_ix, variant)) is None:
            return None
        data = files.pread(self.parts[spot.part], spot.offset, spot.nbytes)
        if xxhash.xxh3_128_digest(data) != spot.hash:
            return None
        attrs = json.loads(self.attrs(spot)) if spot.attrs_nbytes else {}
        form = self.formats[spot.format]
        return Node(item_ix, self.kind, variant, self.version, data, form, self.codec, attrs, edge)


def identity(offsets_of: Callable[[str], Offsets], item_ix: int, kind: str, variant: int, *, seed: int) -> str:
    """A text that changes whenever the picture of a node could: of a computed kind from its parents and `seed`.

    Raises:
        MissingNode: it is not stored.
    """
    if (parents := parents_of(kind)) != (kind,):
        of = "+".join(identity(offsets_of, item_ix, parent, 0, seed=seed) for parent in parents)
        return f"{kind}.{computed_version(kind, seed)}({of})"
    offsets = offsets_of(kind)
    if (spot := offsets.spot(item_ix, variant)) is None:
        raise MissingNode(f"item {item_ix} has no {kind} variant {variant}")
    return f"{kind}.{offsets.version}.{spot.hash.hex()}.{offsets.attrs(spot).hex()}"


def computed_version(kind: str, seed: int) -> str:
    """What a computed kind's picture depends on besides its parents."""
    declared = kind_of(kind)
    return f"{declared.version}.{seed}" if declared.seeded else f"{declared.version}"


def cached_offsets(
    digest: str, files: Files, commits: Sequence[Commit], *, kind: str, version: str, num_items: int
) -> Offsets:
    """The index of (kind, version) at a snapshot: from the cache, else built and kept there if it can be."""
    codec = commits[0].document.lineage.codec[kind] if commits else ""
    folder = cache_folder() / digest / f"offsets-{kind}-{version}"
    if (cached := _load(folder)) is None:
        built = build(files, commits, kind, num_items)
        cached = _load(folder) if _save(folder, built) else built
    table = cached or build(files, commits, kind, num_items)
    return Offsets(kind, version, codec, records=table.records, attrs=table.attrs, **table.names)


class LazyEdge(Mapping[str, Any]):
    """An edge row as a mapping, turned into Python values only when looked at: reads stay cheap."""

    def __init__(self, find: Callable[[], tuple[pa.Table, int]]) -> None:
        self._find = find

    @classmethod
    def of(cls, table: pa.Table, row: int) -> LazyEdge:
        return cls(partial(_same, table, row))

    def __getitem__(self, key: str) -> Any:
        if key not in EDGES.names:
            raise KeyError(key)
        table, row = self._find()
        return table.column(key)[row].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(EDGES.names)

    def __len__(self) -> int:
        return len(EDGES)

    def __repr__(self) -> str:
        return repr(dict(self))


def _same(table: pa.Table, row: int) -> tuple[pa.Table, int]:
    return table, row


class Table(NamedTuple):
    """The arrays of an index and the names they point to."""

    records: NDArray[Any]
    attrs: NDArray[np.uint8]
    names: dict[str, list[str]]


def build(files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> Table:
    """The index from the edges parts of `commits`: each is read once, some columns of it."""
    variants = max((commit.document.variants[kind] for commit in commits), default=1)
    records = np.zeros((num_items, variants), RECORD)
    records["part"] = -1
    parts: dict[str, int] = {}
    formats: dict[str, int] = {}
    attrs = bytearray()
    for commit in commits:
        table = read_table(files, commit.name, _COLUMNS)
        stored = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
        rows = _records(table.filter(stored).combine_chunks(), parts, formats, attrs)
        records[rows.places] = rows.values
    return Table(records, np.frombuffer(bytes(attrs), np.uint8), {"parts": list(parts), "formats": list(formats)})


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


def _load(folder: Path) -> Table | None:
    """An index of the cache, its arrays memory-mapped; None if absent or damaged."""
    try:
        names = json.loads((folder / "names.json").read_bytes())
        records, attrs = (np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in ("records", "attrs"))
    except (OSError, ValueError, EOFError):  # absent or damaged
        return None
    good = records.dtype == RECORD and records.ndim == 2 and attrs.dtype == np.uint8 and "parts" in names
    return Table(records, attrs, names) if good else None


def _save(folder: Path, table: Table) -> bool:
    """Keep an index; the first of several writers wins. False if the cache cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temp:
            inner = Path(temp) / "new"
            inner.mkdir()
            np.save(inner / "records.npy", table.records, allow_pickle=False)
            np.save(inner / "attrs.npy", table.attrs, allow_pickle=False)
            (inner / "names.json").write_text(json.dumps(table.names))
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been loaded
            os.rename(inner, folder)
        forget_old(folder.parent.parent)
    except OSError:
        return folder.is_dir()
    return True
