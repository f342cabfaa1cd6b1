"""Items per second of a build with two Ray workers against a plain loop and against Ray Data.

`python tests/bench/bench_build.py`: 512x512 photos -> canny + lines, decoded, annotated and encoded by the same
library functions on every side, one cv2 thread a worker, two workers:

- ours: `run(Folder, [Canny(), Lsd()], executor="ray")`; once from photos (the source unit included: hash, check,
  perceptual hash, stored bytes), once the annotators alone over a graph that already holds the photos;
- loop: two processes, each with every second photo, the encoded bytes written to one file a process;
- Ray Data: `read_binary_files`, `map_batches` over whole blocks, `write_parquet`.

What is counted is the steady state. A span is a job (ours, from the run's events), a block (Ray Data) or a chunk of
photos (loop); each counts from the end of its worker's span before it, so that waiting and writing in between are
counted, while a worker's first span, with starting, importing and warming up, is not. Seconds an item = seconds over
items of the ingest spans + the same of the annotate spans; items/s = workers over that. Planning, starting Ray and
the uneven end are left out on every side.

Sides take turns; each ratio is taken inside one round. Ray is down while the loop runs. On a machine with other work
these ratios scatter by tens of percent. `in annotators` then says more: the share of worker time spent decoding and
annotating, which other work slows down as much as the rest. The quotient of two shares (`by share`) is the ratio of
what is left for annotators. It counts nothing of what makes them faster: workers keep freed memory, which a plain loop
gives back to the kernel after each picture and gets anew. And it leaves out what Ray's daemons and the driver take from
the workers: about 1 % of two cores.

Large sources have shards of 1,024 photos; 4,096 photos have shards of 512, where what a unit costs once hardly counts.
Three rounds take 17 minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# Set before Ray starts, so that its workers see the same.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from graphbuild.annotators.base import Derived, Request
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.lsd import Lsd
from graphbuild.contracts import Item
from graphbuild.engine.run import run
from graphbuild.images.codecs import CODECS
from graphbuild.images.decode import decode_image
from graphbuild.images.node import Node
from graphbuild.sources.folder import Folder
from graphbuild.sources.sample import Sample
from tests.support.benchmarks import record

NUM_WORKERS = 2
SIDE = 512
NUM_BLOCKS = 16
WARM_UP = 4
CHUNK = 25
TOLERANCE = 0.03
"""Seconds by which the driver's clock may set events of one worker apart."""


class Span(NamedTuple):
    """Work of one worker without a break: one step over some items."""

    start: float
    stop: float
    items: int
    step: str = "annotate"


class Measured(NamedTuple):
    """Items per second, and seconds an item inside annotators."""

    rate: float
    inside: float

    @property
    def share(self) -> float:
        """The share of worker time inside annotators."""
        return self.inside * self.rate / NUM_WORKERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="96 photos, one round")
    parser.add_argument("--photos", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", action="append", choices=list(SIDES), help="only this side; may be given again")
    args = parser.parse_args()
    num_photos, rounds = (96, 1) if args.quick else (args.photos, args.rounds)
    folder = Path(tempfile.mkdtemp(prefix="graphbuild-bench-"))
    os.environ["GRAPHBUILD_CACHE"] = str(folder / "cache")
    try:
        photos = write_photos(folder / "photos", num_photos)
        results = measure(photos, folder, rounds, args.side or list(SIDES))
    finally:
        shutil.rmtree(folder)
    show(results, num_photos)


def measure(photos: Path, folder: Path, rounds: int, names: Sequence[str]) -> dict[str, list[Measured]]:
    """Every side once a round, in an order that moves on by one each round."""
    results: dict[str, list[Measured]] = defaultdict(list)
    for number in range(rounds):
        start = number % len(names)
        for name in [*names[start:], *names[:start]]:
            out = folder / "out"
            results[name].append(SIDES[name](photos, out))
            shutil.rmtree(out)
    return results


def show(results: dict[str, list[Measured]], num_photos: int) -> None:
    rounds = max(map(len, results.values()))
    print(f"{num_photos} photos {SIDE}x{SIDE} -> canny + lines, {NUM_WORKERS} workers, {rounds} rounds")
    print(f"{'side':24s} {'items/s':>8s} {'min':>8s} {'max':>8s} {'in annotators':>14s}")
    for name, runs in results.items():
        rates = [run.rate for run in runs]
        share = statistics.median(run.share for run in runs)
        print(f"{name:24s} {statistics.median(rates):8.2f} {min(rates):8.2f} {max(rates):8.2f} {share:14.3f}")
    for ours in (name for name in results if name.startswith("ours")):
        for other in (name for name in results if not name.startswith("ours")):
            pairs = list(zip(results[ours], results[other], strict=True))
            ratios, shares = [a.rate / b.rate for a, b in pairs], [a.share / b.share for a, b in pairs]
            spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
            by_share = f"by share {statistics.median(shares):.3f} ({min(shares):.3f}..{max(shares):.3f})"
            print(f"ratio {ours} / {other}: {statistics.median(ratios):.3f} ({spread}), {by_share}")
            mine, peer = (statistics.median(run.rate for run in results[name]) for name in (ours, other))
            middle = statistics.median(ratios)
            record(f"{ours}, peer {other}", ours=mine, peer=peer, unit="items/s", ratio=middle, limit=0.5)


def write_photos(folder: Path, count: int) -> Path:
    """Square crops of the photographs that scikit-image carries, of random place and size, as JPEG q92."""
    folder.mkdir()
    source = Sample()
    items = source.read([entry.key for entry in source.entries()])
    pictures = [decode_image(item.original, Path(item.key).suffix) for item in items if item.original]
    pictures = [picture[:, :, ::-1] for picture in pictures if min(picture.shape[:2]) >= 256]
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = pictures[number % len(pictures)]
        height, width = picture.shape[:2]
        side = int(rng.integers(min(height, width) * 3 // 5, min(height, width) + 1))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        how = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
        crop = cv2.resize(picture[top : top + side, left : left + side], (SIDE, SIDE), interpolation=how)
        cv2.imwrite(str(folder / f"photo-{number:05d}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


# ---- what is counted -------------------------------------------------------------------------------------------


def rate_of(lanes: Sequence[Sequence[Span]]) -> float:
    """Items per second of all workers together, from the spans of each in order."""
    seconds, items = Counter[str](), Counter[str]()
    for lane in lanes:
        for before, span in pairwise(lane):
            seconds[span.step] += span.stop - before.stop
            items[span.step] += span.items
    return len(lanes) / sum(seconds[step] / items[step] for step in seconds)


def lanes_of(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans of each worker. A worker takes its next one at once, so that shows whose it is."""
    lanes: list[list[Span]] = []
    for span in sorted(spans):
        resting = [lane for lane in lanes if lane[-1].stop <= span.start + TOLERANCE]
        lane = max(resting or lanes, key=lambda lane: lane[-1].stop, default=[])
        if len(lanes) < NUM_WORKERS and not (resting and lane[-1].stop > span.start - TOLERANCE):
            lanes.append([span])
        else:
            lane.append(span)
    return lanes


def spans_of_run(out: Path, run_id: str) -> list[Span]:
    """The jobs of a run from its events: one per shard and step."""
    jobs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in (out / "runs" / run_id / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        step = "ingest" if event["unit"].startswith("source:") else "annotate"
        jobs[event["unit"].rpartition(" ")[2], step].append(event)
    spans = []
    for (_, step), events in jobs.items():
        stop = min(datetime.fromisoformat(event["at"]).timestamp() for event in events)
        start = stop - sum(event["seconds"] for event in events)
        spans.append(Span(start, stop, events[0]["computed"], step))
    return spans


# ---- ours ------------------------------------------------------------------------------------------------------


def ours_from_photos(photos: Path, out: Path) -> Measured:
    with ray_with_two_cpus():
        return _run(photos, out)


def ours_annotators(photos: Path, out: Path) -> Measured:
    run(Folder(path=str(photos)), [], out, executor="inline", console=Console(quiet=True))
    with ray_with_two_cpus():
        return _run(photos, out)


def _run(photos: Path, out: Path) -> Measured:
    report = run(Folder(path=str(photos)), [Canny(), Lsd()], out, executor="ray", console=Console(quiet=True))
    if report.units_left or report.errors:
        raise RuntimeError(f"{report.units_left} left: {report.errors}")
    lanes = lanes_of(spans_of_run(out, report.run_id))
    inside = sum(annotator.annotate_seconds for annotator in report.annotators.values())
    return Measured(rate_of(lanes), inside / len(os.listdir(photos)))


@contextmanager
def ray_with_two_cpus() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=NUM_WORKERS,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


# ---- the work itself, for the peers -----------------------------------------------------------------------------


def annotated(data: bytes) -> tuple[list[bytes | None], float]:
    """One photo to its encoded canny and lines, None where the annotator skips; and the seconds inside annotators."""
    node = Node(0, "image", 0, "", data, "jpeg", "source")
    request = Request(Item(0, "", "", None, None, None, None, None), {"image": node}, 0, 0)
    made, inside = [], 0.0
    for annotator, kind in ((Canny(), "canny"), (Lsd(), "lines")):
        started = time.perf_counter()
        result = annotator.annotate([request], None)[0]
        inside += time.perf_counter() - started
        made.append(CODECS["png1"].encode(result.nodes[kind]).data if isinstance(result, Derived) else None)
    return made, inside


def loop(photos: Path, out: Path) -> Measured:
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    barrier, spans = context.Barrier(NUM_WORKERS), context.Queue()
    paths = sorted(str(path) for path in photos.iterdir())
    processes = [
        context.Process(target=_loop, args=(paths[number::NUM_WORKERS], out / f"{number}.bin", barrier, spans))
        for number in range(NUM_WORKERS)
    ]
    for process in processes:
        process.start()
    lanes, inside = zip(*(spans.get(timeout=600) for _ in processes), strict=True)
    for process in processes:
        process.join()
    return Measured(rate_of(lanes), sum(inside) / len(paths))


def _loop(paths: Sequence[str], out: Path, barrier: Any, spans: Any) -> None:
    cv2.setNumThreads(1)
    for path in paths[:WARM_UP]:
        annotated(Path(path).read_bytes())
    barrier.wait()
    lane, seconds = [Span(0, time.time(), 0)], 0.0
    with open(out, "wb") as file:
        for at in range(0, len(paths), CHUNK):
            chunk = paths[at : at + CHUNK]
            for path in chunk:
                made, inside = annotated(Path(path).read_bytes())
                seconds += inside
                for data in made:
                    file.write(data or b"")
            lane.append(Span(lane[-1].stop, time.time(), len(chunk)))
    spans.put((lane, seconds))


def ray_data(photos: Path, out: Path) -> Measured:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray_with_two_cpus():
        files = ray.data.read_binary_files(str(photos), include_paths=True, override_num_blocks=NUM_BLOCKS)
        files.map_batches(_block, batch_size=None, batch_format="pyarrow").write_parquet(str(out))
    rows = pq.read_table(out, columns=["start", "stop", "inside"]).to_pylist()
    blocks = Counter((row["start"], row["stop"]) for row in rows)
    lanes = lanes_of([Span(start, stop, items) for (start, stop), items in blocks.items()])
    return Measured(rate_of(lanes), sum(row["inside"] for row in rows) / len(rows))


def _block(table: pa.Table) -> pa.Table:
    cv2.setNumThreads(1)
    start = time.time()
    made = [annotated(data) for data in table.column("bytes").to_pylist()]
    columns = {
        "path": table.column("path"),
        "canny": pa.array([canny for (canny, _), _ in made], pa.binary()),
        "lines": pa.array([lines for (_, lines), _ in made], pa.binary()),
        "inside": [inside for _, inside in made],
        "start": [start] * len(made),
        "stop": [time.time()] * len(made),
    }
    return pa.table(columns)


SIDES: dict[str, Callable[[Path, Path], Measured]] = {
    "ours, from photos": ours_from_photos,
    "loop": loop,
    "ours, annotators only": ours_annotators,
    "Ray Data": ray_data,
}


if __name__ == "__main__":
    main()
