"""What a listing says of a graph: new, vanished and known items, from one pass over its entries."""

from __future__ import annotations

from pathlib import Path

from graphbuild.engine.new_items import KnownItems, compare, published_shards
from graphbuild.sources.base import Entry
from graphbuild.sources.folder import Folder
from graphbuild.store.locations import files_at
from tests.support.annotators import build, complete


def test_a_listing_is_read_once_and_known_items_take_29_bytes(photos: Path, tmp_path: Path) -> None:
    """Guards against listings held as a list, and against known items that are held with their names and hashes."""
    complete(build(photos, tmp_path / "g", [], limit=12, shard_size=5))
    files, source = files_at(tmp_path / "g"), Folder(path=str(photos))
    parts = {item.shard.index: f"items/{item.shard.label}.parquet" for item in published_shards(files)}
    entries = list(source.entries())
    moved = [Entry("zz" + entry.key, entry.stamp) for entry in entries[:2]]
    listed = compare(files, source, iter([*entries[2:], *moved]), parts, None)
    assert (listed.count, listed.vanished) == (18, 2) and not listed.replaced and not listed.revised
    assert listed.new == [*entries[12:], *moved]
    first = compare(files, source, iter(entries), parts, 13)
    assert first.new == entries[12:13] and first.vanished == 0
    known = KnownItems(files, parts)
    assert sum(column.nbytes for column in (known.keys, known.stamps, known.readable, known.shards)) == 29 * len(known)
    assert known.find([entries[3].key, "no"]).tolist()[1] == -1 and len(known) == 12
