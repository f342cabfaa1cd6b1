"""One unit of a source: what it reads becomes items, image nodes and their edges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from graphbuild.contracts import Outcome, PartRef, Unit
from graphbuild.engine.commit import publish_unit
from graphbuild.engine.records import IngestUnit, UnitReport
from graphbuild.engine.rows import previous_rows, scrub, unit_document
from graphbuild.errors import GraphError, UnusableImage
from graphbuild.hashing import canonical_json, checksum, item_id_of, seed_of
from graphbuild.images.codecs import CODECS, Encoded, Pixels, check_image
from graphbuild.sources.base import Entry, SourceItem, Unusable, phash
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import AlreadyPublished, Files, Workspace
from graphbuild.store.parts import items_name, read_table, write_items

ItemRow = dict[str, Any]
Rows = dict[tuple[int, str, int], Outcome]


class ReplanNeeded(GraphError):
    """Another run published this shard's items first, and they differ: its items part counts."""


def run_source_unit(
    work: IngestUnit, files: Files, workspace: Workspace, progress: Callable[[int, int], None]
) -> UnitReport:
    """Read, check and store the items of one shard, then commit them.

    Raises:
        ReplanNeeded: another run gave this shard other items.
    """
    known = published_items(files, work.unit)
    previous = previous_rows(files, work.unit)
    kept = _kept(previous, work.retry)
    done = {item_ix for item_ix, _, _ in kept}
    entries = work.entries or [Entry(row["key"], row["stamp"]) for row in known.values()]
    todo = {ix: entry for ix, entry in enumerate(entries, work.unit.shard.start) if ix not in done}
    items: list[ItemRow] = []
    rows: Rows = {}
    for item_ix, item in zip(todo, work.source.read([entry.key for entry in todo.values()]), strict=True):
        row, outcomes = _ingest(work, item_ix, item, known.get(item_ix))
        items.append({**row, "stamp": todo[item_ix].stamp})
        rows |= {outcome.key: outcome for outcome in outcomes}
        progress(len(outcomes), sum(outcome.status == "failed" for outcome in outcomes))
    part = _publish_items(files, workspace, work.unit, list(known.values()) or items)
    every = sorted([*kept.values(), *rows.values()], key=lambda row: row.key)
    report = UnitReport(unit=work.unit, revision=work.revision, computed=len(rows), reused=len(kept))
    report.computed_failed = sum(row.retriable for row in rows.values())
    document = unit_document(work.producer, work.unit, work.revision, items=part)
    report.settle(publish_unit(files, workspace, rows=every, previous=previous, document=document), every)
    return report


def published_items(files: Files, unit: Unit) -> dict[int, ItemRow]:
    """item_ix -> items row of a shard whose items part is published; it is authoritative."""
    name = items_name(unit.shard)
    rows = read_table(files, name).to_pylist() if files.exists(name) else []
    return {row["item_ix"]: row for row in rows}


def _kept(previous: EdgeRows | None, retry: bool) -> Rows:
    rows = previous.outcomes() if previous is not None else []
    again = {row.item_ix for row in rows if retry and row.retriable}
    return {row.key: row for row in rows if row.item_ix not in again}


def _ingest(work: IngestUnit, item_ix: int, item: SourceItem, known: ItemRow | None) -> tuple[ItemRow, list[Outcome]]:
    """The items row and the outcomes of one item. A file that is not the one recorded in `known` fails."""
    sha256 = None if item.original is None else hashlib.sha256(item.original).hexdigest()
    name = work.producer.name
    item_id = item_id_of(name, item.key, sha256 if item.key in work.replaces else None)
    nodes = dict(item.nodes)
    if known is not None:
        item_id = known["item_id"]
        if known["sha256"] is not None and known["sha256"] != sha256 and sha256 is not None:
            nodes = dict.fromkeys(nodes, Unusable("changed", "the file is not the one this item was made from"))
    row = _item_row(work, item_ix, item_id, item, sha256)
    outcomes = []
    for kind in work.producer.variants:
        value, convert = nodes.get(kind, Unusable("missing")), work.source.colours == "srgb"
        encoded, picture = _encode(work.producer.lineage.codec[kind], value, convert=convert)
        outcomes.append(_outcome(work, item_ix, item_id, kind, encoded))
        if kind == work.source.makes[0] and picture is not None:
            row |= {"width": picture.shape[1], "height": picture.shape[0], "phash": phash(picture)}
    return row, outcomes


def _encode(codec: str, value: bytes | Pixels | Unusable, *, convert: bool) -> tuple[Encoded | Unusable, Pixels | None]:
    """The value ready to store, with its picture: decoding once both checks a file and hashes its looks."""
    if isinstance(value, Unusable):
        return value, None
    try:
        if isinstance(value, bytes):
            return check_image(value, grey=True, convert=convert)
        return CODECS[codec].encode(value), value
    except UnusableImage as error:
        return Unusable(error.reason, str(error)), None


def _outcome(work: IngestUnit, item_ix: int, item_id: str, kind: str, encoded: Encoded | Unusable) -> Outcome:
    seed = seed_of(work.producer.version, item_id, 0)
    base = Outcome(item_ix=item_ix, item_id=item_id, kind=kind, variant=0, status="failed", seed=seed)
    if isinstance(encoded, Unusable):
        base.reason, base.detail = encoded.reason, scrub(encoded.detail) or None
        return base
    base.status, base.data, base.content_hash = "ok", encoded.data, checksum(encoded.data)
    base.format, base.width, base.height = encoded.format, encoded.width, encoded.height
    base.attrs = canonical_json(dict(encoded.attrs)) if encoded.attrs else None
    return base


def _item_row(work: IngestUnit, item_ix: int, item_id: str, item: SourceItem, sha256: str | None) -> ItemRow:
    """An items row but for what the listing (stamp) and the decoded picture (width, height, phash) give."""
    copied = ("key", "uri", "licence", "attribution", "split", "group")
    words = ("caption", "reference_caption", "subject", "category")
    return {
        "item_ix": item_ix,
        "item_id": item_id,
        "source": work.source.name,
        "sha256": sha256,
        "meta": canonical_json(dict(item.meta)) if item.meta else None,
        **{name: getattr(item, name) for name in copied + words},
    }


def _publish_items(files: Files, workspace: Workspace, unit: Unit, rows: list[ItemRow]) -> PartRef:
    try:
        return write_items(files, workspace, unit, rows)
    except AlreadyPublished as error:
        raise ReplanNeeded(f"{unit}: another run published other items for this shard") from error
