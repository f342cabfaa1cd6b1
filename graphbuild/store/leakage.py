"""Leakage groups: items that show the same thing, and the side of a split that each group is on.

Two items are linked if they share the source's `group` or the bytes' sha256, if their perceptual hashes differ in at
most `NEAR` bits, or if a node of one was made from a node of the other. A leakage group is a connected component.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.store.cache import cached_array
from graphbuild.store.graph import Graph

NEAR = 3
"""Hamming distance up to which two 64-bit perceptual hashes are the same picture (a recompressed or resized copy)."""

TRAIN, VALIDATION, BRIDGE = 0, 1, 2
"""Sides of a split. A bridge links groups of both sides, and is on neither."""

Pairs = NDArray[np.int64]
"""Linked items, int64 N x 2."""

_BANDS = NEAR + 1
_BAND_BITS = 64 // _BANDS


def item_links(graph: Graph) -> Pairs:
    """Links from the items table: equal group, equal sha256, near-equal perceptual hash. Cached by snapshot."""
    return cached_array(graph.digest, "links", np.int64, (None, 2), lambda: links_of(graph.items()))


def links_of(items: pa.Table) -> Pairs:
    """`item_links` of a table with the columns `item_ix`, `group`, `sha256` and `phash`."""
    item_ix = items.column("item_ix").to_numpy()
    found = [_equal(item_ix, items.column(name)) for name in ("group", "sha256")]
    known = pc.is_valid(items.column("phash")).to_numpy(zero_copy_only=False)
    return np.concatenate([*found, _near(item_ix[known], items.column("phash").drop_null().to_numpy())])


def components(num_items: int, pairs: Pairs) -> NDArray[np.int64]:
    """The smallest item of each item's leakage group."""
    # Here, since a viewer or a command that only looks needs no groups, and this takes a sixth of its start.
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (num_items, num_items))
    labels = connected_components(links, directed=False)[1]
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return first[group]


def sides(num_items: int, pairs: Pairs, items: pa.Table, validation: float) -> NDArray[np.int8]:
    """The side of every item: a hash of the first item of its leakage group decides.

    Items are assigned in the order in which they were ingested, so that later ones never move earlier ones: an item
    that links groups of both sides is a `BRIDGE`, and is on neither.
    """
    groups = components(num_items, pairs)
    first = _first_linked(num_items, pairs)
    item_ix = items.column("item_ix").to_numpy()
    is_root = first[item_ix] == item_ix
    roots = item_ix[is_root]
    side = np.zeros(num_items, np.int8)
    side[roots] = [_side(item_id, validation) for item_id in items.column("item_id").filter(is_root).to_pylist()]
    lowest, highest = np.full((2, num_items), TRAIN, np.int8)
    lowest[groups[roots]] = VALIDATION
    np.minimum.at(lowest, groups[roots], side[roots])
    np.maximum.at(highest, groups[roots], side[roots])
    mixed = (lowest != highest)[groups]
    side = np.where(mixed, side, highest[groups])
    _settle(side, mixed, first, pairs)
    return side


def _settle(side: NDArray[np.int8], mixed: NDArray[np.bool_], first: NDArray[np.int64], pairs: Pairs) -> None:
    """Sides inside groups whose parts began on two sides, item by item: few, so a loop will do."""
    earlier: dict[int, list[int]] = {item: [] for item in np.flatnonzero(mixed).tolist()}
    for one, other in np.sort(pairs[mixed[pairs[:, 0]]], axis=1).tolist():
        earlier[other].append(one)
    for item, linked in earlier.items():
        if first[item] != item:
            met = {int(side[other]) for other in linked} - {BRIDGE}
            side[item] = met.pop() if len(met) == 1 else BRIDGE


def _side(item_id: str, validation: float) -> int:
    drawn = int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8, person=b"split").digest(), "little")
    return VALIDATION if drawn < validation * 2.0**64 else TRAIN


def _first_linked(num_items: int, pairs: Pairs) -> NDArray[np.int64]:
    """The smallest item that each item is linked to, or itself."""
    first = np.arange(num_items, dtype=np.int64)
    np.minimum.at(first, pairs.max(axis=1), pairs.min(axis=1))
    return first


def _equal(item_ix: NDArray[np.int64], values: pa.ChunkedArray) -> Pairs:
    """Every item with a value, linked to the first one with that value."""
    known = pc.is_valid(values).to_numpy(zero_copy_only=False)
    codes = pc.rank(values.drop_null(), tiebreaker="min").to_numpy() if known.any() else np.empty(0, np.int64)
    return _to_first(item_ix[known], codes)


def _to_first(items: NDArray[np.int64], codes: NDArray[np.generic]) -> Pairs:
    _, first, where = np.unique(codes, return_index=True, return_inverse=True)
    pairs = np.stack([items[first[where]], items], axis=1)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]])


def _near(items: NDArray[np.int64], hashes: NDArray[np.int64]) -> Pairs:
    """Pairs whose hashes differ in at most `NEAR` bits: such hashes agree in one of `NEAR` + 1 bands at least."""
    values, first = np.unique(hashes.view(np.uint64), return_index=True)
    found = [_to_first(items, hashes)]
    for band in range(_BANDS):
        part = (values >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)
        order = np.argsort(part, kind="stable")
        found += [items[first[order[pair]]] for pair in _near_neighbours(part[order], values[order])]
    return np.concatenate(found)


def _near_neighbours(part: NDArray[np.uint64], values: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions with equal parts and near values; `part` is sorted. One round per distance in the order."""
    at, step = np.arange(len(part)), 0
    while len(at):
        step += 1
        at = at[at + step < len(part)]
        at = at[part[at] == part[at + step]]
        near = at[np.bitwise_count(values[at] ^ values[at + step]) <= NEAR]
        yield np.stack([near, near + step], axis=1)
