"""New items: what a source lists and the graph does not hold yet, and the shards they go to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

from graphbuild.contracts import Shard
from graphbuild.errors import GraphError
from graphbuild.sources.base import FACTS, Entry, Source, columns_of, facts_digest
from graphbuild.store.files import Files
from graphbuild.store.parts import read_items_shard, read_table

SHARD_ITEMS = 1024
MIN_SHARDS = 8

_PART = re.compile(r"shard-(\d{5,})(-r\d{3,}-[0-9a-f]{16})?\.parquet")


class ChangedItems(GraphError):
    """Files that the graph already holds have other bytes now."""


class KnownItem(NamedTuple):
    """What the graph holds of a key: its newest item."""

    stamp: str
    sha256: str | None
    shard: int


Known = dict[str, KnownItem]
Parts = Mapping[int, str]
"""Shard -> its items part."""


@dataclass(frozen=True)
class ShardItems:
    """A shard and how many items it has. `entries` are given only for a shard that is not published yet; `revised` are
    the keys of its items whose facts changed."""

    shard: Shard
    num_items: int
    entries: tuple[Entry, ...] | None = None
    replaces: frozenset[str] = frozenset()
    revised: frozenset[str] = frozenset()


def shard_size_for(num_items: int) -> int:
    """1,024 items, fewer for a small source so that there are at least 8 shards."""
    return max(1, min(SHARD_ITEMS, -(-num_items // MIN_SHARDS)))


def published_shards(files: Files) -> list[ShardItems]:
    """The shards with an items part, by index, from one footer of each."""
    by_shard = {match[1]: match[0] for name in files.names("items") if (match := _PART.fullmatch(name))}
    return [ShardItems(*read_items_shard(files, f"items/{name}")) for name in by_shard.values()]


def known_items(files: Files, parts: Parts) -> Known:
    """The newest item of each key, from the items parts."""
    known: Known = {}
    for shard, name in sorted(parts.items()):
        table = read_table(files, name, ["key", "stamp", "sha256"])
        keys, stamps, hashes = (column.to_pylist() for column in table.columns)
        known.update(zip(keys, map(KnownItem._make, zip(stamps, hashes, repeat(shard), strict=False)), strict=True))
    return known


@dataclass(frozen=True)
class Changes:
    """Keys of known items: those with other bytes now, and those of which only something else changed."""

    replaced: frozenset[str] = frozenset()
    revised: frozenset[str] = frozenset()

    def notes(self) -> Iterator[str]:
        """A line for people about items whose facts changed."""
        if self.revised:
            named = ", ".join(map(ascii, sorted(self.revised)[:3]))
            more = f" and {len(self.revised) - 3} more" if len(self.revised) > 3 else ""
            items = "1 known item has" if len(self.revised) == 1 else f"{len(self.revised)} known items have"
            yield f"{items} another caption, licence, group or the like now: {named}{more}"


def with_revised(shards: Sequence[ShardItems], revised: frozenset[str], known: Known) -> list[ShardItems]:
    """The shards, each with those of its items whose facts changed."""
    by_shard: dict[int, set[str]] = {}
    for key in revised:
        by_shard.setdefault(known[key].shard, set()).add(key)
    return [replace(item, revised=frozenset(by_shard.get(item.shard.index, ()))) for item in shards]


def compare(files: Files, source: Source, entries: Sequence[Entry], known: Known, parts: Parts) -> Changes:
    """What changed of known items since they were ingested. Only files with another stamp are read."""
    listed = [entry for entry in entries if entry.key in known]
    facts = {entry.key: entry.facts for entry in listed if entry.facts is not None}
    touched = [e.key for e in listed if known[e.key].stamp != e.stamp and known[e.key].sha256]
    replaced = set()
    for item in source.read(touched) if touched else ():
        if item.original is None:
            continue
        if hashlib.sha256(item.original).hexdigest() == known[item.key].sha256:
            facts[item.key] = facts_digest(columns_of(item))
        else:
            replaced.add(item.key)
    recorded = _recorded_facts(files, known, parts, facts.keys() - replaced)
    return Changes(frozenset(replaced), frozenset(key for key, digest in recorded.items() if digest != facts[key]))


def refuse_replaced(keys: frozenset[str]) -> None:
    """Raises:
    ChangedItems: there are some; the message names them.
    """
    if keys:
        shown = ", ".join(sorted(keys)[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        raise ChangedItems(
            f"{len(keys)} known files have other bytes now: {shown}. A graph never changes under its readers: "
            "put the old files back, give the new ones other names, or pass --accept-changed to add them as new items"
        )


def _recorded_facts(files: Files, known: Known, parts: Parts, keys: Set[str]) -> dict[str, str]:
    """`facts_digest` of the newest items of these keys."""
    recorded = {}
    for shard in sorted({known[key].shard for key in keys}):
        for row in read_table(files, parts[shard], ["key", *FACTS]).to_pylist():
            if row["key"] in keys and known[row["key"]].shard == shard:
                recorded[row["key"]] = facts_digest(row)
    return recorded


def new_shards(
    published: Sequence[ShardItems],
    entries: Sequence[Entry],
    changed: frozenset[str],
    known: Known,
    size: int,
) -> list[ShardItems]:
    """Shards for the new entries, sorted by key after all old ones. Gaps left by a killed run are filled first, so
    that every item gets the place it would have had."""
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
