"""What a source lists against what the graph holds: which items are new, and in which shards they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from graphbuild.contracts import Shard, Unit
from graphbuild.errors import GraphError
from graphbuild.sources.base import Entry, Source
from graphbuild.store.files import Files
from graphbuild.store.parts import read_footer, read_table

SHARD_ITEMS = 1024
MIN_SHARDS = 8


class ChangedItems(GraphError):
    """Files that the graph already holds have other bytes now."""


Known = dict[str, tuple[str, str | None]]
"""key -> (stamp, sha256) of the newest item that has it."""


@dataclass(frozen=True)
class ShardItems:
    """A shard and how many items it has. `entries` are given only for a shard that is not published yet."""

    shard: Shard
    num_items: int
    entries: tuple[Entry, ...] | None = None
    replaces: frozenset[str] = frozenset()


def shard_size_for(num_items: int) -> int:
    """1,024 items, fewer for a small source so that there are at least 8 shards."""
    return max(1, min(SHARD_ITEMS, -(-num_items // MIN_SHARDS)))


def published_shards(files: Files) -> list[ShardItems]:
    """The shards with an items part, by index, from footers alone."""
    shards = []
    for name in files.names("items"):
        metadata, _ = read_footer(files, f"items/{name}")
        unit = Unit.model_validate(json.loads(metadata.metadata[b"graphbuild"])["unit"])
        shards.append(ShardItems(unit.shard, metadata.num_rows))
    return shards


def known_items(files: Files) -> Known:
    """What the published items parts say of each key; a later item of the same key counts."""
    known: Known = {}
    for name in files.names("items"):
        table = read_table(files, f"items/{name}", ["key", "stamp", "sha256"])
        keys, stamps, hashes = (column.to_pylist() for column in table.columns)
        known.update(zip(keys, zip(stamps, hashes, strict=True), strict=True))
    return known


def compare(source: Source, entries: Sequence[Entry], known: Known, accept_changed: bool) -> frozenset[str]:
    """Keys whose bytes changed since they were ingested. Only files with another stamp are read.

    Raises:
        ChangedItems: some changed and `accept_changed` is off; the message names them.
    """
    touched = [e.key for e in entries if e.key in known and known[e.key][0] != e.stamp and known[e.key][1]]
    changed = set()
    for item in source.read(touched) if touched else ():
        if item.original is not None and hashlib.sha256(item.original).hexdigest() != known[item.key][1]:
            changed.add(item.key)
    if changed and not accept_changed:
        shown = ", ".join(sorted(changed)[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ChangedItems(
            f"{len(changed)} known files have other bytes now: {shown}. A graph never changes under its readers: "
            "put the old files back, give the new ones other names, or pass --accept-changed to add them as new items"
        )
    return frozenset(changed)


def new_shards(
    published: Sequence[ShardItems],
    entries: Sequence[Entry],
    changed: frozenset[str],
    known: Known,
    size: int,
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
    return ShardItems(whole, len(entries), tuple(entries), frozenset(e.key for e in entries) & changed)
