"""What a source lists against what the graph holds: which items are new, and in which shards they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphbuild.contracts import GraphError, Shard, Unit
from graphbuild.sources.base import Entry, Source
from graphbuild.store.parts import read_table
from graphbuild.store.publish import Files

SHARD_ITEMS = 1024
MIN_SHARDS = 8


class ChangedItems(GraphError):
    """Files that the graph already holds have other bytes now."""


@dataclass(frozen=True)
class Known:
    """One items row, as far as a listing can be compared with it."""

    stamp: str
    sha256: str | None


@dataclass(frozen=True)
class ShardItems:
    """A shard and its items: published ones, or new ones that the next run will give it."""

    shard: Shard
    entries: tuple[Entry, ...]
    published: bool
    replaces: frozenset[str] = frozenset()


def shard_size_for(num_items: int) -> int:
    """1,024 items, fewer for a small source so that there are at least 8 shards."""
    return max(1, min(SHARD_ITEMS, -(-num_items // MIN_SHARDS)))


def published_shards(files: Files) -> tuple[list[ShardItems], dict[str, Known]]:
    """The shards with an items part, by index, and the newest row of every key."""
    shards: list[ShardItems] = []
    known: dict[str, Known] = {}
    for name in files.names("items"):
        table = read_table(files, f"items/{name}", ["item_ix", "key", "stamp", "sha256"])
        unit = Unit.model_validate(json.loads(table.schema.metadata[b"graphbuild"])["unit"])
        rows: list[dict[str, Any]] = table.to_pylist()
        known |= {row["key"]: Known(row["stamp"], row["sha256"]) for row in rows}
        shards.append(ShardItems(unit.shard, tuple(Entry(row["key"], row["stamp"]) for row in rows), True))
    return shards, known


def compare(source: Source, entries: Sequence[Entry], known: dict[str, Known], accept_changed: bool) -> frozenset[str]:
    """Keys whose bytes changed since they were ingested. Only files with another stamp are read.

    Raises:
        ChangedItems: some changed and `accept_changed` is off; the message names them.
    """
    touched = [e.key for e in entries if e.key in known and known[e.key].stamp != e.stamp and known[e.key].sha256]
    changed = set()
    for item in source.read(touched) if touched else ():
        if item.original is not None and hashlib.sha256(item.original).hexdigest() != known[item.key].sha256:
            changed.add(item.key)
    if changed and not accept_changed:
        shown = ", ".join(sorted(changed)[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ChangedItems(
            f"{len(changed)} known files have other bytes now: {shown}. A graph never changes under its readers: "
            "put the old files back, give the new ones other names, or pass --accept-changed to add them as new items"
        )
    return frozenset(changed)


def new_shards(
    published: Sequence[ShardItems], entries: Sequence[Entry], changed: frozenset[str], known: dict[str, Known], size: int
) -> list[ShardItems]:
    """Shards for the new entries, sorted by key after all old ones. A gap that a killed run left is filled first, so
    that a rerun gives every item the place it would have had."""
    fresh = sorted((e for e in entries if e.key not in known or e.key in changed), key=lambda entry: entry.key)
    shards = []
    for shard in _gaps([item.shard for item in published], size):
        taken, fresh = fresh[: shard.stop - shard.start], fresh[shard.stop - shard.start :]
        if taken:
            shards.append(_with_entries(shard, taken, changed))
    tail = max((item.shard for item in published), key=lambda shard: shard.index, default=None)
    index, start = (tail.index + 1, tail.stop) if tail else (0, 0)
    for at in range(0, len(fresh), size):
        shard = Shard(index=index + at // size, start=start + at, stop=start + at + size)
        shards.append(_with_entries(shard, fresh[at : at + size], changed))
    return shards


def _gaps(shards: Sequence[Shard], size: int) -> list[Shard]:
    gaps, index, stop = [], 0, 0
    for shard in sorted(shards, key=lambda shard: shard.index):
        for missing in range(index, shard.index):
            end = shard.start if missing == shard.index - 1 else min(stop + size, shard.start)
            gaps.append(Shard(index=missing, start=stop, stop=end))
            stop = end
        index, stop = shard.index + 1, shard.stop
    return gaps


def _with_entries(shard: Shard, entries: Sequence[Entry], changed: frozenset[str]) -> ShardItems:
    whole = shard.model_copy(update={"stop": shard.start + len(entries)})
    return ShardItems(whole, tuple(entries), False, frozenset(e.key for e in entries) & changed)
