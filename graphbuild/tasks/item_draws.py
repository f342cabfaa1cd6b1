"""Draws of items: distinct ones of different leakage groups, or those of one subject or scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphbuild.tasks.counter_rng import Bits, below
from graphbuild.tasks.variants import Flags, Items

LENGTH = (1 << 31) - 1
"""The most numbers that the items of a pool have together."""


class Pool:
    """The items that serve a path, those of one leakage group next to each other.

    Args:
        weight: of each item of the graph, positive for those that serve, together below 2^31; None for all alike.

    Attributes:
        size: how many items.
        groups: how many leakage groups; no walk has two items of one.
    """

    def __init__(self, served: Flags, group: Items, weight: Items | None = None) -> None:
        items = np.flatnonzero(served)
        labels = group[items]
        order = np.argsort(labels, kind="stable") if len(items) and (labels[1:] < labels[:-1]).any() else None
        if order is not None:
            items, labels = items[order], labels[order]
        begins = np.flatnonzero(np.append(True, labels[1:] != labels[:-1])) if len(items) else items
        self.size, self.groups = len(items), len(begins)
        self._items = None if self.size == len(served) and order is None else items
        self._ends = None if weight is None else np.cumsum(weight[items])
        """How many of all numbers that can be drawn are of an item or one before it."""
        self._total = self.size if self._ends is None else int(self._ends[-1]) if len(items) else 0
        self._groups: Items | None = None
        if self.groups != self.size or weight is not None:
            ends = np.arange(1, self.size + 1) if self._ends is None else self._ends
            bounds = np.append(np.append(0, ends)[begins], self._total)
            sizes = np.diff(np.append(begins, self.size))
            self._groups = np.repeat((bounds[:-1] << 31) + np.diff(bounds), sizes)

    def draw(self, bits: Bits, counts: Items) -> Items:
        """As many items of different leakage groups as the largest of `counts`, in the order drawn: each by its weight
        among what the earlier leave.

        No rejection: a number below what is left is moved past the groups already taken.
        """
        count = int(counts.max())
        left = np.full(len(bits), self._total, np.int64)
        drawn: list[Items] = []
        taken: list[Items] = []  # groups, from the first position to the last: `begin << 31 | length`
        for number in range(count):
            at = below(bits[:, number], left)
            for group in taken:
                at += (at >= group >> 31) * (group & LENGTH)
            item = at if self._ends is None else self._ends.searchsorted(at, "right")
            drawn.append(item)
            if number + 1 == count:
                break
            latest = (at << 31) + 1 if self._groups is None else self._groups[item]
            left = left - (latest & LENGTH)
            for place, group in enumerate(taken):
                taken[place], latest = np.minimum(group, latest), np.maximum(group, latest)
            taken.append(latest)
        rows = np.array(drawn).T
        return rows if self._items is None else self._items[rows]

    def checked(self, items: Sequence[int]) -> Items:
        """Given items as an array, checked.

        Raises:
            ValueError: one is named twice, or does not serve the path.
        """
        known = range(self.size) if self._items is None else set(self._items.tolist())
        if unfit := [item for item in items if item not in known]:
            raise ValueError(f"items: {unfit} do not serve this path; {self.size} items do")
        if not items or len(set(items)) < len(items):
            raise ValueError(f"items: {list(items)}; allowed: different items, at least one")
        return np.array(items, np.int64)


class Scenes:
    """The items that serve a path whose rows are of one group, such as pictures of one subject.

    Args:
        group: a number for each item of the graph.
        fewest: items of smaller groups are left out.

    Attributes:
        size: how many items.
        largest: how many the largest group has.
    """

    def __init__(self, served: Flags, group: Items, fewest: int) -> None:
        items = np.flatnonzero(served)
        sizes = np.bincount(group[items], minlength=len(group))[group[items]]
        items, sizes = items[sizes >= fewest], sizes[sizes >= fewest]
        order = np.lexsort((items, group[items], -sizes))  # the largest groups first, so that a prefix has enough
        self._items, self._lengths = items[order], sizes[order]
        self._group, labels = group, group[items[order]]
        starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1])[: len(labels)])
        self._begins = starts.repeat(np.diff(np.append(starts, len(labels))))
        self.size, self.largest = len(items), int(sizes.max(initial=0))

    def draw(self, bits: Bits, counts: Items) -> Items:
        """As many items of one group as each of `counts`, in the order drawn, the first uniform among all items of
        groups that have so many; what lies beyond a count is any item."""
        enough = np.searchsorted(-self._lengths, -counts, "right")
        drawn = [below(bits[:, 0], enough)]
        begin, length = self._begins[drawn[0]], self._lengths[drawn[0]]
        for number in range(1, int(counts.max())):
            at = begin + below(bits[:, number], np.maximum(length - number, 1))
            for taken in np.sort(drawn, axis=0):
                at += at >= taken
            drawn.append(np.minimum(at, self.size - 1))
        return np.asarray(self._items[np.array(drawn).T])

    def checked(self, items: Sequence[int]) -> Items:
        """Given items as an array, checked.

        Raises:
            ValueError: one is named twice or does not serve the path, or they are of several groups.
        """
        if unfit := sorted({*items} - {*self._items.tolist()}):
            raise ValueError(f"items: {unfit} do not serve this path; {self.size} items do")
        if not items or len({*items}) < len(items) or len({*self._group[list(items)].tolist()}) > 1:
            raise ValueError(f"items: {list(items)}; allowed: different items of one group, at least one")
        return np.array(items, np.int64)
