"""The loader against the decoder alone and against other readers: `python tests/bench/bench_loader.py`.

(a) 20,480 stored nodes (2,048 items, 10 kinds, JPEG and PNG of 512 x 512 photographs that come with scikit-image) in
16 shards. Random 3 x 3 grids at 512 px, where a cell is the decoded picture: drawn by the sampler, read, checked and
decoded (`cells`), and put into a batch with its words and keys (`batches`). Peers decode the same bytes, from memory,
in the same process, and let go of each picture at once: OpenCV to RGB, as a plain loader does; and the library's own
codecs to the channels that are stored, the least that any reader has to do. Rounds take turns, so a neighbour on the
machine slows all; the ratio within each round counts, of time on the clock and of processor time. Cold: the page cache
is told to forget the node parts (POSIX_FADV_DONTNEED) before a round.

(b) The same pictures as a wide Parquet file shaped like Graph200K (a column a kind), read by `datasets` map-style (a
row decodes all its columns, 3 of 10 are used), and as a WebDataset tar stream (all members of a row are read, 3
decoded).

(c) Cells of 384 px from photographs of 512 x 512 and 4000 x 3000: `decode` fast against exact, turn about.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import cv2
import numpy as np

from graphbuild.data import GridTasks, collate
from graphbuild.data.sample import keep_freed_memory
from graphbuild.images.codecs import CODECS
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from graphbuild.tasks.cells import Frame, frames
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.bench_graph import KINDS, SHARD_ITEMS, SIDE, crops, pictures, write_graph
from tests.support.benchmarks import record

USED = 3
LIMITS = {"warm": 0.45, "cold": 0.3}
"""Page cache -> the least ratio of (a). Cold, it says as much about the disk."""
READERS = {"datasets, map-style, whole rows": 2.0, "WebDataset, stream": 0.8}
"""Peers of (b), and the least ratios."""


class Seconds(NamedTuple):
    """What something took, on the clock and of the processor."""

    clock: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 items, 3 rounds; nothing cold, no (c)")
    parser.add_argument("--items", type=int, default=0, help="a multiple of 128")
    args = parser.parse_args()
    items, rounds, grids = (256, 3, 8) if args.quick else (args.items or 2048, 9, 64)
    cv2.setNumThreads(1)
    keep_freed_memory()  # as in a worker
    folder = Path(tempfile.mkdtemp(prefix="graphbuild-bench-"))
    os.environ["GRAPHBUILD_CACHE"] = str(folder / "cache")
    try:
        patterns = pictures()
        write_graph(folder / "graph", items // SHARD_ITEMS, patterns)
        graph = Graph.open(folder / "graph")
        against_decoding(graph, rounds, grids, dict(list(LIMITS.items())[: 1 if args.quick else 2]))
        against_readers(graph, folder, min(items, 256), max(3, rounds // 3))
        if not args.quick:
            fast_against_exact(max(3, rounds // 3))
    finally:
        shutil.rmtree(folder)


# ---- (a) the decoder alone ---------------------------------------------------------------------------------------


def against_decoding(graph: Graph, rounds: int, grids: int, limits: Mapping[str, float]) -> None:
    sampler = grid_sampler(graph)
    print(f"(a) {graph.num_items * len(KINDS)} nodes, 3 x 3 grids at {SIDE} px, {rounds} rounds of {grids}")
    loaders: dict[str, tuple[Callable[[GridTasks], None], dict[str, int]]] = {
        "cells, one thread": (cells, {"prefetch": 0}),
        "batches, one thread": (batches, {"prefetch": 0}),
        "batches, prefetch 4, 2 threads": (batches, {"prefetch": 4, "threads": 2}),
    }
    for name, (take, options) in loaders.items():
        for cache, limit in limits.items():
            took = compare(sampler, rounds, grids, take, cold=cache == "cold", **options)
            for peer in ("OpenCV", "own codecs"):
                clock, processor = ([each[peer][at] / each["ours"][at] for each in took] for at in (0, 1))
                outside = statistics.median(each["ours"][1] - each[peer][1] for each in took) / grids / 9 * 1e6
                print(f"{name:30s} {cache}: {spread(clock)} of the rate of {peer:10s} alone, by "
                      f"processor time {spread(processor)}; {outside:.0f} us an image more")  # fmt: skip
                mine, theirs = (statistics.median(each[side][0] for each in took) for side in ("ours", peer))
                work = f"{name}, {cache}, peer {peer}"
                record(work, ours=mine, peer=theirs, unit="s", ratio=statistics.median(clock), limit=limit)


def compare(
    sampler: PathSampler, rounds: int, grids: int, take: Callable[[GridTasks], None], *, cold: bool, **options: Any
) -> list[dict[str, Seconds]]:
    """What the loader and the decoders took in each round."""
    took = []
    for number in range(-1, rounds):  # the first round warms up
        start = (number + 1) * grids
        stored = [
            node for index in range(start, start + grids) for row in sampler.task(index, SIDE).rows for node in row
        ]
        if cold:
            forget(sampler.graph)
        dataset = GridTasks(sampler, resolution=SIDE, start=start, stop=start + grids, rank=0, world=1, **options)
        runs = {
            "OpenCV": lambda stored=stored: decode_to_rgb(stored),
            "own codecs": lambda stored=stored: decode(stored),
            "ours": lambda dataset=dataset: take(dataset),
        }
        names = sorted(runs, key=lambda name, number=number: (list(runs).index(name) + number) % 3)
        round_took = {name: seconds(runs[name]) for name in names}
        if number >= 0:
            took.append(round_took)
    return took


def grid_sampler(graph: Graph) -> PathSampler:
    """Three random kinds a path, three rows always."""
    rng = np.random.default_rng(0)
    chosen = {tuple(str(kind) for kind in rng.choice(KINDS, 3, replace=False)) for _ in range(40)}
    paths = PathSet(
        name="bench", paths=tuple(TaskPath(name="-".join(c), cells=c, targets=(2,)) for c in sorted(chosen))
    )
    return PathSampler(graph, paths, config=SamplerConfig(rows=(0, 0, 1)))


def cells(dataset: GridTasks) -> None:
    for sample in dataset:
        assert [cell.shape for row in sample.cells() for cell in row] == [(SIDE, SIDE, 3)] * 9


def batches(dataset: GridTasks) -> None:
    for sample in dataset:  # a batch is let go of before the next one, as cells are
        assert tuple(collate([sample]).cells.shape) == (1, 3, 3, 3, SIDE, SIDE)


def decode_to_rgb(nodes: Sequence[Node]) -> None:
    for node in nodes:
        cv2.imdecode(np.frombuffer(node.bytes, np.uint8), cv2.IMREAD_COLOR_RGB)


def decode(nodes: Sequence[Node]) -> None:
    for node in nodes:
        CODECS[node.codec].values(node.bytes, node.format)


def forget(graph: Graph) -> None:
    for kind in KINDS:
        for path in graph.files(kind):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


# ---- (b) other readers ---------------------------------------------------------------------------------------------


def against_readers(graph: Graph, folder: Path, rows: int, rounds: int) -> None:
    """Pictures that are used, a second: 3 columns of random rows."""
    wide, tar = write_wide(graph, folder, rows), write_tar(graph, folder, rows)
    peers = (read_datasets(wide, folder), lambda order: read_webdataset(tar, len(order)))
    readers: dict[str, Callable[[Sequence[int]], int]] = {
        "Graph.read": lambda order: read_graph(graph, order),
        **dict(zip(READERS, peers, strict=True)),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        order = np.random.default_rng(number).permutation(rows)[:48].tolist()
        for name, reader in readers.items():
            took = seconds(lambda reader=reader, order=order: reader(order)).clock
            if number:
                rates[name].append(len(order) * USED / took)
    print(f"(b) {rows} rows of {len(KINDS)} pictures, {USED} used, {rounds} rounds of 48 rows, one process")
    for name, values in rates.items():
        ratios = [ours / other for ours, other in zip(rates["Graph.read"], values, strict=True)]
        print(
            f"{name:32s} {statistics.median(values):6.0f} used pictures/s; Graph.read is {spread(ratios)} times as fast"
        )
        if name in READERS:
            mine, theirs = (statistics.median(rates[side]) for side in ("Graph.read", name))
            middle = statistics.median(ratios)
            record(
                f"rows of pictures, peer {name}", ours=mine, peer=theirs, unit="pictures/s", ratio=middle,
                limit=READERS[name],
            )  # fmt: skip


def read_graph(graph: Graph, order: Sequence[int]) -> int:
    """Another 3 kinds for each row, as paths would ask."""
    return sum(
        graph.read(item_ix, KINDS[(item_ix + at) % len(KINDS)]).array().shape[0]
        for item_ix in order
        for at in range(USED)
    )


def read_datasets(wide: Path, folder: Path) -> Callable[[Sequence[int]], int]:
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("parquet", data_files=str(wide), split="train", cache_dir=str(folder / "hf"))
    assert isinstance(table.features["image"], datasets.Image)

    def read(order: Sequence[int]) -> int:
        total = 0
        for item_ix in order:
            row = table[item_ix]
            total += sum(np.asarray(row[KINDS[(item_ix + at) % len(KINDS)]]).shape[0] for at in range(USED))
        return total

    return read


def read_webdataset(tar: Path, count: int) -> int:
    import webdataset

    total = 0
    for number, sample in enumerate(webdataset.WebDataset(str(tar), shardshuffle=False).shuffle(100)):
        if number == count:
            break
        for at in range(USED):
            data = sample[KINDS[(number + at) % len(KINDS)]]
            total += cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB).shape[0]
    return total


def write_wide(graph: Graph, folder: Path, rows: int) -> Path:
    """One Parquet file, a struct<bytes, path> column a kind, as `datasets` writes it (row groups of 100)."""
    import datasets

    features = datasets.Features({kind: datasets.Image() for kind in KINDS})
    columns = {kind: [{"bytes": graph.read(at, kind).bytes, "path": None} for at in range(rows)] for kind in KINDS}
    table = datasets.Dataset.from_dict(columns, features=features)
    datasets.disable_progress_bars()
    table.to_parquet(folder / "wide.parquet", batch_size=100)
    return folder / "wide.parquet"


def write_tar(graph: Graph, folder: Path, rows: int) -> Path:
    with tarfile.open(folder / "wide.tar", "w") as tar:
        for item_ix in range(rows):
            for kind in KINDS:
                data = graph.read(item_ix, kind).bytes
                info = tarfile.TarInfo(f"{item_ix:06d}.{kind}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
    return folder / "wide.tar"


# ---- (c) large photographs ----------------------------------------------------------------------------------------


def fast_against_exact(rounds: int) -> None:
    for width, height in ((512, 512), (4000, 3000)):
        photos = [cv2.resize(crop, (width, height), interpolation=cv2.INTER_CUBIC) for crop in crops(6)]
        nodes = [Node(0, "image", 0, "", CODECS["jpeg"].encode(photo).data, "jpeg", "source") for photo in photos]
        took: dict[str, list[float]] = {"exact": [], "fast": []}
        for _ in range(rounds):
            for name, times in took.items():
                switches = CellConfig(decode=name)
                (frame,) = frames(1, lambda row: (384, 384), 384, switches, squares=True)
                times.append(seconds(lambda frame=frame, nodes=nodes: paint(frame, nodes)).clock)
        ratios = [exact / fast for exact, fast in zip(took["exact"], took["fast"], strict=True)]
        exact = statistics.median(took["exact"]) / len(nodes) * 1e3
        print(f"(c) a cell of a {width} x {height} JPEG: exact {exact:.1f} ms; fast is {spread(ratios)} times as fast")


def paint(frame: Frame, nodes: Sequence[Node]) -> None:
    for node in nodes:
        frame.paint(node, np.empty((384, 384, 3), np.uint8))


def seconds(run: Callable[[], Any]) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


if __name__ == "__main__":
    main()
