"""New items: what a source lists and the graph does not hold yet, and the shards they go to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from graphbuild.contracts import Shard
from graphbuild.errors import GraphError
from graphbuild.sources.base import FACTS, Entry, Source, columns_of, facts_digest
from graphbuild.store.exclusions import read_exclusions
from graphbuild.store.files import Files
from graphbuild.store.parts import read_items_shard, read_table

SHARD_ITEMS = 1024
SHARD_BYTES = 4 << 30
"""Of the files of a shard, where the listing knows their sizes: while one is ingested, its bytes lie there twice."""
MIN_SHARDS = 8

_PART = re.compile(r"shard-(\d{5,})(-r\d{3,}-[0-9a-f]{16})?\.parquet")
_CHUNK = 1 << 16
"""Entries looked up at once."""


class ChangedItems(GraphError):
    """Files that the graph already holds have other bytes now."""


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


class KnownItems:
    """The newest item of each key in a graph, 29 bytes an item: hashes stand for keys and stamps."""

    def __init__(self, files: Files, parts: Parts) -> None:
        columns: list[tuple[NDArray[Any], ...]] = [_known([], [], [], 0)]
        for shard, name in sorted(parts.items()):
            keys, stamps, hashes = (c.to_pylist() for c in read_table(files, name, ["key", "stamp", "sha256"]).columns)
            columns.append(_known(keys, stamps, hashes, shard))
        every, stamps, readable, shards = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(every, kind="stable")
        newest = np.append(every[order][1:] != every[order][:-1], True)[: len(order)]
        order = order[newest]
        self.keys, self.stamps, self.readable, self.shards = (
            every[order],
            stamps[order],
            readable[order],
            shards[order],
        )

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The place of each key in `stamps`, `readable` and `shards`; -1 for a key that is not known."""
        if not len(self):
            return np.full(len(keys), -1)
        wanted = _keys(keys)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self) - 1)
        return np.where(self.keys[places] == wanted, places, -1)


def _known(
    keys: Sequence[str], stamps: Sequence[str | None], hashes: Sequence[str | None], shard: int
) -> tuple[NDArray[Any], ...]:
    readable = np.array([value is not None for value in hashes], bool)
    return _keys(keys), np.array(list(map(_hash, stamps)), np.uint64), readable, np.full(len(keys), shard, np.int32)


def _keys(keys: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([xxhash.xxh3_128_digest(key.encode("utf-8", "surrogatepass")) for key in keys], "S16")


def _hash(text: str | None) -> int:
    """Never 0, which stands for nothing."""
    return xxhash.xxh3_64_intdigest((text or "").encode("utf-8", "surrogatepass")) | 1


@dataclass
class Listed:
    """A listing against the items of a graph.

    Attributes:
        count: entries of the listing.
        vanished: known items that are not listed.
        new: entries of items that the graph does not hold, or holds with other bytes.
        replaced: keys of known items that have other bytes now.
        revised: key -> shard of known items of which only something else changed.
    """

    count: int = 0
    vanished: int = 0
    new: list[Entry] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    revised: dict[str, int] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        """A line about items whose facts changed."""
        if self.revised:
            named = ", ".join(map(ascii, sorted(self.revised)[:3]))
            more = f" and {len(self.revised) - 3} more" if len(self.revised) > 3 else ""
            items = "1 known item has" if len(self.revised) == 1 else f"{len(self.revised)} known items have"
            yield f"{items} another caption, licence, group or the like now: {named}{more}"


def compare(files: Files, source: Source, entries: Iterable[Entry], parts: Parts, limit: int | None) -> Listed:
    """Read a listing once, keeping only what is new. Of known items, only files with another stamp are read. If items
    are not sorted by key, replaced ones come last.

    Args:
        limit: entries after so many are counted and not looked at.
    """
    known, listed = KnownItems(files, parts), Listed()
    facts = np.zeros(len(known), np.uint64)
    touched: list[Entry] = []
    met = 0
    for chunk, places in _looked_up(entries, known):
        met += int(np.count_nonzero(places >= 0))
        taken = chunk if limit is None else chunk[: max(0, limit - listed.count)]
        listed.count += len(chunk)
        for entry, place in zip(taken, places.tolist(), strict=False):
            if place < 0:
                listed.new.append(entry)
                continue
            if entry.facts is not None:
                facts[place] = _hash(entry.facts)
            if known.readable[place] and known.stamps[place] != _hash(entry.stamp):
                touched.append(entry)
    listed.vanished = len(known) - met
    _read_again(files, source, touched, known, parts, facts, listed)
    _find_revised(files, known, parts, facts, listed)
    if source.by_key:
        listed.new.sort(key=lambda entry: entry.key)
    return listed


def _looked_up(entries: Iterable[Entry], known: KnownItems) -> Iterator[tuple[list[Entry], NDArray[np.int64]]]:
    rest = iter(entries)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk, known.find([entry.key for entry in chunk])


def _read_again(  # noqa: PLR0917 - a step of `compare`
    files: Files,
    source: Source,
    touched: Sequence[Entry],
    known: KnownItems,
    parts: Parts,
    facts: NDArray[np.uint64],
    listed: Listed,
) -> None:
    """Tell files that have other bytes now from those that were only touched."""
    if not touched:
        return
    places = known.find([entry.key for entry in touched])
    recorded: dict[str, str] = {}
    for shard in sorted(set(known.shards[places].tolist())):
        recorded.update(zip(*read_table(files, parts[shard], ["key", "sha256"]).to_pydict().values(), strict=True))
    items = source.read([entry.key for entry in touched])
    for entry, place, item in zip(touched, places.tolist(), items, strict=True):
        if item.original is None:
            continue
        if hashlib.sha256(item.original).hexdigest() == recorded[entry.key]:
            facts[place] = _hash(facts_digest(columns_of(item)))
        else:
            facts[place] = 0
            listed.replaced.add(entry.key)
            listed.new.append(entry)


def _find_revised(files: Files, known: KnownItems, parts: Parts, facts: NDArray[np.uint64], listed: Listed) -> None:
    """Compare the facts of the listing with those of the newest items; 0 says nothing of an item. Facts of excluded
    items stay as they are: their pictures are not read again, as they may be erased."""
    excluded = read_exclusions(files)[1]
    for shard in np.unique(known.shards[facts != 0]).tolist():
        every = read_table(files, parts[shard], ["key", "item_id", *FACTS]).to_pylist()
        rows = [row for row in every if row["item_id"] not in excluded]
        for row, place in zip(rows, known.find([row["key"] for row in rows]).tolist(), strict=True):
            newest = place >= 0 and known.shards[place] == shard and facts[place] != 0
            if newest and facts[place] != _hash(facts_digest(row)):
                listed.revised[row["key"]] = shard


def with_revised(shards: Sequence[ShardItems], revised: Mapping[str, int]) -> list[ShardItems]:
    """The shards, each with those of its items whose facts changed."""
    by_shard: dict[int, set[str]] = {}
    for key, shard in revised.items():
        by_shard.setdefault(shard, set()).add(key)
    return [replace(item, revised=frozenset(by_shard.get(item.shard.index, ()))) for item in shards]


def refuse_replaced(keys: set[str]) -> None:
    """Refuse files with other bytes than the items they became.

    Raises:
        ChangedItems: there are some; the message names them.
    """
    if keys:
        shown = ", ".join(sorted(keys)[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        raise ChangedItems(
            f"{len(keys)} known files have other bytes now: {shown}. A graph never changes under its readers: "
            "put the old files back, give the new ones other names, or pass --accept-changed to add them as new items"
        )


def new_shards(published: Sequence[ShardItems], listed: Listed, size: int) -> list[ShardItems]:
    """Shards for the new entries, in their order after all old ones: of `size` items, fewer where these have more than
    SHARD_BYTES. Gaps left by a killed run are filled first, so that every item gets the place it would have had."""
    shards, at, index, start = [], 0, 0, 0
    for after in [*sorted((item.shard for item in published), key=lambda shard: shard.index), None]:
        while at < len(listed.new) and (after is None or index < after.index):
            room = _fits(listed.new, at, size)
            if after is not None:  # the last shard of a gap has what is left of it
                room = after.start - start if index == after.index - 1 else min(room, after.start - start)
            if taken := listed.new[at : at + room]:
                shard = Shard(index=index, start=start, stop=start + room)
                shards.append(_with_entries(shard, taken, listed.replaced))
            at, index, start = at + len(taken), index + 1, start + room
        if after is not None:
            index, start = after.index + 1, after.stop
    return shards


def _fits(entries: Sequence[Entry], at: int, size: int) -> int:
    """How many entries from `at` on make a shard."""
    nbytes = 0
    for number, entry in enumerate(islice(entries, at, at + size)):
        nbytes += entry.nbytes
        if number and nbytes > SHARD_BYTES:
            return number
    return size


def _with_entries(shard: Shard, entries: Sequence[Entry], replaced: set[str]) -> ShardItems:
    whole = shard.model_copy(update={"stop": shard.start + len(entries)})
    return ShardItems(whole, len(entries), tuple(entries), frozenset(e.key for e in entries if e.key in replaced))
