"""Graphs of any size that exist on paper: a synthetic source, annotators that are never called, and their plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from graphbuild.annotators.base import Annotator, Derived, Request, Resources
from graphbuild.contracts import GraphDocument, Shard, SourceDocument, Unit
from graphbuild.engine.plan import Plan
from graphbuild.engine.records import AnnotateUnit, AnyUnit, IngestUnit, PlannedUnit
from graphbuild.engine.versions import bind, source_producer
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem

GPU = Resources(memory_gb=20)


@dataclass(frozen=True, kw_only=True)
class Paper(Annotator):
    """Plans as any annotator does."""

    item_facts: ClassVar[tuple[str, ...]] = ()

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        raise AssertionError("nothing is annotated on paper")


def paper(name: str, needs: Sequence[str] = ("image",), resources: Resources = Resources()) -> Annotator:
    """An annotator `name` that makes a kind of its own, `made_<name>`."""
    kind = Kind(name=f"made_{name}", family="condition", codec="png1", description="on paper")
    made: Any = type(name.title(), (Paper,), {"needs": tuple(needs), "makes": (kind,), "__module__": __name__})
    annotator: Annotator = dataclass(frozen=True, kw_only=True)(made)(resources=resources)
    return annotator


def fifty() -> list[Annotator]:
    """49 annotators, so that with the source's there are 50 kinds: 14 on CPUs, 35 with networks, three deep."""
    first = [paper(f"a{n:02d}", resources=GPU if n % 4 else Resources()) for n in range(25)]
    second = [paper(f"b{n:02d}", (f"made_a{n:02d}",), GPU if n % 4 else Resources()) for n in range(15)]
    third = [paper(f"c{n:02d}", ("image", f"made_b{n:02d}"), GPU if n % 4 else Resources()) for n in range(9)]
    return [*first, *second, *third]


@dataclass(frozen=True, kw_only=True)
class PaperSource(Source):
    """Lists `count` items."""

    name: ClassVar[str] = "paper"
    count: Any = field(default=0, metadata={"output": False})

    def entries(self) -> Sequence[Entry]:
        return [*self.listed()]

    def listed(self) -> Iterator[Entry]:
        """One entry after the other."""
        return (Entry(f"photos/{ix:09d}.jpg", "12345-1700000000000000000") for ix in range(self.count))

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        raise AssertionError("nothing is read on paper")


def plan_of(annotators: Sequence[Annotator], num_shards: int, shard_size: int = 1024) -> Plan:
    """Every unit of a new graph."""
    source = PaperSource()
    first = source_producer(source)
    bound = bind(annotators, [first], {}, lambda kind, live: 1)
    shards = [Shard(index=n, start=n * shard_size, stop=(n + 1) * shard_size) for n in range(num_shards)]
    works: list[AnyUnit] = [
        IngestUnit(source=source, producer=first, unit=_unit(first, shard), revision=0, entries=()) for shard in shards
    ]
    for producer, annotator in bound:
        works += [
            AnnotateUnit(annotator=annotator, producer=producer, unit=_unit(producer, shard), revision=0)
            for shard in shards
        ]
    return Plan(
        document=GraphDocument(source=SourceDocument(name="paper", params={}), shard_size=shard_size),
        head={},
        producers=(first, *(producer for producer, _ in bound)),
        units=tuple(PlannedUnit(work, "missing", shard_size) for work in works),
        wanted=len(works),
        num_items=num_shards * shard_size,
        retriable=0,
        vanished=0,
    )


def _unit(producer: Any, shard: Shard) -> Unit:
    return Unit(annotator=producer.name, version=producer.version, shard=shard)


def reports_of(units: Sequence[AnyUnit], status: str = "committed", **facts: Any) -> list[Any]:
    """What a worker would say of these units."""
    from graphbuild.engine.records import UnitReport

    return [UnitReport(unit=work.unit, revision=work.revision, status=status, **facts) for work in units]


def names(job: Any) -> Mapping[str, int]:
    """Annotator -> first item of what a job does of it."""
    return {work.producer.name: work.unit.shard.start for work in job.units}
