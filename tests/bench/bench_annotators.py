"""Each annotator with a model, in a graph against a plain loop over the same nodes.

`python tests/bench/bench_annotators.py [NAME ...] [--items 24] [--rounds 3] [--cost 60]`: tiny random networks, made
to cost about as much as a small real one on a CPU by the resolution they work at (`ms a request` says what they cost in
the loop), one thread on every side.

- loop: for each item decode its parents' bytes, `annotate` in the same micro-batches, encode, write to one file;
- ours: `run([annotator], executor="inline")` over a graph that holds the parents in one shard: the unit's seconds,
  which are reading with hashes checked, annotating, encoding, hashing, writing parts and the commit. What a run costs
  besides, whatever its size (planning, head, snapshot, card), is printed as `+ ms a run`.

Both have loaded the model before the clock starts. Sides take turns; a ratio is taken inside one round: loop seconds
over ours, 1 being as fast as the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2
import torch
from rich.console import Console

from graphbuild.annotators.base import Annotator, Derived, Each, Request, Resources, makes_of, name_of, needs_of
from graphbuild.contracts import Item
from graphbuild.engine import worker as job
from graphbuild.engine.micro_batches import Loaded
from graphbuild.engine.run import run
from graphbuild.hashing import seed_of
from graphbuild.images.codecs import CODECS
from graphbuild.images.node import Node
from graphbuild.sources import resolve as source
from graphbuild.store.graph import Graph
from tests.support.benchmarks import record
from tests.support.everything import tiny_annotators, write_pairs

BATCH = 4
SIDE = 256
CHEAP = {"canny", "style_picker"}
QUIET = Console(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Annotators against a plain loop.")
    parser.add_argument("names", nargs="*", help="annotators; default all with a model")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cost", type=float, default=60.0, help="least milliseconds a request")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pairs = write_pairs(root / "pairs", asked.items, SIDE)
        annotators = [replace(a, resources=Resources(batch_size=BATCH)) for a in tiny_annotators(root / "weights")]
        whole = root / "whole"
        run(source("subjects200k", path=str(pairs)), annotators, whole, executor="inline", console=QUIET,
            shard_size=asked.items)  # fmt: skip
        print(f"{'annotator':18} {'ms a request':>12}  loop / ours (lowest..highest)  + ms a run")
        for annotator in annotators:
            if name_of(annotator) in (asked.names or {name_of(a) for a in annotators} - CHEAP):
                compare(annotator, pairs, whole, root, asked)


def compare(annotator: Annotator, pairs: Path, whole: Path, root: Path, asked: Any) -> None:
    """Print one line."""
    graph = Graph.open(whole)
    annotator, loaded = costly(annotator, graph, asked.cost)
    requests = requests_of(annotator, graph)
    ratios, cost, besides = [], 0.0, []
    for number in range(asked.rounds):
        seconds = {"loop": 0.0, "ours": 0.0}
        for side in ("loop", "ours") if number % 2 else ("ours", "loop"):
            if side == "loop":
                seconds[side] = loop(annotator, requests, loaded, root / "loop.bin")
            else:
                seconds[side], whole_run = ours(annotator, pairs, whole, root / "ours", loaded)
                besides.append(whole_run - seconds[side])
        ratios.append(seconds["loop"] / seconds["ours"])
        cost = seconds["loop"] / len(requests) * 1000
    middle = statistics.median(ratios)
    shown = f"{middle:.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
    print(f"{name_of(annotator):18} {cost:12.0f}  {shown:30} {1000 * statistics.median(besides):.0f}", flush=True)
    record(f"{name_of(annotator)}, peer loop", ours=cost / middle, peer=cost, unit="ms", ratio=middle, limit=0.7)


def costly(annotator: Annotator, graph: Graph, least: float) -> tuple[Annotator, Any]:
    """The annotator at a resolution, or with a number of steps, at which a request takes `least` ms; and its model."""
    dials = {f.name for f in fields(annotator)} & {"resolution", "steps", "max_new_tokens", "points_per_side"}
    for _ in range(7):
        loaded = annotator.load("cpu")
        few = requests_of(annotator, graph)[:BATCH]
        annotator.annotate(few, loaded)
        started = time.perf_counter()
        annotator.annotate(few, loaded)
        spent = (time.perf_counter() - started) / len(few) * 1000
        if spent >= least or not dials:
            return annotator, loaded
        dial = next(name for name in ("steps", "points_per_side", "resolution", "max_new_tokens") if name in dials)
        annotator = replace(annotator, **{dial: 2 * getattr(annotator, dial)})
    return annotator, loaded


def requests_of(annotator: Annotator, graph: Graph) -> list[Request]:
    """What the framework would ask, with parents as they are stored."""
    variants = max(graph.unit_commits(name_of(annotator), live(annotator, graph))[0].document.variants.values())
    asked = []
    for item, row in enumerate(graph.items().select(list(Item._fields)).to_pylist()):
        facts = Item(**row)
        for variant in range(variants):
            inputs = {
                name: graph.read(item, need.kind if isinstance(need, Each) else need,
                                 variant=variant if isinstance(need, Each) else 0)
                for name, need in needs_of(annotator).items()
            }  # fmt: skip
            asked.append(Request(facts, inputs, variant, seed_of("bench", facts.item_id, variant)))
    return asked


def live(annotator: Annotator, graph: Graph) -> str:
    return graph.head[next(iter(makes_of(annotator).values())).name].version


def loop(annotator: Annotator, requests: list[Request], loaded: Any, file: Path) -> float:
    """Seconds of the plain loop."""
    codecs = {name: CODECS[annotator.codec(kind)] for name, kind in makes_of(annotator).items()}
    started = time.perf_counter()
    with file.open("wb") as out:
        for start in range(0, len(requests), BATCH):
            batch = [fresh(request) for request in requests[start : start + BATCH]]
            for result in annotator.annotate(batch, loaded):
                assert isinstance(result, Derived), result
                for name, value in result.nodes.items():
                    out.write(codecs[name].encode(value).data)
    return time.perf_counter() - started


def fresh(request: Request) -> Request:
    """The request with nothing decoded yet."""
    nodes = {
        name: Node(n.item_ix, n.kind, n.variant, n.version, n.bytes, n.format, n.codec, n.attrs)
        for name, n in request.inputs.items()
    }
    return replace(request, inputs=nodes)


def ours(annotator: Annotator, pairs: Path, whole: Path, out: Path, loaded: Any) -> tuple[float, float]:
    """Seconds of its unit, and of the whole run, which has only this annotator to do."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    shutil.rmtree(out / "edges" / f"annotator={name_of(annotator)}")
    keep_parents(annotator, out)
    load = job.Worker.loaded

    def at_hand(worker: job.Worker, task: Any) -> Loaded:
        return worker._loaded.setdefault(task.producer.version, Loaded(loaded, BATCH))

    job.Worker.loaded = at_hand  # type: ignore[method-assign]
    try:
        started = time.perf_counter()
        report = run(source("subjects200k", path=str(pairs)), [annotator], out, executor="inline", console=QUIET)
        spent = time.perf_counter() - started
    finally:
        job.Worker.loaded = load  # type: ignore[method-assign]
    done = report.annotators[name_of(annotator)]
    assert done.ok and not report.units_left, report
    return done.seconds, spent


def keep_parents(annotator: Annotator, out: Path) -> None:
    """Leave only its parents live, so that nothing is rebuilt after it."""
    needed = {need.kind if isinstance(need, Each) else need for need in needs_of(annotator).values()}
    newest = max((out / "heads").iterdir())
    head = json.loads(newest.read_text())
    newest.write_text(
        json.dumps({k: v for k, v in head.items() if k in needed or v["annotator"].startswith("source:")})
    )


if __name__ == "__main__":
    main()
