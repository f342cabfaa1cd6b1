"""What a run would do, and why: wanted units against committed ones. Its cost grows with units, never with rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from graphbuild.annotators import recorded
from graphbuild.annotators.base import Annotator
from graphbuild.contracts import CommitDocument, GraphDocument, LineageDocument, Live, Shard, Unit
from graphbuild.engine.new_items import (
    Listed,
    ShardItems,
    compare,
    new_shards,
    published_shards,
    refuse_replaced,
    shard_size_for,
    with_revised,
)
from graphbuild.engine.preflight import (
    document_of,
    missing_parts,
    new_document,
    non_commercial,
    not_live,
    too_large,
    without_gpu,
)
from graphbuild.engine.records import AnnotateUnit, AnyUnit, IngestUnit, PlannedUnit, Producer
from graphbuild.engine.rows import items_behind, rows_of
from graphbuild.engine.versions import bind, refuse_missing, source_producer
from graphbuild.errors import GraphError, counted
from graphbuild.sources.base import Listing, Source
from graphbuild.store.commits import Commit, items_in, newest_spine, read_commit, read_commits
from graphbuild.store.files import Files
from graphbuild.store.heads import Head, lineages, newest_commits, past_lives, read_document, read_head, read_lineage
from graphbuild.store.parts import edges_name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run has to do. `units` are in dependency order; `wanted` counts committed ones as well; `notes` are
    what people should know before they start it."""

    document: GraphDocument
    head: Head
    producers: tuple[Producer, ...]
    units: tuple[PlannedUnit, ...]
    wanted: int
    num_items: int
    retriable: int
    vanished: int
    notes: tuple[str, ...] = ()
    passed: frozenset[Live] = frozenset()

    def reasons(self) -> dict[tuple[str, str], int]:
        """(annotator, why) -> units, in dependency order."""
        return dict(Counter((unit.work.producer.name, unit.why) for unit in self.units))

    def rows(self) -> dict[str, int]:
        """Annotator -> rows of its units, in dependency order."""
        rows: Counter[str] = Counter()
        for unit in self.units:
            rows[unit.work.producer.name] += unit.rows
        return dict(rows)

    def makes(self) -> dict[str, Live]:
        """Kind -> the version this plan builds of it."""
        return {kind: producer.live for producer in self.producers for kind in producer.variants}

    def replaces(self) -> dict[str, Live]:
        """Kind -> the version that replaces its live one when this plan is done: a version with work to do, or one that
        never went live because its run was killed. A version that `promote` replaced stays replaced."""
        other = {kind: live for kind, live in self.makes().items() if self.head.get(kind, live) != live}
        return {kind: live for kind, live in other.items() if live not in self.passed}

    def overruled_by(self, head: Head) -> dict[str, Live]:
        """Kind -> the version of `head`, where a `promote` since this plan was made went back to an earlier one."""
        now = {kind: head[kind] for kind in self.replaces() if head[kind] != self.head[kind]}
        return {kind: live for kind, live in now.items() if live in self.passed}


def make_plan(
    files: Files,
    source: Source | None,
    annotators: Sequence[Annotator],
    *,
    limit: int | None = None,
    shard_size: int | None = None,
    accept_changed: bool = False,
    retry: bool = False,
    new_items: bool = True,
    here: bool = True,
    reuse: str | None = None,
) -> Plan:
    """Compare what is wanted with what is committed. Writes nothing; opens no image unless a file's stamp changed.

    Args:
        source: None plans only for the items the graph already has.
        limit: take only the first items of the listing.
        retry: also plan units with failed rows that may succeed now.
        new_items: False leaves the graph the items it has; the source is only read again for those.
        here: the work is done on this machine, so that its memory counts.

    Raises:
        GraphError, ValueError: wrong usage; the message says what to change.
        MissingWeights: checkpoints, packages or memory that the work needs are not here; the message lists them all.
    """
    document = document_of(files, source, shard_size)
    planner = _Planner(files, read_head(files)[1], retry, reuse)
    published = published_shards(files)
    listing, listed = Listing(()), Listed()
    if source is not None and new_items:
        listing = source.listing()
        listed = compare(files, source, listing.entries, planner.items_parts(published), limit)
    if not accept_changed:
        refuse_replaced(listed.replaced)
    document = document or new_document(source, shard_size or shard_size_for(listed.count))
    shards = [*with_revised(published, listed.revised), *new_shards(published, listed, document.shard_size)]
    planned = planner.plan(source, annotators, shards)
    at_work = planner.at_work()
    refuse_missing([*missing_parts(at_work), *(too_large(at_work) if here else ())])
    passed = planner.passed()
    not_promoted = [producer for producer in planner.producers if producer.live in passed]
    return Plan(
        document=document,
        head=planner.head,
        producers=tuple(planner.producers),
        units=tuple(planner.units),
        wanted=len(planner.producers) * len(planned),
        num_items=sum(item.num_items for item in planned),
        retriable=planner.retriable,
        vanished=listed.vanished,
        passed=passed,
        notes=(
            *listing.notes,
            *listed.notes(),
            *not_live(files.url, planner.head, not_promoted),
            *non_commercial(at_work),
            *(without_gpu(at_work) if here else ()),
        ),
    )


class _Planner:
    def __init__(self, files: Files, head: Head, retry: bool, reuse: str | None) -> None:
        self.files, self.head, self.retry, self.reuse = files, head, retry, reuse
        self.producers: list[Producer] = []
        self.units: list[PlannedUnit] = []
        self.retriable = 0
        self._newest = newest_commits(files)
        self._commits: dict[tuple[str, str], dict[int, Commit]] = {}
        self._planned: set[tuple[str, str, int]] = set()
        self._facts_planned: set[int] = set()

    def plan(
        self, source: Source | None, annotators: Sequence[Annotator], shards: Sequence[ShardItems]
    ) -> Sequence[ShardItems]:
        """Plan every unit; returns the shards that can be planned for."""
        if source is None:
            shards = self._committed(shards)
        else:
            self._plan_source(source, shards)
        self._plan_annotators(annotators, shards)
        return shards

    def items_parts(self, shards: Sequence[ShardItems]) -> dict[int, str]:
        """Shard -> its items part."""
        return {item.shard.index: items_in(self._spine.get(item.shard.index), item.shard) for item in shards}

    def at_work(self) -> list[Annotator]:
        """The annotators that have units to run."""
        works = (unit.work for unit in self.units)
        return list(
            {work.producer.version: work.annotator for work in works if isinstance(work, AnnotateUnit)}.values()
        )

    def passed(self) -> frozenset[Live]:
        """Versions that were live once, and that this plan has no work for."""
        return frozenset(past_lives(self.files) - {unit.work.producer.live for unit in self.units})

    # ---- sources ---------------------------------------------------------------------------------------------

    def _plan_source(self, source: Source, shards: Sequence[ShardItems]) -> None:
        producer = source_producer(source)
        self.producers.append(producer)
        commits = self._unit_commits(producer.name, producer.version)
        for item in shards:
            commit = commits.get(item.shard.index)
            why = self._why_source(item, commit)
            if why is None:
                continue
            work = IngestUnit(
                source=source,
                producer=producer,
                unit=Unit(annotator=producer.name, version=producer.version, shard=item.shard),
                revision=commit.ref.revision + 1 if commit else 0,
                entries=item.entries,
                replaces=item.replaces,
                revised=item.revised,
                retry=self.retry,
            )
            whole = commit is None or any(counts.get("failed") for counts in commit.document.counts.values())
            self._add(work, why, item.num_items, only_facts=not whole)
            self._facts_planned |= {item.shard.index} if item.revised else set()

    def _why_source(self, item: ShardItems, commit: Commit | None) -> str | None:
        if commit is None:
            return "unfinished items" if item.entries is None else "new items"
        why = self._retry_reason(commit.document)
        return why or (
            f"facts changed ({len(item.revised)} item{'s' * (len(item.revised) != 1)})" if item.revised else None
        )

    @cached_property
    def _spine(self) -> dict[int, Commit]:
        """Shard -> the source commit that names its items."""
        found: dict[int, list[Commit]] = {}
        for annotator, version in self._newest:
            if annotator.startswith("source:"):
                for shard, commit in self._unit_commits(annotator, version).items():
                    found.setdefault(shard, []).append(commit)
        return {shard: newest for shard, commits in found.items() if (newest := newest_spine(commits))}

    def _committed(self, shards: Sequence[ShardItems]) -> list[ShardItems]:
        """The shards whose source unit is committed: all that can be planned for without the source."""
        name = "source:" + read_document(self.files).source.name
        versions = [version for annotator, version in self._newest if annotator == name]
        done = {index for version in versions for index in self._unit_commits(name, version)}
        return [item for item in shards if item.shard.index in done]

    # ---- annotators ------------------------------------------------------------------------------------------

    def _plan_annotators(self, annotators: Sequence[Annotator], shards: Sequence[ShardItems]) -> None:
        sources = list(self.producers)
        bound = bind(annotators, sources, self.head, self._variants, self._recorded, self._used)
        while descendants := self._replaced_descendants([producer for producer, _ in bound]):
            annotators = [*annotators, *descendants]
            bound = bind(annotators, sources, self.head, self._variants, self._recorded, self._used)
        for producer, annotator in bound:
            self.producers.append(producer)
            self._plan_annotator(producer, annotator, shards)

    def _plan_annotator(self, producer: Producer, annotator: Annotator, shards: Sequence[ShardItems]) -> None:
        commits = self._unit_commits(producer.name, producer.version)
        missing = self._why_missing(producer)
        sources = [Live(annotator=p.name, version=p.version) for p in self.producers if p.name.startswith("source:")]
        for item in shards:
            commit = commits.get(item.shard.index)
            work = AnnotateUnit(
                annotator=annotator,
                producer=_never_fewer_variants(producer, commit),
                unit=Unit(annotator=producer.name, version=producer.version, shard=item.shard),
                revision=commit.ref.revision + 1 if commit else 0,
                retry=self.retry,
                after=tuple(sources) if annotator.item_facts else (),
                reuse=self.reuse,
            )
            why = missing if commit is None else self._why_again(work, commit)
            if why is not None:
                self._add(work, why, item.num_items)

    def _why_missing(self, producer: Producer) -> str:
        old = {self.head[kind] for kind in producer.variants if kind in self.head}
        old -= {Live(annotator=producer.name, version=producer.version)}
        if not old:
            return "missing"
        live = min(old, key=lambda live: live.version)
        if live.annotator != producer.name:
            return f"replaces {live.annotator}"
        return "annotator changed: " + _difference(read_lineage(self.files, live.version), producer.lineage)

    def _why_again(self, work: AnnotateUnit, commit: Commit) -> str | None:
        more = [k for k, count in work.producer.variants.items() if count > commit.document.variants.get(k, 0)]
        if more:
            return f"more variants of {', '.join(more)}"
        if reason := self._retry_reason(commit.document):
            return reason
        shard = work.unit.shard.index
        parents = work.producer.parents.values()
        if any((live.annotator, live.version, shard) in self._planned for live in parents):
            return "parent changes"
        if work.annotator.item_facts and shard in self._facts_planned:
            return "facts change"
        if self._moved_on(work, commit):
            rows = rows_of(work, self.files)
            what = "facts" if rows.corrected else "parent"
            return f"{what} changed ({counted(len(rows.todo), 'row')})" if rows.todo else None
        return None

    def _moved_on(self, work: AnnotateUnit, commit: Commit) -> bool:
        """Whether a parent has other rows, or the items other facts, than the commit was made from; by footers."""
        shard = work.unit.shard
        bound = {(ref.annotator, ref.version): ref.revision for ref in commit.document.parents}
        for live in work.producer.parents.values():
            newest = self._unit_commits(live.annotator, live.version).get(shard.index)
            if newest is None:
                return False
            revision = bound.get((live.annotator, live.version))
            if revision is None or newest.document.rows_digest != self._rows_digest(live, shard, revision):
                return True
        if not work.annotator.item_facts:
            return False
        return items_in(self._spine.get(shard.index), shard) != items_behind(self.files, commit)

    def _rows_digest(self, live: Live, shard: Shard, revision: int) -> str:
        unit = Unit(annotator=live.annotator, version=live.version, shard=shard)
        newest = self._unit_commits(live.annotator, live.version)[shard.index]
        same = newest.ref.revision == revision
        return (newest if same else read_commit(self.files, edges_name(unit, revision))).document.rows_digest

    def _retry_reason(self, document: CommitDocument) -> str | None:
        retriable = document.retriable_rows
        self.retriable += retriable
        return f"retry of {counted(retriable, 'failed row')}" if self.retry and retriable else None

    def _replaced_descendants(self, producers: Sequence[Producer]) -> list[Annotator]:
        """Live annotators outside the run whose parents it replaces: they are rebuilt with it, as they were."""
        makes = {kind: producer.version for producer in producers for kind in producer.variants}
        inside = set(makes)
        found: dict[str, Annotator] = {}
        for kind, live in self.head.items():
            if kind in inside or live.version in found or live.annotator.startswith("source:"):
                continue
            parents = read_lineage(self.files, live.version).parents
            commits = self._unit_commits(live.annotator, live.version)
            if commits and any(makes.get(parent, version) != version for parent, version in parents.items()):
                document = next(iter(commits.values())).document
                found[live.version] = _descendant(document)
        return list(found.values())

    def _used(self, live: Live) -> str | None:
        commits = list(self._unit_commits(live.annotator, live.version).values())
        return commits[0].document.use if commits else None

    def _recorded(self, name: str) -> list[str]:
        """Identities of the models that versions of an annotator were made with; those that are live come last."""
        return [document.model for document in self._lineages if document.annotator == name and document.model]

    @cached_property
    def _lineages(self) -> list[LineageDocument]:
        """Of all versions in the graph, read once; those that are live come last."""
        live = {live.version for live in self.head.values()}
        versions = sorted(lineages(self.files), key=lambda v: (v in live, v))
        return [read_lineage(self.files, version) for version in versions]

    # ---- what is committed -----------------------------------------------------------------------------------

    def _add(self, work: AnyUnit, why: str, items: int, *, only_facts: bool = False) -> None:
        if not only_facts:
            self._planned.add((work.unit.annotator, work.unit.version, work.unit.shard.index))
        self.units.append(PlannedUnit(work, why, items * sum(work.producer.variants.values())))

    def _unit_commits(self, annotator: str, version: str) -> dict[int, Commit]:
        """Shard -> the newest commit; every footer is read once."""
        key = (annotator, version)
        if key not in self._commits:
            commits = read_commits(self.files, self._newest.get(key, []))
            self._commits[key] = {commit.ref.shard: commit for commit in commits}
        return self._commits[key]

    def _variants(self, kind: str, live: Live) -> int:
        commits = self._unit_commits(live.annotator, live.version).values()
        return max((commit.document.variants.get(kind, 1) for commit in commits), default=1)


def _descendant(document: CommitDocument) -> Annotator:
    """The annotator of a commit whose parents are replaced: one of ours, or a class that is loaded already."""
    module, _, name = document.use.partition(":")
    loaded = isinstance(getattr(sys.modules.get(module), name, None), type)
    try:
        return recorded(document.use, document.config, named=loaded)
    except ValueError as error:
        raise GraphError(f"{document.unit.annotator} is made from what this run replaces: {error}") from error


def _never_fewer_variants(producer: Producer, commit: Commit | None) -> Producer:
    if commit is None:
        return producer
    planned: Mapping[str, int] = commit.document.variants
    return replace(producer, variants={k: max(count, planned.get(k, 0)) for k, count in producer.variants.items()})


def _difference(old: LineageDocument, new: LineageDocument) -> str:
    """`low 100.0 -> 50.0`: what tells two versions of one annotator apart."""
    before, after = old.model_dump(), new.model_dump()
    flat = [(name, before.get(name), after.get(name)) for name in ("author", "code_version", "model", "schema_version")]
    for group in ("params", "codec", "parents"):
        names = sorted({*before[group], *after[group]})
        flat += [(name, before[group].get(name), after[group].get(name)) for name in names]
    return ", ".join(f"{name} {a} -> {b}" for name, a, b in flat if a != b)
