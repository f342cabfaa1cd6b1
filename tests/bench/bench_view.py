"""The viewer on a graph of 10 million nodes: `python tests/bench/bench_view.py`.

200,000 items x 50 kinds in shards of 1,024: 9,800 edges parts with 1,024 rows each and the items parts beside them,
written here row for row as the library reads them; pictures are not, so none is asked for. The server is a process of
its own, asked over HTTP. First start: its counts are not in the user's cache yet. Later start: they are.

Limits, of a later start: the first page within a second after the command was typed, imports included; an item in
200 ms; a filter by reason in 500 ms; 500 MB of memory. All are of the slowest of several different pages, none asked
for before.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.contracts import (
    EDGES,
    ITEMS,
    PARENT,
    CommitDocument,
    GraphDocument,
    LineageDocument,
    Live,
    PartRef,
    Shard,
    SourceDocument,
    Unit,
)
from graphbuild.hashing import canonical_json, version_of
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import edges_name, items_name
from graphbuild.store.workspace import Workspace
from tests.support.benchmarks import record

SHARD, KINDS = 1024, 50
LIMITS = {"first page": 1.0, "item": 0.2, "filter by reason": 0.5}
MOST_MB = 500
FAILED, RARE = 100, "rare_reason"
"""Rows in so many that fail; the reason of a single row of the graph, in the last shard."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--keep", help="write the graph here and keep it, or use the one that is there")
    args = parser.parse_args()
    folder = Path(args.keep or tempfile.mkdtemp(prefix="graphbuild-bench-"))
    try:
        graph = folder / "graph"
        if not (graph / "graph.json").exists():
            began = time.monotonic()
            write_graph(graph, args.items)
            print(f"written in {time.monotonic() - began:.0f} s")
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for start in ("first start", "later start"):
            show(start, measure(graph, folder / "cache", args.items, wait=start == "first start"))
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def show(start: str, found: dict[str, list[float]]) -> None:
    memory = found.pop("memory")[0]
    print(f"{start}: {memory:.0f} MB at most (limit {MOST_MB})")
    record(f"memory of a {start}", ours=memory, unit="MB", limit=MOST_MB)
    for name, seconds in found.items():
        limit = f", limit {LIMITS[name] * 1000:.0f}" if name in LIMITS else ""
        middle, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
        print(f"  {name:18s} median {middle:6.0f} ms, slowest {worst:6.0f} ms of {len(seconds)}{limit}")
        if start == "later start" and name in LIMITS:
            record(name, ours=max(seconds), unit="s", limit=LIMITS[name])


def measure(graph: Path, cache: Path, items: int, *, wait: bool) -> dict[str, list[float]]:
    """Seconds of each sort of page, and the most memory in MB, of one server."""
    environment = {**os.environ, "GRAPHBUILD_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    code = "from graphbuild.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(graph), "--port", "0"]
    began = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        found = {"until it answers": [time.monotonic() - began]}
        shown = seconds(url)
        found |= {"its first answer": [shown], "first page": [time.monotonic() - began]}
        if wait:
            found["counted"] = [seconds(f"{url}coverage")]
        step = items // 8
        found["item"] = [seconds(f"{url}item/{number * step + 7}") for number in range(8)]
        reasons = (
            "kind=k07&status=failed&reason=error",
            "kind=k11&status=failed&reason=http",
            f"kind=k20&reason={RARE}",
            "annotator=of_k31&status=failed",
        )
        found["filter by reason"] = [seconds(f"{url}?{asked}") for asked in reasons]
        found["next page"] = [seconds(f"{url}?kind=k30&after={number * step}.0") for number in range(8)]
        found["failures"] = [seconds(f"{url}failures")]
        found["coverage"] = [seconds(f"{url}coverage")]
        found["by score, once"] = [seconds(f"{url}?kind=k05&order=-score")]
        found["by score"] = [seconds(f"{url}?kind=k05&order=-score&after={number * step}.0") for number in range(8)]
        found["search"] = [seconds(f"{url}?text=nowhere")]
        status = Path(f"/proc/{server.pid}/status").read_text()
        found["memory"] = [int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024]  # type: ignore[index]
        return found
    finally:
        server.terminate()
        server.wait()


def seconds(url: str) -> float:
    began = time.monotonic()
    with urllib.request.urlopen(url) as answer:
        assert answer.status == 200 and b"</html>" in answer.read()
    return time.monotonic() - began


# ---- the graph -------------------------------------------------------------------------------------------------


def write_graph(out: Path, items: int) -> None:
    files = files_at(out)
    workspace = Workspace.create(files, "bench")
    document = GraphDocument(source=SourceDocument(name="rows", params={}), shard_size=SHARD)
    files.publish("graph.json", document.model_dump_json().encode(), workspace)
    head = {}
    for kind in ["image", *(f"k{number:02d}" for number in range(1, KINDS))]:
        lineage = _lineage(kind)
        version = version_of(lineage)
        files.publish(f"lineage/{version}.json", lineage.model_dump_json().encode(), workspace)
        head[kind] = Live(annotator=lineage.annotator, version=version)
        for shard in _shards(items):
            _write_unit(out, kind, lineage, version, shard, last=shard.stop == items)
    change_head(files, workspace, lambda _: head)
    workspace.close()


def _shards(items: int) -> Iterator[Shard]:
    for index in range(math.ceil(items / SHARD)):
        yield Shard(index=index, start=index * SHARD, stop=min(items, (index + 1) * SHARD))


def _lineage(kind: str) -> LineageDocument:
    return LineageDocument(
        annotator="source:rows" if kind == "image" else f"of_{kind}", code_version=1, params={}, model=None,
        codec={kind: "jpeg"}, schema_version=1, parents={} if kind == "image" else {"image": "v0"},
    )  # fmt: skip


def _write_unit(out: Path, kind: str, lineage: LineageDocument, version: str, shard: Shard, *, last: bool) -> None:
    unit = Unit(annotator=lineage.annotator, version=version, shard=shard)
    name = f"nodes/kind={kind}/version={version}/{shard.label}-r000-0-{'0' * 16}.parquet"
    part = PartRef(name=name, kind=kind, rows=SHARD, nbytes=1 << 30, checksum="0" * 32)
    table, reasons = _rows(kind, shard, part.name, rare=last and kind == "k20")
    failed = sum(reasons.values())
    items = PartRef(name=items_name(shard), kind="items", rows=table.num_rows, nbytes=1, checksum="0" * 32)
    commit = CommitDocument(
        unit=unit, revision=0, use="tests:None", config={}, lineage=lineage, variants={kind: 1}, parents=[],
        items=items if kind == "image" else None, parts=[part],
        counts={kind: {"ok": table.num_rows - failed, "failed": failed}},
        reasons={kind: {f"failed:{reason}": count for reason, count in reasons.items()}}, rows_digest="",
    )  # fmt: skip
    text = canonical_json(commit.model_dump(mode="json"))
    _write(out / edges_name(unit, 0), table.replace_schema_metadata({"graphbuild": text}))
    if kind == "image":
        _write(out / items.name, _spine(shard))


def _rows(kind: str, shard: Shard, part: str, *, rare: bool) -> tuple[pa.Table, dict[str, int]]:
    numbers = np.arange(shard.start, shard.stop)
    failed = (numbers % FAILED == 3) & (kind != "image")
    reason = np.where(numbers % (2 * FAILED) == 3, "error", "http").astype(object)
    if rare:
        failed[-1], reason[-1] = True, RARE
    same: dict[str, Any] = {"kind": kind, "variant": 0, "width": 512, "height": 512, "part": part, "format": "jpeg",
                            "nbytes": 50_000, "detail": "TimeoutError: no answer in 30 s", "attrs": None}  # fmt: skip
    columns: dict[str, Any] = {name: np.full(len(numbers), value, object) for name, value in same.items()}
    columns |= {"item_ix": numbers, "seed": numbers, "score": numbers % 997 / 997, "reason": reason}
    columns |= {"status": np.where(failed, "failed", "ok"), "offset": np.arange(len(numbers)) * 50_000}
    columns["content_hash"] = [f"{number:032x}" for number in numbers]
    columns["parents"] = _parents(numbers, 0 if kind == "image" else 1)
    only_ok, only_failed = ("part", "offset", "nbytes", "format", "content_hash"), ("reason", "detail")
    masks = {**dict.fromkeys(only_ok, failed), **dict.fromkeys(only_failed, ~failed)}
    arrays = [columns[f.name] if f.name == "parents" else pa.array(columns[f.name], f.type, mask=masks.get(f.name))
              for f in EDGES]  # fmt: skip
    names, counts = np.unique(reason[failed].astype(str), return_counts=True)
    return pa.table(arrays, EDGES), dict(zip(names.tolist(), counts.tolist(), strict=True))


def _parents(numbers: np.ndarray[Any, Any], each: int) -> pa.Array:
    """The item's image as the only parent, or none."""
    chosen = numbers[: len(numbers) * each]
    same = {"kind": "image", "variant": 0, "version": "v0", "content_hash": "0" * 32}
    values = [pa.array(chosen) if field.name == "item_ix" else pa.array([same[field.name]] * len(chosen), field.type)
              for field in PARENT]  # fmt: skip
    structs = pa.StructArray.from_arrays(values, fields=list(PARENT))
    return pa.ListArray.from_arrays(np.arange(len(numbers) + 1) * each, structs, EDGES.field("parents").type)


def _spine(shard: Shard) -> pa.Table:
    rows = [{"item_ix": n, "item_id": f"{n:032x}", "key": f"photos/{n:08d}.jpg", "source": "rows", "split": "train",
             "caption": f"Photograph {n} of a long series."} for n in range(shard.start, shard.stop)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ITEMS)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_statistics=False, write_page_checksum=True)


if __name__ == "__main__":
    main()
