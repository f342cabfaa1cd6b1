"""What a listing says of a graph: new, vanished and known items, from one pass over its entries."""

from __future__ import annotations

from pathlib import Path

from graphbuild.engine.new_items import KnownItems, compare, published_shards
from graphbuild.sources.base import Entry
from graphbuild.sources.folder import Folder
from graphbuild.sources.sample import Sample
from graphbuild.store.graph import Graph
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


def test_items_have_the_order_of_their_source(tmp_path: Path) -> None:
    """Ordinary photographs first, also in a graph that is made in two runs."""
    complete(build(Sample(), tmp_path / "g", [], limit=5, shard_size=2))
    complete(build(Sample(), tmp_path / "g", []))
    keys = Graph.open(tmp_path / "g").items()["key"].to_pylist()
    assert keys == [entry.key for entry in Sample().entries()]
    assert keys[:3] == ["chelsea.png", "coffee.png", "astronaut.png"] and keys[-2:] == ["ihc.png", "retina.jpg"]


def test_items_of_other_sources_are_sorted_by_key(photos: Path, tmp_path: Path) -> None:
    """Guards against places in a graph that depend on how a source lists its items."""

    class Backwards(Folder):
        def entries(self) -> list[Entry]:
            return [*super().entries()][::-1]

    source = Backwards(path=str(photos))
    listed = compare(files_at(tmp_path / "g"), source, source.entries(), {}, None)
    assert listed.new == [*Folder(path=str(photos)).entries()]
