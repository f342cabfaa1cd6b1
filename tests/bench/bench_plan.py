"""Seconds to plan 5,000 committed units of 2,000 rows against the same of 20 rows: `python tests/bench/bench_plan.py`.

Two graphs of 1,250 shards x (source, canny, lsd, grabcut), every unit committed. Items and edges parts are written by
the library's own functions: each footer names its own unit and its parent's commit, while the rows of one annotator
repeat from shard to shard (hashes and seeds are random within a part, so that it compresses as a real one does). Node
parts are named, not written: planning never opens them. fsync is left out, or the disk would take an hour.

What is counted: `make_plan` without a source, in one process, files in the page cache. It has to come to "nothing to
do". Sizes take turns; the ratio is taken inside one round. `with a listing` plans with a source as well, which has to
be compared with the known items and so does grow with them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa

from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.lsd import Lsd
from graphbuild.contracts import (
    CommitDocument,
    CommitRef,
    GraphDocument,
    Live,
    Outcome,
    Parent,
    PartRef,
    Shard,
    SourceDocument,
    Unit,
)
from graphbuild.engine.plan import make_plan
from graphbuild.engine.records import Producer
from graphbuild.engine.versions import bind, source_producer
from graphbuild.sources.base import Entry, Source, SourceItem
from graphbuild.store.commits import read_commit
from graphbuild.store.files import Files, LocalFiles, Scratch
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import Place, edge_table, edges_name, nodes_folder, write_edges, write_items
from graphbuild.store.workspace import Workspace
from tests.support.benchmarks import record

ANNOTATORS = (Canny(), Lsd(), Grabcut())
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Listed(Source):
    """A listing in memory."""

    name: ClassVar[str] = "listed"
    keys: Any = field(default=(), metadata={"output": False})

    def entries(self) -> Sequence[Entry]:
        return [Entry(key, "12345-1700000000000000000") for key in self.keys]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        raise AssertionError("a plan without changes reads no image")


class Unsynced(LocalFiles):
    """Publishes without fsync and checks."""

    def publish(self, name: str, data: bytes, scratch: Scratch) -> bool:
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="500 units")
    parser.add_argument("--rows", type=int, default=2000, help="rows a unit of the big graph")
    args = parser.parse_args()
    num_shards = 125 if args.quick else 1250
    folder = Path(tempfile.mkdtemp(prefix="graphbuild-bench-"))
    try:
        started = time.perf_counter()
        sizes = {rows: write_graph(folder / str(rows), num_shards, rows) for rows in (args.rows, 20)}
        print(f"two graphs written in {time.perf_counter() - started:.0f} s")
        seconds: dict[int, list[float]] = {rows: [] for rows in sizes}
        for _ in range(ROUNDS):
            for rows, taken in seconds.items():
                taken.append(plan(folder / str(rows), None))
        listing = {rows: plan(folder / str(rows), listed(num_shards * rows)) for rows in sizes}
    finally:
        shutil.rmtree(folder)
    show(num_shards * (1 + len(ANNOTATORS)), sizes, seconds, listing)


def show(units: int, sizes: dict[int, int], seconds: dict[int, list[float]], listing: dict[int, float]) -> None:
    head = f"{'rows/unit':>10s} {'units':>7s} {'edge rows':>11s} {'B/row':>6s} {'plan s':>7s} {'min':>6s} {'max':>6s}"
    print(f"{head} {'ms/unit':>8s} {'with a listing s':>17s}")
    for rows, taken in seconds.items():
        middle = statistics.median(taken)
        print(
            f"{rows:10d} {units:7d} {units * rows:11d} {sizes[rows] / units / rows:6.1f} {middle:7.3f} "
            f"{min(taken):6.3f} {max(taken):6.3f} {middle / units * 1000:8.3f} {listing[rows]:17.3f}"
        )
    many, few = seconds
    ratios = [a / b for a, b in zip(seconds[many], seconds[few], strict=True)]
    print(
        f"ratio plan of {units} units, {many} rows / {few} rows: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}..{max(ratios):.2f}); {statistics.median(seconds[many]):.2f} s"
    )
    middle = [statistics.median(seconds[rows]) for rows in (many, few)]
    ratio = 1 / statistics.median(ratios)
    record(
        f"plan of {many} rows a unit, peer of {few}", ours=middle[0], peer=middle[1], unit="s", ratio=ratio, limit=0.5
    )


def plan(out: Path, source: Source | None) -> float:
    started = time.perf_counter()
    found = make_plan(files_at(out), source, ANNOTATORS)
    taken = time.perf_counter() - started
    assert not found.units and found.retriable == 0, found.reasons()
    return taken


def listed(num_items: int) -> Listed:
    return Listed(keys=tuple(f"photos/{item_ix:09d}.jpg" for item_ix in range(num_items)))


# ---- the graphs ------------------------------------------------------------------------------------------------


def write_graph(out: Path, num_shards: int, rows: int) -> int:
    """A graph in which every unit is committed; returns the bytes of its edges parts."""
    files, source = Unsynced(out), source_producer(Listed())
    workspace = Workspace(files, "bench")
    producers = [source, *(producer for producer, _ in bind(ANNOTATORS, [source], {}, lambda kind, live: 1))]
    document = GraphDocument(source=SourceDocument(name="listed", params={}), shard_size=rows)
    files.publish("graph.json", document.model_dump_json().encode(), workspace)
    for producer in producers:
        files.publish(f"lineage/{producer.version}.json", producer.lineage.model_dump_json().encode(), workspace)
    head = {
        kind: Live(annotator=producer.name, version=producer.version)
        for producer in producers
        for kind in producer.variants
    }
    change_head(files, workspace, lambda old: head)
    tables = {producer.name: _rows(producer, source, rows) for producer in producers}
    return sum(_write_shard(files, workspace, producers, tables, index) for index in range(num_shards))


def _write_shard(
    files: Files, workspace: Workspace, producers: Sequence[Producer], tables: Mapping[str, pa.Table], index: int
) -> int:
    size = tables[producers[0].name].num_rows
    shard = Shard(index=index, start=index * size, stop=(index + 1) * size)
    parents: list[CommitRef] = []
    nbytes = 0
    for producer in producers:
        unit = Unit(annotator=producer.name, version=producer.version, shard=shard)
        document = _document(producer, unit, parents, tables[producer.name])
        if producer is producers[0]:
            items = [_item(item_ix) for item_ix in range(shard.start, shard.stop)]
            document = document.model_copy(update={"items": write_items(files, workspace, unit, items)})
        numbers = pa.array(range(shard.start, shard.stop), pa.int64())
        write_edges(files, workspace, tables[producer.name].set_column(0, "item_ix", numbers), document)
        name = edges_name(unit, 0)
        nbytes += files.size(name)
        parents = parents or [read_commit(files, name).ref]
    return nbytes


def _document(producer: Producer, unit: Unit, parents: list[CommitRef], table: pa.Table) -> CommitDocument:
    (kind,) = producer.variants
    part = PartRef(name=_part(producer, unit.shard.label), kind=kind, rows=len(table), nbytes=1, checksum="0" * 32)
    return CommitDocument(
        unit=unit,
        revision=0,
        use=producer.use,
        config=producer.config,
        lineage=producer.lineage,
        variants=producer.variants,
        parents=parents,
        parts=[part],
        counts={kind: {"ok": len(table)}},
        reasons={kind: {}},
        rows_digest="0" * 32,
    )


def _part(producer: Producer, label: str) -> str:
    return f"{nodes_folder(next(iter(producer.variants)), producer.version)}/{label}-r000-0-0123456789abcdef.parquet"


def _rows(producer: Producer, source: Producer, count: int) -> pa.Table:
    (kind,) = producer.variants
    rng = np.random.default_rng(len(producer.name))
    hashes = [rng.bytes(16).hex() for _ in range(2 * count)]
    seeds, sizes = rng.integers(0, 2**63, count), rng.integers(4_000, 20_000, count)
    places = {}
    rows = []
    for number in range(count):
        parents = () if producer is source else (Parent(number, "image", 0, source.version, hashes[count + number]),)
        row = Outcome(item_ix=number, item_id="", kind=kind, variant=0, status="ok", parents=parents, format="png")
        row.width, row.height, row.content_hash, row.seed = 512, 512, hashes[number], int(seeds[number])
        rows.append(row)
        places[row.key] = Place(_part(producer, "shard-00000"), int(sizes[:number].sum()), int(sizes[number]))
    return edge_table(rows, places)


def _item(item_ix: int) -> dict[str, Any]:
    digest = hashlib.sha256(str(item_ix).encode()).hexdigest()
    return {
        "item_ix": item_ix,
        "item_id": digest[:32],
        "key": f"photos/{item_ix:09d}.jpg",
        "source": "listed",
        "stamp": "12345-1700000000000000000",
        "sha256": digest,
    }


if __name__ == "__main__":
    main()
