"""Which items are drawn how often: every number that can be drawn is tried."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphbuild.tasks.item_draws import Pool


def every(count: int) -> list[int]:
    """Bits that give each of 0 .. `count` - 1 once."""
    return [-(-(number << 64) // count) for number in range(count)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=7))
def test_items_are_drawn_by_their_weight_among_what_is_left(items: list[tuple[bool, int, int]]) -> None:
    """Guards against a second row that has an item of the first one's group, or the weight of another."""
    served, group, weight = (np.array(column) for column in zip(*items, strict=True))
    if not served.any():
        return
    pool = Pool(served, group, weight)

    def left(taken: set[Any]) -> Counter[int]:
        return Counter({item: int(weight[item]) for item in np.flatnonzero(served) if group[item] not in taken})

    first = every(left(set()).total())
    drawn = pool.draw(np.array([[bits] for bits in first], np.uint64), np.array([1]))[:, 0]
    assert Counter(drawn.tolist()) == left(set())
    for bits, item in zip(first, drawn.tolist(), strict=True):
        if rest := left({group[item]}):
            pairs = np.array([[bits, second] for second in every(rest.total())], np.uint64)
            assert Counter(pool.draw(pairs, np.array([2]))[:, 1].tolist()) == rest


def test_without_weights_all_are_alike() -> None:
    served, group = np.array([True, False, True, True]), np.arange(4)
    bits = np.array([[0, 0], [1 << 63, 1 << 63]], np.uint64)
    alike = Pool(served, group, np.full(4, 5)).draw(bits, np.array([2]))
    assert Pool(served, group).draw(bits, np.array([2])).tolist() == alike.tolist()
