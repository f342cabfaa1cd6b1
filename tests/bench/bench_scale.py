"""What a graph of 200 thousand, 10 million or 100 million items x 50 kinds costs: `python tests/bench/bench_scale.py`.

A simulator: the real planner and the real `Schedule`, on paper. Source, annotators and commits are synthetic
(`tests.support.scale`): a commit is a JSON document as it lies in a footer, parsed as from a file; no file is read or
written, and a clock stands for workers. `docs/scale.md` has the table and says what is extrapolated.

new: `make_plan` of a new graph from a listing. done: `make_plan` of the graph when all is committed. run: `Schedule`
from the first job to the last, on so many GPUs; a job takes its rows x SECONDS, and a GPU that changes to another
model loads it first. CPU seconds and memory are of one process; days are of the simulated clock.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import graphbuild.engine.plan as planner
from graphbuild.contracts import CommitDocument, CommitRef, Shard, Unit
from graphbuild.engine.new_items import ShardItems
from graphbuild.engine.plan import Plan, make_plan
from graphbuild.engine.records import AnnotateUnit, Job, Producer, UnitReport
from graphbuild.engine.schedule import SHARED, Schedule
from graphbuild.hashing import checksum
from graphbuild.store.commits import Commit
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import edges_name
from graphbuild.store.workspace import Workspace
from tests.support.scale import PaperSource, fifty, plan_of

SECONDS = {"cpu": 0.05, "network": 0.05, "vlm": 0.8, "diffusion": 6.0}
"""Stated, not measured: seconds for each row, of a 512-pixel source on one CPU or one GPU of the H100's class."""
LOAD_SECONDS = 60.0
CPUS_PER_GPU = 16
IMAGE_BYTES, MAP_BYTES = 93_000, 40_000
"""A picture as JPEG q95 and a map, 512 x 512: means of measured ones."""
PUT, GET, STORED, GPU_HOUR = 5e-6, 0.4e-6, 23e-12, 2.5
"""Dollars, list prices: of a PUT or LIST, of a GET, of a byte a month, of a GPU for an hour."""
BLOCK, LISTED = 8 << 20, 1000
"""Bytes of a read from an object store, and names in one answer of a listing."""


def sort_of(name: str) -> str:
    """What kind of work an annotator of `fifty` stands for: 6 diffusion models, 6 VLMs, 23 networks, 14 on CPUs."""
    number = int(name[1:])
    if not number % 4:
        return "cpu"
    return "diffusion" if name[0] == "c" else "vlm" if name[0] == "b" and number > 6 else "network"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--shard-size", type=int, default=1024)
    parser.add_argument("--gpus", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--steps", nargs="*", default=["new", "done", "run"], choices=["new", "done", "run"])
    args = parser.parse_args()
    num_shards = math.ceil(args.items / args.shard_size)
    print(
        f"{args.items} items x 50 kinds, {args.shard_size} items a shard: {num_shards} shards, {num_shards * 50} units"
    )
    if "new" in args.steps:
        print_cost("new ", lambda: new(args.items, args.shard_size))
    if "done" in args.steps:
        print_cost("done", lambda: done(num_shards, args.shard_size))
    if "run" in args.steps:
        for gpus in args.gpus:
            print_cost("run ", lambda gpus=gpus: run(num_shards, args.shard_size, gpus))
    bill(args.items, args.shard_size, num_shards)


def print_cost(name: str, step: Callable[[], str]) -> None:
    gc.collect()
    started = time.process_time()
    said = step()
    took, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name} {took:8.1f} CPU s, {peak:6.0f} MB at most so far; {said}", flush=True)


kept: list[Any] = []
"""What a step made, so that its memory is not given back before the step ends."""


# ---- planning --------------------------------------------------------------------------------------------------


def new(items: int, shard_size: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(files_at(folder), PaperSource(count=items), fifty(), shard_size=shard_size, here=False)
    kept[:] = [plan]
    return f"{len(plan.units)} units planned, {items} entries held"


def done(num_shards: int, shard_size: int) -> str:
    paper = plan_of(fifty(), 1, shard_size)
    texts = {(p.name, p.version): _commit_text(p, shard_size) for p in paper.producers}
    shards = [Shard(index=n, start=n * shard_size, stop=(n + 1) * shard_size) for n in range(num_shards)]
    names = {
        version: [edges_name(Unit(annotator=version[0], version=version[1], shard=shard), 0) for shard in shards]
        for version in texts
    }

    def read(name: str) -> Commit:
        folder, version, file = name.split("/")[1:]
        producer = (folder.removeprefix("annotator="), version.removeprefix("version="))
        index = int(file.split("-")[1].split(".")[0])
        shard = {"index": index, "start": index * shard_size, "stop": (index + 1) * shard_size}
        text = texts[producer].replace('"SHARD"', json.dumps(shard)).replace('"INDEX"', str(index))
        ref = CommitRef(
            annotator=producer[0], version=producer[1], shard=index, revision=0, checksum=checksum(text.encode())
        )
        return Commit(name, ref, CommitDocument.model_validate_json(text))

    real = planner.newest_commits, planner.read_commits, planner.published_shards
    planner.newest_commits = lambda files: names
    planner.read_commits = lambda files, names: [read(name) for name in names]
    planner.published_shards = lambda files: [ShardItems(shard, shard_size) for shard in shards]
    try:
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(_graph(folder, paper), None, fifty(), here=False)
    finally:
        planner.newest_commits, planner.read_commits, planner.published_shards = real
    kept[:] = [plan]
    assert not plan.units and plan.wanted == num_shards * (len(texts) - 1), plan.reasons()  # all but the source
    return f"{num_shards * len(texts)} commits read, nothing to do"


def _graph(folder: str, paper: Plan) -> Any:
    files = files_at(folder)
    workspace = Workspace.create(files, "paper")
    files.publish("graph.json", paper.document.model_dump_json().encode(), workspace)
    for producer in paper.producers:
        files.publish(f"lineage/{producer.version}.json", producer.lineage.model_dump_json().encode(), workspace)
    change_head(files, workspace, lambda old: paper.makes())
    return files


def _commit_text(producer: Producer, shard_size: int) -> str:
    kinds = list(producer.variants)
    parents = sorted({(live.annotator, live.version) for live in producer.parents.values()})
    part = {"name": "nodes/x", "kind": kinds[0], "rows": shard_size, "nbytes": 1, "checksum": "0" * 32}
    return json.dumps(
        {
            "unit": {"annotator": producer.name, "version": producer.version, "shard": "SHARD"},
            "revision": 0,
            "use": producer.use,
            "config": producer.config,
            "lineage": producer.lineage.model_dump(mode="json"),
            "variants": producer.variants,
            "parents": [
                {"annotator": name, "version": version, "shard": "INDEX", "revision": 0, "checksum": "0" * 32}
                for name, version in parents
            ],
            "parts": [part],
            "counts": {kind: {"ok": shard_size} for kind in kinds},
            "reasons": {kind: {} for kind in kinds},
            "rows_digest": "0" * 32,
        }
    )


# ---- running ---------------------------------------------------------------------------------------------------


@dataclass
class _Cluster:
    """Free CPUs, and for each free GPU the pool whose model it holds."""

    cpus: int
    gpus: list[str]
    loads: int = 0

    def take(self, schedule: Schedule) -> tuple[Job, float] | None:
        """A job that starts now and the seconds before it works; a GPU keeps its model while that has jobs."""
        waiting = schedule.waiting_pools()
        if waiting.pop(SHARED, 0) and self.cpus:
            self.cpus -= 1
            job = schedule.next_job(SHARED)
            return (job, 0.0) if job else None
        if not self.gpus or not waiting:
            return None
        held = next((pool for pool in self.gpus if pool in waiting), None)
        pool = held or max(waiting, key=lambda name: waiting[name])
        self.gpus.remove(held or self.gpus[0])
        self.loads += held is None
        job = schedule.next_job(pool)
        return (job, 0.0 if held else LOAD_SECONDS) if job else None

    def give(self, job: Job) -> None:
        if job.pool == SHARED:
            self.cpus += 1
        else:
            self.gpus.append(job.pool)


def run(num_shards: int, shard_size: int, gpus: int) -> str:
    plan = plan_of(fifty(), num_shards, shard_size)
    kept[:] = [plan]
    schedule, cluster = Schedule(plan, pace={}), _Cluster(CPUS_PER_GPU * gpus, [""] * gpus)
    kept.append(schedule)
    running: list[tuple[float, int, Job]] = []
    clock, busy, jobs = 0.0, 0.0, 0
    while schedule.unfinished:
        while taken := cluster.take(schedule):
            job, wait = taken
            seconds = sum(map(seconds_of, job.units))
            busy += seconds * (job.pool != SHARED)
            jobs += 1
            heapq.heappush(running, (clock + wait + seconds, jobs, job))
        clock, _, job = heapq.heappop(running)
        cluster.give(job)
        schedule.finish(job, [report_of(work) for work in job.units])
    assert not schedule.left
    return (
        f"{jobs} jobs on {gpus} GPUs: {clock / 86400:.1f} days, GPUs busy {busy / clock / gpus:.1%}, "
        f"{cluster.loads} models loaded"
    )


def rows_of(work: Any) -> int:
    part = work.part if isinstance(work, AnnotateUnit) else None
    gathers = isinstance(work, AnnotateUnit) and work.gathers
    return 0 if gathers else len(part) if part else work.unit.shard.stop - work.unit.shard.start


def seconds_of(work: Any) -> float:
    """A second for what a unit costs besides its rows."""
    sort = sort_of(work.producer.name) if isinstance(work, AnnotateUnit) else "cpu"
    return 1.0 + rows_of(work) * SECONDS[sort]


def report_of(work: Any) -> UnitReport:
    rows, saved = rows_of(work), isinstance(work, AnnotateUnit) and work.part is not None
    return UnitReport(
        unit=work.unit,
        revision=0,
        status="saved" if saved else "committed",
        computed=rows,
        annotate_seconds=seconds_of(work),
        counts={"ok": rows},
    )


# ---- requests, bytes, money ------------------------------------------------------------------------------------


def bill(items: int, shard_size: int, num_shards: int) -> None:
    """A graph in an object store, counted: parts by 512 MB, one edges part a unit, blocks of the parents read once."""
    sorts = Counter(sort_of(annotator_name(annotator)) for annotator in fifty())
    pictures = 1 + sorts["diffusion"] + sorts["vlm"]
    nbytes = items * (pictures * IMAGE_BYTES + (50 - pictures) * MAP_BYTES)
    units = num_shards * 50
    parts = units * math.ceil(shard_size * IMAGE_BYTES / 512e6)
    flushes = items * sum(count * SECONDS[sort] for sort, count in sorts.items()) / 60
    puts = units + parts + flushes
    gets = 4 * units + items * 1.2 * 49 * IMAGE_BYTES / BLOCK
    lists = math.ceil((units + parts + num_shards) / LISTED)
    gpu_hours = items * sum(count * SECONDS[sort] for sort, count in sorts.items() if sort != "cpu") / 3600
    dollars: Mapping[str, float] = {
        "requests": puts * PUT + gets * GET,
        "a month of storage": nbytes * STORED,
        "GPUs": gpu_hours * GPU_HOUR,
    }
    print(f"bill {nbytes / 1e12:.2f} TB; {puts:.3g} PUTs, {gets:.3g} GETs; a full listing {lists} requests")
    print(f"     {gpu_hours:.3g} GPU hours; " + ", ".join(f"{what} ${cost:,.0f}" for what, cost in dollars.items()))


def annotator_name(annotator: Any) -> str:
    return type(annotator).__name__.lower()


if __name__ == "__main__":
    main()
