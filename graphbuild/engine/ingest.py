"""One unit of a source: what it reads becomes items, nodes and their edges."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from graphbuild.contracts import Outcome, Parent, PartRef, Unit
from graphbuild.engine.commit import publish_unit
from graphbuild.engine.records import IngestUnit, UnitReport
from graphbuild.engine.rows import Key, failure_of, previous_rows, scrub, spine_of, unit_document
from graphbuild.engine.spool import CAREFUL_FLUSH_SECONDS, Spool
from graphbuild.errors import GraphError, UnusableImage
from graphbuild.hashing import canonical_json, checksum, item_id_of, seed_of
from graphbuild.images.cleaning import fitted
from graphbuild.images.codecs import Encoded, Pixels, codec_of
from graphbuild.sources.base import Content, Entry, Given, Source, SourceItem, Unusable, columns_of, phash
from graphbuild.store.commits import items_in
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.parts import read_table, write_items
from graphbuild.store.workspace import Workspace

ItemRow = dict[str, Any]
Rows = dict[Key, Outcome]


class ReplanNeeded(GraphError):
    """Another run has published different items for this shard: plan again, with those."""


class Unseen(GraphError):
    """Files that were just listed are missing on this machine."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        super().__init__(f"{', '.join(map(ascii, keys[:3]))}{more}: listed, and not found on this node")
        self.keys = keys


def _is_missing(item: SourceItem | BaseException) -> TypeGuard[SourceItem]:
    """Whether the picture of an item, its first node, is not there."""
    if not isinstance(item, SourceItem):
        return False
    picture = next(iter(item.nodes.values()), None)
    picture = picture[0] if isinstance(picture, list | tuple) and picture else picture
    return isinstance(picture, Unusable) and picture.reason == "missing"


def missing_here(source: Source, keys: Sequence[str]) -> set[str]:
    """Those of `keys` that are missing on this machine, up to the first that is there."""
    missing = set()
    for key, item in zip(keys, source.read(keys), strict=True):
        if not _is_missing(item):
            break
        missing.add(key)
    return missing


class Ingesting:
    """One unit of a source under way: `read`, then `commit`."""

    def __init__(
        self, work: IngestUnit, files: Files, workspace: Workspace, flush_s: float, report: UnitReport
    ) -> None:
        self.work, self.files, self.workspace = work, files, workspace
        self.flush_s = min(flush_s, CAREFUL_FLUSH_SECONDS) if work.deaths else flush_s
        self.report = report
        self.known = published_items(files, work.unit)
        self.revised = {ix for ix, row in self.known.items() if row["key"] in work.revised}
        self.previous = previous_rows(files, work.unit)
        self.kept = _kept(self.previous, work.retry, self.revised)
        done = {item_ix for item_ix, _, _ in self.kept}
        entries = work.entries or [Entry(row["key"], row["stamp"]) for row in self.known.values()]
        todo = {ix: entry for ix, entry in enumerate(entries, work.unit.shard.start) if ix not in done}
        planned = [[ix, e.key, e.stamp, e.facts, e.key in work.replaces] for ix, e in todo.items()]
        self.spool = Spool(files, workspace, work.unit, work.revision, planned)
        spooled = self.spool.load()
        again = {row.item_ix for row in spooled if row.retriable}  # the cause may be gone
        self.rows: Rows = {row.key: row for row in spooled if row.item_ix not in again}
        read = {item_ix for item_ix, _, _ in self.rows}
        self.todo = {item_ix: entry for item_ix, entry in todo.items() if item_ix not in read}
        self._healthy = False

    @property
    def settled(self) -> int:
        """Rows that are done already: kept, or saved by an earlier attempt."""
        return len(self.kept) + len(self.rows) - self.report.computed

    def read(self, progress: Callable[[int, int], None]) -> None:
        """Read and check every item that is not there yet; finished ones go to the spool.

        Args:
            progress: called with (rows finished, of which failed).

        Raises:
            ValueError: the source itself cannot be read any more.
            Unseen: some files that another process listed are missing here; what was read is saved.
        """
        condemned = self.spool.condemned(self.work.died_of)
        deadly = {key[0]: outcome for key, outcome in condemned.items() if key[0] in self.todo}
        for item_ix, outcome in deadly.items():
            self._finish(self._failed(item_ix, outcome["reason"], outcome["detail"]))
        left = {item_ix: entry for item_ix, entry in self.todo.items() if item_ix not in deadly}
        unseen: list[str] = []
        for item_ix, item in self._alone(left) if self.work.deaths else self._items(left):
            if self._is_unseen(item):
                unseen.append(left[item_ix].key)
                continue
            rows = self._settled(item_ix, item)
            self._finish(rows)
            progress(len(rows), sum(row.status == "failed" for row in rows))
        if unseen:
            self.spool.flush()
            raise Unseen(tuple(unseen))

    def _is_unseen(self, item: SourceItem | BaseException) -> bool:
        """Whether a file is missing here that was listed elsewhere, and may be there still."""
        gone = self.work.gone
        return gone is not None and self.work.entries is not None and _is_missing(item) and item.key not in gone

    def commit(self) -> None:
        """Publish items, nodes and edges, unless no outcome changed.

        Raises:
            ReplanNeeded: another run gave this shard other items.
        """
        self._keep_stored()
        read = [json.loads(row.item) for row in self.rows.values() if row.item is not None]
        part = self._publish_items({**self.known, **{row["item_ix"]: row for row in read if self._counts(row)}})
        for row in self.kept.values():
            row.item_id = self.known[row.item_ix]["item_id"]
        every = sorted([*self.kept.values(), *self.rows.values()], key=lambda row: row.key)
        document = unit_document(self.work.producer, self.work.unit, self.work.revision, items=part)
        committed = publish_unit(
            self.files,
            self.workspace,
            rows=every,
            previous=self.previous,
            document=document,
            renewed=self.previous is not None and part != self.previous.commit.document.items,
        )
        self.spool.close()
        self.report.reused = len(self.kept)
        self.report.settle(committed, every)

    def _counts(self, row: ItemRow) -> bool:
        """Whether an item as read now replaces its published row, which is otherwise authoritative: if its facts were
        corrected, or its bytes could not be read before."""
        known = self.known.get(row["item_ix"])
        mended = known is not None and known["sha256"] is None and row["sha256"] is not None
        return known is None or mended or row["item_ix"] in self.revised

    def _keep_stored(self) -> None:
        """An item that was stored, and cannot be read now that its facts changed, keeps its rows and its facts."""
        old = {row.key: row for row in self.previous.outcomes()} if self.previous is not None else {}
        for item_ix in sorted(self.revised):
            keys = [key for key in old if key[0] == item_ix]
            worse = [key for key in keys if old[key].status == "ok" and self.rows[key].status != "ok"]
            if worse:
                self.revised.discard(item_ix)
                self.kept |= {key: old[key] for key in keys}
                self.rows = {key: row for key, row in self.rows.items() if key[0] != item_ix}

    def _publish_items(self, rows: dict[int, ItemRow]) -> PartRef:
        """The items part of the shard: the committed one while it is right, else a corrected one."""
        named = self.previous.commit.document.items if self.previous is not None else None
        if named is not None and rows == self.known:
            return named
        revision = self.work.revision if self.known and rows != self.known else None
        ordered = [rows[item_ix] for item_ix in sorted(rows)]
        try:
            return write_items(self.files, self.workspace, self.work.unit, ordered, revision)
        except AlreadyPublished as error:
            raise ReplanNeeded(f"{self.work.unit}: another run published other items for this shard") from error

    def _items(self, left: dict[int, Entry]) -> Iterator[tuple[int, SourceItem | BaseException]]:
        """The items in order. One that raises is read again by itself; if it raises again, its exception is given."""
        reader: Iterator[SourceItem] | None = None
        waiting = deque(left.items())
        while waiting:
            item_ix, entry = waiting[0]
            try:
                reader = reader or iter(self.work.source.read([entry.key for _, entry in waiting]))
                item: SourceItem | BaseException = next(reader)
            except KeyboardInterrupt:
                raise
            except BaseException:
                reader, item = None, self._one(entry)
            waiting.popleft()
            yield item_ix, item

    def _alone(self, left: dict[int, Entry]) -> Iterator[tuple[int, SourceItem | BaseException]]:
        """The items one by one, each named before it is read: the last worker died."""
        for item_ix, entry in left.items():
            self.spool.alone((item_ix, next(iter(self.work.producer.variants)), 0))
            yield item_ix, self._one(entry)

    def _one(self, entry: Entry) -> SourceItem | BaseException:
        try:
            (item,) = self.work.source.read([entry.key])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not self._healthy:
                self.work.source.entries()  # raises if it is the source that is gone, and not the item that is odd
                self._healthy = True
            return error
        return item

    def _settled(self, item_ix: int, item: SourceItem | BaseException) -> list[Outcome]:
        """The rows of one item; an exception fails them."""
        if isinstance(item, BaseException):
            return self._unreadable(item_ix, item)
        try:
            return self._ingest(item_ix, item)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._unreadable(item_ix, error)

    def _unreadable(self, item_ix: int, error: BaseException) -> list[Outcome]:
        """The rows of an item that raised `error`."""
        return self._failed(item_ix, *failure_of(error), error)

    def _failed(self, item_ix: int, reason: str, detail: str, error: BaseException | None = None) -> list[Outcome]:
        key = self.todo[item_ix].key
        nodes = {kind: [Unusable(reason, detail)] * count for kind, count in self.work.producer.variants.items()}
        return self._ingest(item_ix, SourceItem(key=key, uri=key, original=None, nodes=nodes), error)

    def _finish(self, rows: list[Outcome]) -> None:
        self.rows.update((row.key, row) for row in rows)
        self.report.computed += len(rows)
        self.report.computed_failed += sum(row.retriable for row in rows)
        self.spool.add(rows, self.flush_s)

    def _ingest(self, item_ix: int, item: SourceItem, error: BaseException | None = None) -> list[Outcome]:
        """The outcomes of one item, its items row with the first. A file that is not the one recorded fails."""
        work, known = self.work, self.known.get(item_ix)
        if item.key != self.todo[item_ix].key:
            raise ValueError(f"the source gave {item.key!r} in its place")
        sha256 = None if item.original is None else hashlib.sha256(item.original).hexdigest()
        item_id = item_id_of(work.producer.name, item.key, sha256 if item.key in work.replaces else None)
        nodes = dict(item.nodes)
        if known is not None:
            item_id = known["item_id"]
            if known["sha256"] is not None and known["sha256"] != sha256 and sha256 is not None:
                changed = Unusable("changed", "the file is not the one this item was made from")
                nodes = {kind: [changed] * count for kind, count in work.producer.variants.items()}
        row = {**_item_row(work, item_ix, item_id, item, sha256), "stamp": self.todo[item_ix].stamp}
        outcomes: list[Outcome] = []
        made_from: list[tuple[Outcome, Mapping[str, int]]] = []
        for kind, variant, value in _planned(nodes, work.producer.variants):
            codec, convert = work.producer.lineage.codec[kind], work.source.colours == "srgb"
            encoded, picture = _encode(codec, value, convert=convert)
            if not outcomes and picture is not None:
                row |= {"width": picture.shape[1], "height": picture.shape[0], "phash": phash(picture)}
            outcomes.append(_outcome(work, item_ix, item_id, (kind, variant), encoded))
            if isinstance(value, Given) and value.parents:
                made_from.append((outcomes[-1], value.parents))
        _link(work, outcomes, made_from)
        outcomes[0].item = canonical_json(row)
        for outcome in outcomes:
            if outcome.status == "failed":
                self.report.failed(outcome, item.key, error)
        return outcomes


def published_items(files: Files, unit: Unit) -> dict[int, ItemRow]:
    """item_ix -> items row of a shard whose items part is published; it is authoritative."""
    name = items_in(spine_of(files, unit.shard), unit.shard)
    rows = read_table(files, name).to_pylist() if files.exists(name) else []
    return {row["item_ix"]: row for row in rows}


def _kept(previous: EdgeRows | None, retry: bool, revised: set[int]) -> Rows:
    rows = previous.outcomes() if previous is not None else []
    again = {row.item_ix for row in rows if retry and row.retriable} | revised
    return {row.key: row for row in rows if row.item_ix not in again}


def _planned(
    nodes: Mapping[str, Content | Sequence[Content]], variants: Mapping[str, int]
) -> Iterator[tuple[str, int, Content]]:
    """(kind, variant, content) of every planned node, the picture first. More than was planned is dropped."""
    if unknown := sorted(nodes.keys() - variants.keys()):
        raise ValueError(f"the source gave {unknown}, which is not among its kinds {sorted(variants)}")
    picture = next(iter(variants))
    for kind, count in variants.items():
        given = nodes.get(kind, Unusable("missing") if kind == picture else None)
        contents: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        for variant in range(count):
            yield kind, variant, contents[variant] if variant < len(contents) else None


def _link(work: IngestUnit, outcomes: list[Outcome], made_from: list[tuple[Outcome, Mapping[str, int]]]) -> None:
    """The parents of an item's nodes among themselves, as far as they could be stored."""
    stored = {row.key: row.content_hash for row in outcomes if row.status == "ok" and row.content_hash}
    for row, parents in made_from:
        keys = [(row.item_ix, kind, variant) for kind, variant in sorted(parents.items())]
        found = [Parent(*key, work.producer.version, stored[key]) for key in keys if key in stored]
        row.parents = tuple(found) if row.status == "ok" else ()


def _encode(codec: str, value: Content, *, convert: bool) -> tuple[Encoded | Unusable | None, Pixels | None]:
    """The value ready to store, with its picture: decoding once both checks a file and hashes its looks."""
    attrs: Mapping[str, Any] = {}
    if isinstance(value, Given):
        attrs, value = value.attrs, value.value
    if value is None or isinstance(value, Unusable):
        return value, None
    try:
        if isinstance(value, bytes):
            return fitted(codec, value, attrs, convert=convert)
        encoded = codec_of(codec).encode(value)
        return replace(encoded, attrs={**encoded.attrs, **attrs}), value if isinstance(value, np.ndarray) else None
    except UnusableImage as error:
        return Unusable(error.reason, str(error)), None
    except Exception as error:
        # Bytes that a decoder stumbles over are at fault themselves; whatever else fails may be gone another time.
        reason, detail = failure_of(error)
        return Unusable("undecodable" if reason == "error" and isinstance(value, bytes) else reason, detail), None


def _outcome(
    work: IngestUnit, item_ix: int, item_id: str, name: tuple[str, int], encoded: Encoded | Unusable | None
) -> Outcome:
    row = partial(Outcome, item_ix, item_id, *name, seed=seed_of(work.producer.version, item_id, name[1]))
    if encoded is None:
        return row("skipped", reason="not_given")
    if isinstance(encoded, Unusable):
        return row("failed", reason=encoded.reason, detail=scrub(encoded.detail) or None)
    return row(
        "ok",
        format=encoded.format,
        width=encoded.width,
        height=encoded.height,
        content_hash=checksum(encoded.data),
        attrs=canonical_json(dict(encoded.attrs)) if encoded.attrs else None,
        data=encoded.data,
    )


def _item_row(work: IngestUnit, item_ix: int, item_id: str, item: SourceItem, sha256: str | None) -> ItemRow:
    """An items row but for what the listing (stamp) and the decoded picture (width, height, phash) give."""
    return {
        "item_ix": item_ix,
        "item_id": item_id,
        "source": work.source.name,
        "sha256": sha256,
        **columns_of(item),
    }
