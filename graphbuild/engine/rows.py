"""The rows of a unit: planned, still valid, or to be computed. Used by the planner, annotators and sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphbuild.annotators.base import ITEM_FACTS, Annotator, Each, needs_of
from graphbuild.contracts import CommitDocument, CommitRef, Item, Outcome, Parent, PartRef, Shard, Unit
from graphbuild.engine.micro_batches import Stalled, out_of_memory
from graphbuild.engine.records import AnnotateUnit, Producer
from graphbuild.errors import GraphError, UnusableImage
from graphbuild.hashing import seed_of
from graphbuild.store.commits import Commit, items_in, newest_commit, newest_spine, read_commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import Files
from graphbuild.store.heads import read_document
from graphbuild.store.parts import edges_name, read_table

Key = tuple[int, str, int]
"""(item_ix, kind, variant) of one row."""


@dataclass(frozen=True)
class UnitRows:
    """The rows of one unit of an annotator against what is committed. `todo` holds every row to make, and those that
    the state of their parents settles: these are not `ok`. `corrected` are items whose facts, as far as the annotator
    looks at them, changed since the last revision."""

    items: list[Item]
    parents: dict[str, EdgeRows]
    refs: list[CommitRef]
    items_part: str
    corrected: set[int]
    previous: EdgeRows | None
    kept: dict[Key, Outcome]
    todo: dict[Key, Outcome]


def rows_of(work: AnnotateUnit, files: Files) -> UnitRows:
    """Compare the rows a unit plans with its last revision.

    Raises:
        GraphError: a parent is not committed.
    """
    parents, spine = parent_rows(files, work.producer, work.unit), spine_of(files, work.unit.shard)
    refs = [rows.commit.ref for rows in parents.values()]
    if work.annotator.item_facts and spine is not None:
        refs.append(spine.ref)
    previous = previous_rows(files, work.unit)
    facts = work.annotator.item_facts
    part = items_in(spine, work.unit.shard)
    items = read_items(files, part, facts)
    corrected = _corrected(items, read_items(files, items_behind(files, previous.commit), facts)) if previous else set()
    planned = list(_planned(work.annotator, work.producer, items, parents))
    still = [row for row in previous.outcomes() if row.item_ix not in corrected] if previous else []
    kept = kept_rows(still, planned, work.retry)
    todo = {row.key: row for row in planned if row.key not in kept}
    return UnitRows(items, parents, refs, part, corrected, previous, kept, todo)


def _corrected(now: Sequence[Item], then: Sequence[Item]) -> set[int]:
    old = {item.item_ix: item for item in then}
    return {item.item_ix for item in now if old.get(item.item_ix, item) != item}


def _planned(
    annotator: Annotator, producer: Producer, items: Sequence[Item], parents: Mapping[str, EdgeRows]
) -> Iterator[Outcome]:
    """Every planned row: `ok` (to be made), or already settled by the state of its parents."""
    for item in items:
        for variant in range(max(producer.variants.values())):
            bound, reason = _bind(annotator, item, variant, parents)
            seed = seed_of(producer.version, item.item_id, variant)
            for kind in producer.variants:
                yield Outcome(
                    item_ix=item.item_ix,
                    item_id=item.item_id,
                    kind=kind,
                    variant=variant,
                    status="skipped" if reason else "ok",
                    reason=reason,
                    parents=bound,
                    seed=seed,
                )


def _bind(
    annotator: Annotator, item: Item, variant: int, parents: Mapping[str, EdgeRows]
) -> tuple[tuple[Parent, ...], str | None]:
    """The parents of one request, and why it cannot be made if one of them is missing."""
    bound, reason = [], None
    for need in needs_of(annotator).values():
        kind, of_variant = (need.kind, variant) if isinstance(need, Each) else (need, 0)
        rows = parents[kind]
        row = rows.find(item.item_ix, kind, of_variant)
        status = "missing" if row is None else rows.value(row, "status")
        if status != "ok":
            reason = "parent_failed" if "parent_failed" in (reason, f"parent_{status}") else "parent_skipped"
        hashed = None if row is None else rows.value(row, "content_hash")
        version = rows.commit.document.unit.version
        bound.append(Parent(item.item_ix, kind, of_variant, version, hashed))  # type: ignore[arg-type]
    return tuple(bound), reason


def parent_rows(files: Files, producer: Producer, unit: Unit) -> dict[str, EdgeRows]:
    """The newest edge rows of every needed kind in this shard."""
    rows = {}
    for kind, live in producer.parents.items():
        parent = Unit(annotator=live.annotator, version=live.version, shard=unit.shard)
        found = previous_rows(files, parent)
        if found is None:
            raise GraphError(f"{unit}: its parent {kind} is not committed")
        rows[kind] = found
    return rows


def previous_rows(files: Files, unit: Unit) -> EdgeRows | None:
    """The edge rows of a unit's newest revision, if it has one."""
    commit = newest_commit(files, unit)
    return None if commit is None else EdgeRows(files, commit)


def spine_of(files: Files, shard: Shard) -> Commit | None:
    """The source commit that names the items of a shard; None before the first."""
    folder = f"source:{read_document(files).source.name}"
    versions = [name.removeprefix("version=") for name in files.names(f"edges/annotator={folder}")]
    units = [Unit(annotator=folder, version=version, shard=shard) for version in versions]
    return newest_spine([commit for unit in units if (commit := newest_commit(files, unit))])


def items_behind(files: Files, commit: Commit) -> str:
    """The items part that an annotator's commit was made from; the shard's first if it names no source."""
    shard = commit.document.unit.shard
    for ref in commit.document.parents:
        if ref.annotator.startswith("source:"):
            unit = Unit(annotator=ref.annotator, version=ref.version, shard=shard)
            return items_in(read_commit(files, edges_name(unit, ref.revision)), shard)
    return items_in(None, shard)


def read_items(files: Files, part: str, facts: Sequence[str]) -> list[Item]:
    """The items of a part as an annotator sees them: their names, and the facts it reads."""
    blank = dict.fromkeys(set(ITEM_FACTS) - set(facts))
    return [Item(**{**row, **blank}) for row in read_table(files, part, list(Item._fields)).to_pylist()]


def kept_rows(previous: Sequence[Outcome], planned: Sequence[Outcome], retry: bool) -> dict[Key, Outcome]:
    """Rows of the last revision that still hold: same parents with the same hashes, and no retry asked for."""
    wanted = {row.key: row for row in planned}
    kept = {}
    for row in previous:
        if row.key in wanted and row.parents == wanted[row.key].parents and not (retry and row.retriable):
            row.item_id = wanted[row.key].item_id
            kept[row.key] = row
    return kept


def unit_document(
    producer: Producer, unit: Unit, revision: int, parents: Iterable[CommitRef] = (), items: PartRef | None = None
) -> CommitDocument:
    """The commit document of a unit, but for what depends on its rows."""
    return CommitDocument(
        unit=unit,
        revision=revision,
        use=producer.use,
        config=producer.config,
        lineage=producer.lineage,
        variants=producer.variants,
        parents=sorted(set(parents), key=lambda ref: (ref.annotator, ref.version)),
        items=items,
        parts=[],
        counts={},
        reasons={},
        rows_digest="",
    )


MOST_TEXT = 10_000
"""Longest part of a message that is scrubbed, in characters."""

_SCRUB = (
    (re.compile(r"\b\w+://\S+"), "<url>"),
    (re.compile(r"0x[0-9a-fA-F]+"), "<address>"),
    (re.compile(r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b"), "<host>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?\S*|\b\d\d:\d\d:\d\d\b"), "<time>"),
    (re.compile(r"(?<![\w.])~?(/[^\s'\":,;)]+)+|\b[A-Za-z]:\\\S+"), "<path>"),
)


def failure_of(error: BaseException) -> tuple[str, str]:
    """Reason and detail of a row that failed with an exception."""
    if isinstance(error, UnusableImage) and isinstance(error.reason, str):
        return error.reason, scrub(str(error))
    if isinstance(error, Stalled):
        return "timeout", scrub(str(error))
    return "out_of_memory" if out_of_memory(error) else "error", scrub(told(error))


def told(error: BaseException) -> str:
    """An exception's class and message, even if its `__str__` raises."""
    try:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception as another:
        return f"{type(error).__name__}, whose message raises {type(another).__name__}"


def scrub(message: str) -> str:
    """An error message without paths, addresses, times and hosts, one line of at most 300 characters: equal
    failures give equal bytes."""
    message = message[:MOST_TEXT]
    for pattern, word in _SCRUB:
        message = pattern.sub(word, message)
    return " ".join(message.split())[:300]
