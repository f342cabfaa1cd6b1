"""Which shards new items go to."""

from __future__ import annotations

import pytest

from graphbuild.contracts import Shard
from graphbuild.engine import new_items
from graphbuild.engine.new_items import Listed, ShardItems, new_shards
from graphbuild.sources.base import Entry

SIZES = [3, 3, 9, 1, 1, 1, 1, 1, 30, 2, 2, 2, 8, 8]


def listed(sizes: list[int], first: int = 0) -> Listed:
    return Listed(new=[Entry(f"{first + number:03d}", "", nbytes=size) for number, size in enumerate(sizes)])


def keys(shards: list[ShardItems]) -> list[list[str]]:
    return [[entry.key for entry in shard.entries or ()] for shard in shards]


@pytest.fixture(autouse=True)
def ten_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_items, "SHARD_BYTES", 10)


def test_shards_are_bounded_by_bytes() -> None:
    """Guards against a shard of 1,024 files of 200 MB; a file that is too large by itself has its own shard."""
    shards = new_shards([], listed(SIZES), 4)
    sizes = [sum(entry.nbytes for entry in shard.entries or ()) for shard in shards]
    assert [shard.num_items for shard in shards] == [2, 2, 4, 1, 3, 1, 1] and max(sizes) == 30
    assert [shard.shard.start for shard in shards] == [0, 2, 4, 8, 9, 12, 13]
    assert [key for shard in keys(shards) for key in shard] == [f"{number:03d}" for number in range(len(SIZES))]


@pytest.mark.parametrize("killed", [{0}, {1, 2}, {0, 1, 2, 3}, {2, 5}, {4, 5, 6}])
def test_gaps_are_filled_as_they_would_have_been(killed: set[int]) -> None:
    """Guards against items that get other numbers after a kill than without it."""
    whole = new_shards([], listed(SIZES), 4)
    published = [ShardItems(item.shard, item.num_items) for item in whole if item.shard.index not in killed]
    left = {entry.key for item in whole if item.shard.index in killed for entry in item.entries or ()}
    again = new_shards(published, Listed(new=[entry for entry in listed(SIZES).new if entry.key in left]), 4)
    assert again == [item for item in whole if item.shard.index in killed]


def test_items_that_came_later_lie_after_all_others() -> None:
    published = [ShardItems(Shard(index=0, start=0, stop=3), 3)]
    shards = new_shards(published, listed([1] * 6), 4)
    assert [(s.shard.index, s.shard.start, s.shard.stop) for s in shards] == [(1, 3, 7), (2, 7, 9)]
