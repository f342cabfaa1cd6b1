"""The counter-based generator: pure, uniform, and the same one at a time or many at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.tasks.counter_rng import Draws, below, draw_bits, label_hashes, unit
from tests.tasks.test_walk import p_value

KEYS = st.integers(0, (1 << 64) - 1)


@settings(deadline=None)
@given(KEYS, st.integers(0, 1 << 60), st.text(max_size=6), st.integers(1, 1 << 62))
def test_draws_stay_in_range(key: int, counter: int, label: str, n: int) -> None:
    """Draws are in range, and the same however often they are asked for."""
    draws = Draws(key, counter, "stream")
    assert 0 <= draws.below(label, n) < n and 0.0 <= draws.unit(label) < 1.0
    assert draws.bits(label) == Draws(key, counter, "stream").bits(label)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(KEYS)
def test_labels_streams_and_neighbours_are_independent(key: int) -> None:
    """Two labels, two streams, two keys or two counters must not know of each other."""
    pairs: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in ("label", "stream", "counter", "key")}
    for counter in range(4000):
        draws = Draws(key, counter, "s")
        first = draws.below("a", 4)
        pairs["label"][first, draws.below("b", 4)] += 1
        pairs["stream"][first, Draws(key, counter, "t").below("a", 4)] += 1
        pairs["counter"][first, Draws(key, counter + 1, "s").below("a", 4)] += 1
        pairs["key"][first, Draws(key ^ 1, counter, "s").below("a", 4)] += 1
    cells = {(a, b): 1.0 for a in range(4) for b in range(4)}
    assert all(p_value(counts, cells) > 1e-6 for counts in pairs.values())


@settings(deadline=None)
@given(KEYS, st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=5), st.integers(1, (1 << 32) - 1))
def test_tables_of_draws_equal_single_draws(key: int, counters: list[int], n: int) -> None:
    """A walk drawn alone and one drawn among thousands must be the same walk."""
    labels = ["a", "b", "item:2"]
    table = draw_bits(key, "s", np.array(counters, np.uint64), label_hashes(labels))
    for row, counter in enumerate(counters):
        draws = Draws(key, counter, "s")
        assert table[row].tolist() == [draws.bits(label) for label in labels]
        assert unit(table[row]).tolist() == [draws.unit(label) for label in labels]
        limits = np.full(len(labels), n)
        assert below(table[row], limits).tolist() == [draws.below(label, n) for label in labels]
