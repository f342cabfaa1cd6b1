"""Rows of a Parquet source through its map, and an export, against plain loops: `python tests/bench/bench_tables.py`.

Read: 20,000 rows (photographs of `--side` pixels, and captions) by the source `parquet`, unit by unit, against plain
pyarrow; both sides decode every picture with OpenCV. Export: a graph of some of the rows as `datasets` and as `folder`,
against a loop that reads each node's bytes and writes a file of it; both open the graph anew. The sides take turns in
one process, three times; the ratio is of the medians of CPU seconds, above 1 where ours takes fewer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.engine.run import run
from graphbuild.sources import resolve
from graphbuild.store.export.run import export
from graphbuild.store.graph import Graph
from tests.support.benchmarks import record

TURNS = 3
UNIT = 1024
"""Items that a worker reads at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--exported", type=int, default=2_000, help="items of the export")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, 500 of them exported")
    asked = parser.parse_args()
    if asked.quick:
        asked.rows, asked.exported = 2_000, 500
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="graphbuild-bench-") as folder:
        table = written(Path(folder) / "table/data.parquet", asked.rows, asked.side)
        compare(f"read {asked.rows} rows", lambda: mapped(table), lambda: plain(table), limit=0.45)
        graph = built(table, Path(folder) / "graph", asked.exported)
        for form in ("datasets", "folder"):
            outs = (Path(folder) / f"{form}-{number}" for number in range(2 * TURNS))
            name = f"export {asked.exported} items as {form}"
            compare(name, lambda outs=outs, form=form: exported(graph, next(outs), form),
                    lambda outs=outs: copied(graph, next(outs)), limit=0.7)  # fmt: skip


def written(file: Path, rows: int, side: int) -> Path:
    """A table of distinct JPEG files in row groups of 500."""
    file.parent.mkdir()
    rng = np.random.default_rng(0)
    base = cv2.GaussianBlur(rng.integers(0, 255, (side, side, 3), np.uint8), (0, 0), side / 16)
    pictures = []
    for number in range(64):
        data = cv2.imencode(".jpg", np.roll(base, number * 3, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        pictures.append(data)
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.string())]
    )
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 500):
            numbers = range(start, min(start + 500, rows))
            images = [{"bytes": pictures[n % 64] + f"{n:08d}".encode(), "path": f"{n}.jpg"} for n in numbers]
            captions = [f"picture {n}" for n in numbers]
            writer.write_table(pa.table({"image": images, "caption": captions}, schema))
    return file.parent


def mapped(table: Path) -> int:
    source = resolve("parquet", path=str(table), nodes={"image": "image"}, facts={"caption": "caption"})
    keys = [entry.key for entry in source.entries()]
    found = 0
    for start in range(0, len(keys), UNIT):
        for item in source.read(keys[start : start + UNIT]):
            found += decoded(item.nodes["image"])
    return found


def plain(table: Path) -> int:
    found = 0
    for batch in pq.ParquetFile(table / "data.parquet").iter_batches(16):
        for row in batch.to_pylist():
            found += decoded(row["image"]["bytes"])
    return found


def decoded(data: Any) -> bool:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) is not None


def built(table: Path, out: Path, items: int) -> Path:
    source = resolve("parquet", path=str(table), nodes={"image": "image"}, facts={"caption": "caption"})
    run(source, ["source_caption"], out, executor="inline", limit=items)
    return out


def exported(url: Path, out: Path, form: str) -> int:
    graph = Graph.open(url)
    export(graph, out, form)
    return graph.kinds()["image"]


def copied(url: Path, out: Path) -> int:
    graph = Graph.open(url)
    out.mkdir()
    for item in range(graph.num_items):
        (out / f"{item:08d}.jpg").write_bytes(graph.read(item, "image").bytes)
        (out / f"{item:08d}.txt").write_bytes(graph.read(item, "caption").bytes)
    return graph.num_items


def compare(name: str, ours: Callable[[], int], theirs: Callable[[], int], *, limit: float) -> None:
    """Print CPU seconds of both, in turns, and their ratio."""
    seconds: dict[Callable[[], int], list[float]] = {ours: [], theirs: []}
    for _ in range(TURNS):
        counts = set()
        for side, told in seconds.items():
            started = time.process_time()
            counts.add(side())
            told.append(time.process_time() - started)
        assert len(counts) == 1
    mine, other = (statistics.median(told) for told in seconds.values())
    print(f"{name}: {mine:.2f} s, plain loop {other:.2f} s, ratio {other / mine:.2f}", flush=True)
    record(f"{name}, peer plain loop", ours=mine, peer=other, unit="CPU s", ratio=other / mine, limit=limit)


if __name__ == "__main__":
    main()
