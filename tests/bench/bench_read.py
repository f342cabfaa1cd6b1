"""Nodes per second read at random: `Graph.read` against pyarrow's row groups: `python tests/bench/bench_read.py`.

20,480 nodes of 10 to 60 KB of noise in 20 shards, published by the library, in the page cache. `Graph.read` looks the
node up, reads its bytes from their offset and checks their hash. The peer knows each node's file, row group and row
beforehand, keeps every `ParquetFile` open, reads the `image` column of the row group (128 rows) and takes the row,
unchecked; once through read calls, once memory-mapped. Decoding is left out on both sides, and so is opening: the
edge rows of a shard (ours) and the footers (pyarrow) are loaded before the clock starts. Sides take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow.parquet as pq

from graphbuild.contracts import CommitDocument, GraphDocument, Live, Outcome, Shard, SourceDocument, Unit
from graphbuild.engine.commit import publish_unit
from graphbuild.engine.records import Producer
from graphbuild.engine.versions import source_producer
from graphbuild.hashing import checksum
from graphbuild.sources.base import Entry, Source, SourceItem
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import write_items
from graphbuild.store.workspace import Workspace
from tests.support.benchmarks import record

SHARD_ITEMS = 1024
PEER_SHARE = 20
"""The peer reads one node in so many of ours: its rate needs no more, and it would take minutes."""


@dataclass(frozen=True, kw_only=True)
class Noise(Source):
    """Never listed or read: only its name and version are needed."""

    name: ClassVar[str] = "noise"

    def entries(self) -> Sequence[Entry]:
        return []

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        return iter(())


class Spot(NamedTuple):
    """Where pyarrow finds a node."""

    file: int
    group: int
    row: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 shards, one round")
    args = parser.parse_args()
    num_shards, rounds = (4, 1) if args.quick else (20, 5)
    folder = Path(tempfile.mkdtemp(prefix="graphbuild-bench-"))
    try:
        nbytes = write_graph(folder / "graph", num_shards)
        rates = measure(Graph.open(folder / "graph"), rounds)
    finally:
        shutil.rmtree(folder)
    show(rates, num_shards * SHARD_ITEMS, nbytes)


def show(rates: dict[str, list[float]], num_nodes: int, nbytes: int) -> None:
    print(f"{num_nodes} nodes, {nbytes / 1e6:.0f} MB, warm, one thread, {len(rates['Graph.read'])} rounds")
    print(f"{'side':28s} {'nodes/s':>10s} {'min':>10s} {'max':>10s}")
    for name, values in rates.items():
        print(f"{name:28s} {statistics.median(values):10.0f} {min(values):10.0f} {max(values):10.0f}")
    for peer in list(rates)[1:]:
        ratios = [ours / other for ours, other in zip(rates["Graph.read"], rates[peer], strict=True)]
        print(f"ratio Graph.read / {peer}: {statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})")
        record(
            f"nodes at random, peer {peer}", ours=statistics.median(rates["Graph.read"]), unit="nodes/s",
            peer=statistics.median(rates[peer]), ratio=statistics.median(ratios), limit=2,
        )  # fmt: skip


def measure(graph: Graph, rounds: int) -> dict[str, list[float]]:
    files = {mapped: [pq.ParquetFile(path, memory_map=mapped) for path in graph.files("image")] for mapped in (0, 1)}
    spots = list(_spots(files[0]))
    for shard in graph.shards:
        graph.read(shard.start, "image")
    rates: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(graph.num_items).tolist()
        rates["Graph.read"].append(read_ours(graph, order))
        some = [spots[item_ix] for item_ix in order[::PEER_SHARE]]
        rates["read_row_group"].append(read_row_groups(files[0], some))
        rates["read_row_group, mapped"].append(read_row_groups(files[1], some))
    return rates


def read_ours(graph: Graph, order: Sequence[int]) -> float:
    start = time.perf_counter()
    total = sum(len(graph.read(item_ix, "image").bytes) for item_ix in order)
    assert total > 0
    return len(order) / (time.perf_counter() - start)


def read_row_groups(files: Sequence[pq.ParquetFile], spots: Sequence[Spot]) -> float:
    start = time.perf_counter()
    total = 0
    for spot in spots:
        column = files[spot.file].read_row_group(spot.group, columns=["image"]).column("image")
        total += len(column[spot.row].as_py()["bytes"])
    assert total > 0
    return len(spots) / (time.perf_counter() - start)


def _spots(files: Sequence[pq.ParquetFile]) -> Iterator[Spot]:
    for number, file in enumerate(files):
        for group in range(file.metadata.num_row_groups):
            yield from (Spot(number, group, row) for row in range(file.metadata.row_group(group).num_rows))


# ---- the graph -------------------------------------------------------------------------------------------------


def write_graph(out: Path, num_shards: int) -> int:
    """A graph of one kind, `image`; returns the bytes of its nodes."""
    files, producer = files_at(out), source_producer(Noise())
    workspace = Workspace.create(files, "bench")
    document = GraphDocument(source=SourceDocument(name="noise", params={}), shard_size=SHARD_ITEMS)
    files.publish("graph.json", document.model_dump_json().encode(), workspace)
    files.publish(f"lineage/{producer.version}.json", producer.lineage.model_dump_json().encode(), workspace)
    change_head(files, workspace, lambda head: {"image": Live(annotator=producer.name, version=producer.version)})
    rng = np.random.default_rng(0)
    total = sum(_write_shard(files, workspace, producer, index, rng) for index in range(num_shards))
    workspace.close()
    os.sync()  # or writing back would slow down the first round
    return total


def _write_shard(files: Files, workspace: Workspace, producer: Producer, index: int, rng: np.random.Generator) -> int:
    shard = Shard(index=index, start=index * SHARD_ITEMS, stop=(index + 1) * SHARD_ITEMS)
    unit = Unit(annotator=producer.name, version=producer.version, shard=shard)
    rows = [_row(item_ix, rng) for item_ix in range(shard.start, shard.stop)]
    nbytes = sum(len(row.data or b"") for row in rows)
    items = [{"item_ix": row.item_ix, "item_id": row.item_id, "key": f"{row.item_ix:08d}.jpg"} for row in rows]
    document = CommitDocument(
        unit=unit,
        revision=0,
        use=producer.use,
        config=producer.config,
        lineage=producer.lineage,
        variants=producer.variants,
        parents=[],
        items=write_items(files, workspace, unit, items),
        parts=[],
        counts={},
        reasons={},
        rows_digest="",
    )
    publish_unit(files, workspace, rows=rows, previous=None, document=document)
    return nbytes


def _row(item_ix: int, rng: np.random.Generator) -> Outcome:
    data = b"\xff\xd8\xff\xe0" + rng.bytes(int(rng.integers(10_000, 60_000)))
    return Outcome(
        item_ix=item_ix,
        item_id=hashlib.md5(str(item_ix).encode()).hexdigest(),
        kind="image",
        variant=0,
        status="ok",
        format="jpeg",
        width=512,
        height=512,
        content_hash=checksum(data),
        seed=0,
        data=data,
    )


if __name__ == "__main__":
    main()
