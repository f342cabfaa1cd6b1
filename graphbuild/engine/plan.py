"""What a run would do, and why: wanted units against committed ones. Its cost grows with units, never with rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from graphbuild.annotators import recorded
from graphbuild.annotators.base import Annotator
from graphbuild.contracts import CommitDocument, GraphDocument, LineageDocument, Live, Shard, SourceDocument, Unit
from graphbuild.engine.new_items import (
    Changes,
    ShardItems,
    compare,
    known_items,
    new_shards,
    published_shards,
    refuse_replaced,
    shard_size_for,
    with_revised,
)
from graphbuild.engine.preflight import missing_parts, non_commercial, not_live, refuse_inside, too_large, without_gpu
from graphbuild.engine.records import AnnotateUnit, AnyUnit, IngestUnit, PlannedUnit, Producer
from graphbuild.engine.rows import items_behind, rows_of
from graphbuild.engine.versions import bind, refuse_missing, source_producer
from graphbuild.errors import GraphError, counted
from graphbuild.hashing import canonical_json
from graphbuild.sources.base import Listing, Source, source_params
from graphbuild.store.commits import Commit, items_in, newest_spine, read_commit
from graphbuild.store.files import Files
from graphbuild.store.heads import Head, lineages, newest_commits, past_lives, read_document, read_head, read_lineage
from graphbuild.store.parts import edges_name
from graphbuild.store.workspace import refuse_foreign


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
    listing = source.listing() if source is not None and new_items else Listing(())
    entries = list(listing.entries)
    document = _document(files, source, len(entries), shard_size)
    head = read_head(files)[1]
    planner = _Planner(files, head, retry)
    published = published_shards(files)
    parts = {item.shard.index: items_in(planner.spine.get(item.shard.index), item.shard) for item in published}
    known = known_items(files, parts) if source is not None and new_items else {}
    taken = entries if limit is None else entries[:limit]
    changes = compare(files, source, taken, known, parts) if source is not None else Changes()
    if not accept_changed:
        refuse_replaced(changes.replaced)
    shards = [
        *with_revised(published, changes.revised, known),
        *new_shards(published, taken, changes.replaced, known, document.shard_size),
    ]
    if source is not None:
        planner.plan_source(source, shards)
    else:
        shards = planner.committed(shards)
    planner.plan_annotators(annotators, shards)
    works = (unit.work for unit in planner.units)
    at_work = list({work.producer.version: work.annotator for work in works if isinstance(work, AnnotateUnit)}.values())
    refuse_missing([*missing_parts(at_work), *(too_large(at_work) if here else ())])
    at_work_on = {unit.work.producer.live for unit in planner.units}
    passed = frozenset(past_lives(files) - at_work_on)
    return Plan(
        document=document,
        head=head,
        producers=tuple(planner.producers),
        units=tuple(planner.units),
        wanted=len(planner.producers) * len(shards),
        num_items=sum(item.num_items for item in shards),
        retriable=planner.retriable,
        vanished=len(set(known) - {entry.key for entry in entries}) if source is not None else 0,
        passed=passed,
        notes=(
            *listing.notes,
            *changes.notes(),
            *not_live(files.url, head, [producer for producer in planner.producers if producer.live in passed]),
            *non_commercial(at_work),
            *(without_gpu(at_work) if here else ()),
        ),
    )


def _document(files: Files, source: Source | None, num_items: int, shard_size: int | None) -> GraphDocument:
    """The graph's own document, or the one a new graph will get."""
    if not files.exists("graph.json"):
        if source is None:
            read_document(files)
        assert source is not None
        refuse_inside(source, files.url)
        refuse_foreign(files)
        size = shard_size or shard_size_for(num_items)
        return GraphDocument(source=SourceDocument(name=source.name, params=source_params(source)), shard_size=size)
    document = read_document(files)
    if shard_size not in (None, document.shard_size):
        raise GraphError(
            f"{files.url}: its shard size is fixed at {document.shard_size} items; leave out --shard-size "
            f"{shard_size}, or build into another --out"
        )
    if source is not None and (source.name, source_params(source)) != (document.source.name, document.source.params):
        raise GraphError(
            f"{files.url} was built from source {document.source.name!r} {canonical_json(document.source.params)}, "
            f"not {source.name!r} {canonical_json(source_params(source))}; give another --out"
        )
    return document


class _Planner:
    def __init__(self, files: Files, head: Head, retry: bool) -> None:
        self.files, self.head, self.retry = files, head, retry
        self.producers: list[Producer] = []
        self.units: list[PlannedUnit] = []
        self.retriable = 0
        self._newest = newest_commits(files)
        self._commits: dict[tuple[str, str], dict[int, Commit]] = {}
        self._planned: set[tuple[str, str, int]] = set()
        self._facts_planned: set[int] = set()

    # ---- sources ---------------------------------------------------------------------------------------------

    def plan_source(self, source: Source, shards: Sequence[ShardItems]) -> None:
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
    def spine(self) -> dict[int, Commit]:
        """Shard -> the source commit that names its items."""
        found: dict[int, list[Commit]] = {}
        for annotator, version in self._newest:
            if annotator.startswith("source:"):
                for shard, commit in self._unit_commits(annotator, version).items():
                    found.setdefault(shard, []).append(commit)
        return {shard: newest for shard, commits in found.items() if (newest := newest_spine(commits))}

    def committed(self, shards: Sequence[ShardItems]) -> list[ShardItems]:
        """The shards whose source unit is committed: all that can be planned for without the source."""
        name = "source:" + read_document(self.files).source.name
        versions = [version for annotator, version in self._newest if annotator == name]
        done = {index for version in versions for index in self._unit_commits(name, version)}
        return [item for item in shards if item.shard.index in done]

    # ---- annotators ------------------------------------------------------------------------------------------

    def plan_annotators(self, annotators: Sequence[Annotator], shards: Sequence[ShardItems]) -> None:
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
        return items_in(self.spine.get(shard.index), shard) != items_behind(self.files, commit)

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
            commits = [read_commit(self.files, name) for name in self._newest.get(key, [])]
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
