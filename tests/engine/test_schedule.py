"""Which job comes next: parents before children, shard by shard, long units in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphbuild.annotators.base import Resources
from graphbuild.contracts import RunReport
from graphbuild.engine.executors.ray import _Driver
from graphbuild.engine.records import AnnotateUnit, Job, UnitReport
from graphbuild.engine.schedule import FIRST_ROWS, PART_SECONDS, Schedule
from tests.support.annotators import BatchOrdered, Styles, build, calls, leftovers, tree
from tests.support.scale import GPU, paper, plan_of

CHAIN = [paper("a"), paper("b", ("made_a",), GPU), paper("c", ("made_b",))]


def done(job: Job, status: str = "committed", **facts: Any) -> list[UnitReport]:
    return [UnitReport(unit=work.unit, revision=0, status=status, **facts) for work in job.units]


def take(schedule: Schedule, pool: str | None = None) -> Job:
    job = schedule.next_job(pool)
    assert job is not None
    return job


def named(job: Job) -> str:
    return " ".join(f"{work.producer.name}{work.unit.shard.index}" for work in job.units)


def test_jobs_come_shard_by_shard_and_after_their_parents() -> None:
    """Guards against a child that starts before its parent, and against a shard whose pictures are read again later."""
    schedule = Schedule(plan_of(CHAIN, 2))
    order = []
    while job := schedule.next_job():
        order.append(named(job))
        schedule.finish(job, done(job))
    assert order == ["source:paper0", "a0", "b0", "c0", "source:paper1", "a1", "b1", "c1"]
    assert not schedule.unfinished and schedule.left == []


def test_a_pool_gets_its_first_shards_first() -> None:
    """Guards against released units that go to the end: the pages of their parents would be cold."""
    schedule = Schedule(plan_of(CHAIN, 3))
    sources = [take(schedule, "cpu") for _ in range(3)]
    assert schedule.next_job("cpu") is None and schedule.waiting_pools() == {}
    for job in reversed(sources):
        schedule.finish(job, done(job))
    first = take(schedule, "cpu")
    schedule.put_back(first)
    assert [named(take(schedule, "cpu")) for _ in range(3)] == ["a0", "a1", "a2"] and named(first) == "a0"


def test_what_is_lost_takes_its_descendants_and_nothing_else() -> None:
    """Guards against a run that waits for ever for children of a failed unit, or drops those of another shard."""
    schedule = Schedule(plan_of(CHAIN, 2))
    while job := schedule.next_job():
        lost = named(job) == "a0"
        schedule.finish(job, done(job, "failed", error="gone", final=True) if lost else done(job))
    version = [unit.split()[0] + unit[-1] for unit in schedule.left]
    assert version == ["a0", "b0", "c0"] and schedule.errors == ["gone"] and len(schedule.reports) == 5


def test_a_stopped_annotator_takes_what_is_ready_and_what_waits() -> None:
    """Guards against units of a broken annotator that still start, and against `waiting_pools` that counts them."""
    schedule = Schedule(plan_of(CHAIN, 3))
    for job in [take(schedule) for _ in range(3)]:
        schedule.finish(job, done(job))
    job = take(schedule, "cpu")
    schedule.finish(job, done(job, computed=200, computed_failed=150, counts={"ok": 50}))
    assert list(schedule.waiting_pools().values()) == [1]  # b0, whose parent is committed
    while job := schedule.next_job():
        schedule.finish(job, done(job))
    assert [unit.split()[0] + unit[-1] for unit in schedule.left] == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_no_job_waits_behind_another() -> None:
    """Guards against a unit that was given to an actor with hours of work while another actor idles."""
    schedule = Schedule(plan_of(CHAIN, 2))
    node = SimpleNamespace(id="node", fault=lambda pool: None)
    busy = SimpleNamespace(worn=False, node=node, asked={"GPU": 0}, jobs={"running": take(schedule)})
    driver: Any = _Driver.__new__(_Driver)
    driver.schedule, driver._pools = schedule, {"cpu": [busy]}
    driver.nodes = SimpleNamespace(on_gpu=lambda asked: False, place=lambda *asked: None)
    driver._hand_out()
    assert len(busy.jobs) == 1 and [named(job) for job in parts(schedule)] == ["source:paper1"]


# ---- long units --------------------------------------------------------------------------------------------------


def ready(annotator: Any, pace: dict[str, float], size: int = 1024) -> Schedule:
    """A schedule of one shard whose source is committed."""
    schedule = Schedule(plan_of([annotator], 1, size), pace=pace)
    job = take(schedule)
    schedule.finish(job, done(job))
    return schedule


def parts(schedule: Schedule) -> list[Job]:
    found = []
    while job := schedule.next_job():
        found.append(job)
    return found


def ranges(jobs: Sequence[Job]) -> list[range | None]:
    return [work.part for job in jobs for work in job.units if isinstance(work, AnnotateUnit)]


def test_a_long_unit_is_divided_by_its_pace() -> None:
    """Guards against twelve hours of FLUX on one GPU while the others idle, parts that cut a micro-batch, and quick
    annotators that pay for parts."""
    slow = paper("s", resources=Resources(memory_gb=20, batch_size=8))
    assert ranges(parts(ready(slow, {"s": 3 * PART_SECONDS / 1000}, 1000))) == [
        range(0, 336), range(336, 672), range(672, 1000)
    ]  # fmt: skip
    assert len(ranges(parts(ready(slow, {})))) == 1024 // FIRST_ROWS  # a network of which nothing is known
    assert ranges(parts(ready(slow, {"s": 0.001}))) == [None]
    assert ranges(parts(ready(paper("q"), {}))) == [None]


def test_the_unit_is_committed_after_its_last_part() -> None:
    """Guards against a commit without some rows, parts made twice, and rows that are counted twice."""
    schedule = ready(paper("s"), {"s": PART_SECONDS / 512})
    one, two = parts(schedule)
    schedule.finish(two, done(two, "saved", computed=512, seconds=2.0))
    schedule.died(one, "a worker went", counts=True)
    again = take(schedule)
    (work,) = again.units
    assert ranges([again]) == [range(512)] and work.deaths == 1 and schedule.next_job() is None
    schedule.finish(again, done(again, "saved", computed=512, seconds=3.0))
    whole = take(schedule)
    (work,) = whole.units
    assert isinstance(work, AnnotateUnit) and work.gathers and work.part is None and work.deaths == 0
    schedule.finish(whole, done(whole, counts={"ok": 1024}))
    assert not schedule.unfinished
    assert (schedule.reports[-1].computed, schedule.reports[-1].seconds) == (1024, 5.0)


def test_a_lost_part_loses_its_unit_once() -> None:
    """Guards against other parts that go on for nothing, or a unit that is lost and then committed."""
    schedule = ready(paper("s"), {"s": PART_SECONDS / 256})
    one, two = take(schedule), take(schedule)
    schedule.finish(one, done(one, "failed", error="no", final=True))
    assert schedule.next_job() is None and not schedule.unfinished
    schedule.finish(two, done(two, "saved"))
    assert schedule.next_job() is None and len(schedule.left) == 1 and schedule.errors == ["no"]


def by_three(schedule: Schedule, make_worker: Callable[[], Any], progress: Any, finished: Any) -> None:
    """Three workers side by side; of what they hold, the last job ends first."""
    workers, held = [make_worker() for _ in range(3)], []
    while schedule.unfinished:
        while len(held) < len(workers) and (job := schedule.next_job()):
            held.append(job)
        job = held.pop()
        reports = workers[len(held)].run(job, progress)
        schedule.finish(job, reports)
        finished(job, reports)


def test_parts_give_the_bytes_of_the_whole(
    photos: Path, tmp_path: Path, control: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against rows that are lost between parts, come in another order, or are computed again at the commit."""
    tags = [control({"p03.png": "fail", "p04.jpg": "skip"}) for _ in range(2)]
    makers = [[Styles(), BatchOrdered(tag=tag)] for tag in tags]
    options: dict[str, Any] = {"shard_size": 18, "flush_s": 0.0}
    whole = build(photos, tmp_path / "whole", makers[0], **options)
    pace = {"styles": PART_SECONDS / 15, "batch_ordered": PART_SECONDS / 8}
    monkeypatch.setattr("graphbuild.engine.run.run_inline", by_three)
    monkeypatch.setattr("graphbuild.engine.run.Schedule", lambda plan, killed, _: Schedule(plan, killed, pace))
    divided = build(photos, tmp_path / "parts", makers[1], **options)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert sorted(calls(tags[1])) == sorted(calls(tags[0]))
    assert leftovers(tmp_path / "parts") == [] and _counts(divided) == _counts(whole)


def _counts(report: RunReport) -> Any:
    return {name: did.model_dump(exclude={"seconds", "annotate_seconds"}) for name, did in report.annotators.items()}
