"""One unit of an annotator, from its parents' commits to its own. Knows nothing of Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from graphbuild.annotators.base import Derived, Each, Request, Skip, makes_of, needs_of
from graphbuild.contracts import Item, Outcome
from graphbuild.engine.commit import publish_unit
from graphbuild.engine.micro_batches import Loaded, annotate
from graphbuild.engine.records import AnnotateUnit, UnitReport
from graphbuild.engine.reuse import taken_rows
from graphbuild.engine.rows import Key, failure_of, rows_of, unit_document
from graphbuild.engine.spool import CAREFUL_FLUSH_SECONDS, Spool
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, checksum, seed_of
from graphbuild.images.codecs import codec_of
from graphbuild.images.node import Node
from graphbuild.store.files import Files
from graphbuild.store.nodes import read_node
from graphbuild.store.parts import items_name
from graphbuild.store.workspace import Workspace

BROKEN_ROWS = 100


class AnnotatorBroken(GraphError):
    """More than half of the finished rows failed: the annotator, not the data, is at fault."""


class Tally:
    """Counts of finished rows, for progress and to detect a broken annotator."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0

    def add(self, rows: Sequence[Outcome]) -> None:
        self.done += len(rows)
        self.failed += sum(row.retriable for row in rows)

    @property
    def broken(self) -> bool:
        return self.done >= BROKEN_ROWS and self.failed * 2 > self.done


Nodes = dict[tuple[str, int, int], Node]
"""Parents already read for the current chunk: (kind, item_ix, variant) -> node, shared by the units of a shard."""


class Annotating:
    """One unit under way: `advance` over chunks of items, then `commit`."""

    def __init__(self, work: AnnotateUnit, files: Files, workspace: Workspace, flush_s: float) -> None:
        self.work, self.files, self.workspace = work, files, workspace
        self.flush_s = min(flush_s, CAREFUL_FLUSH_SECONDS) if work.deaths else flush_s
        self.report = UnitReport(unit=work.unit, revision=work.revision)
        self.tally = Tally()
        self._annotator = work.annotator
        self._makes = makes_of(self._annotator)
        self._codecs = {name: codec_of(work.producer.lineage.codec[kind.name]) for name, kind in self._makes.items()}
        self.plan = rows_of(work, files)
        self._todo = self.plan.todo
        self._items = {item.item_ix: item for item in self.plan.items}
        shard = work.unit.shard
        self._span = range(shard.start, shard.stop) if work.part is None else work.part
        self.items = [item for item in self.plan.items if item.item_ix in self._span]
        self.rows: dict[Key, Outcome] = {key: row for key, row in self._todo.items() if row.status != "ok"}
        planned: list[object] = [[row.key, row.parents] for row in self._todo.values()]
        if self._annotator.item_facts and self.plan.items_part != items_name(work.unit.shard):
            planned.append(self.plan.items_part)
        part = "" if work.part is None else f"-{work.part.start}"
        self.spool = Spool(files, workspace, work.unit, work.revision, planned, part)
        self._taken = 0
        self._resume()
        if work.reuse is not None and not work.gathers:
            self._reuse(work.reuse)

    def _reuse(self, url: str) -> None:
        """Rows that another graph has already."""
        wanted = {key: row for key, row in self._todo.items() if key not in self.rows and key[0] in self._span}
        producer = (self.work.producer.name, self.work.producer.version)
        taken = taken_rows(url, producer, wanted, self._items, self._annotator.item_facts) if wanted else []
        self.rows.update((row.key, row) for row in taken)
        self.spool.add(taken, self.flush_s)
        self._taken = len(taken)

    def _resume(self) -> None:
        # A failure that is not committed may have been mended since; what came out well goes before it.
        for row in sorted(self.spool.load(), key=lambda row: not row.retriable):
            if row.key in self._todo and (self.work.gathers or not row.retriable):
                self.rows[row.key] = row
        for key, outcome in self.spool.condemned(self.work.died_of).items():
            rows = [(key[0], made.name, key[2]) for made in self._makes.values()]
            condemned = [self._row(row, **outcome) for row in rows if row in self._todo]
            self.rows |= {row.key: row for row in condemned}
            for row in condemned if self.work.part is None else ():
                self.report.failed(row, self._items[row.item_ix].key)

    @property
    def settled(self) -> int:
        """Rows that are done already: kept, settled by their parents, or saved by an earlier attempt. Those
        that a unit gathers were counted by its parts."""
        if self.work.gathers:
            return 0
        return sum(key[0] in self._span for key in (*self.plan.kept, *self.rows)) - self.report.computed

    # ---- annotating ------------------------------------------------------------------------------------------

    def advance(self, items: Sequence[Item], nodes: Nodes, load: Callable[[], Loaded]) -> None:
        """Annotate these items, in micro-batches; finished rows go to the spool."""
        requests = [request for item in items for request in self._requests(self._items[item.item_ix], nodes)]
        while requests:
            loaded = load()
            size = 1 if self.work.deaths > 0 else loaded.batch_size
            batch, requests = requests[:size], requests[size:]
            if self.work.deaths > 0:
                self.spool.alone((batch[0].item.item_ix, next(iter(self._makes.values())).name, batch[0].variant))
            self._finish(self._annotate(batch, loaded))
            self.spool.add([], self.flush_s)

    def _requests(self, item: Item, nodes: Nodes) -> Iterator[Request]:
        for variant in range(max(self.work.producer.variants.values())):
            keys = [(item.item_ix, kind.name, variant) for kind in self._makes.values()]
            if all(key in self.rows or key not in self._todo for key in keys):
                continue
            seed = seed_of(self.work.producer.version, item.item_id, variant)
            yield Request(item, self._inputs(item, variant, nodes), variant, seed)

    def _inputs(self, item: Item, variant: int, nodes: Nodes) -> Mapping[str, Node]:
        inputs = {}
        for name, need in needs_of(self._annotator).items():
            kind, of_variant = (need.kind, variant) if isinstance(need, Each) else (need, 0)
            key = (kind, item.item_ix, of_variant)
            if key not in nodes:
                rows = self.plan.parents[kind]
                row = rows.find(item.item_ix, kind, of_variant)
                assert row is not None
                nodes[key] = read_node(self.files, rows, row)
            inputs[name] = nodes[key]
        return inputs

    def _annotate(self, batch: Sequence[Request], loaded: Loaded) -> list[Outcome]:
        started = time.perf_counter()
        results = annotate(self._annotator, batch, loaded)
        self.report.annotate_seconds += time.perf_counter() - started
        return [row for pair in zip(batch, results, strict=True) for row in self._settle(*pair)]

    def _settle(self, request: Request, result: Derived | Skip | BaseException) -> list[Outcome]:
        """The rows of one request, one per made kind. An invalid result makes them failed rows."""
        keys = {name: (request.item.item_ix, kind.name, request.variant) for name, kind in self._makes.items()}
        todo = {name: key for name, key in keys.items() if key in self._todo}
        wrong = result if isinstance(result, BaseException) else self._wrong(result)
        if wrong is not None:
            return [self._raised(key, wrong) for key in todo.values()]
        if isinstance(result, Skip):
            return [self._row(key, status="skipped", reason=result.reason) for key in todo.values()]
        assert isinstance(result, Derived)
        return [self._stored(name, key, result) for name, key in todo.items()]

    def _wrong(self, result: object) -> Exception | None:
        try:
            if isinstance(result, Skip):
                return None if isinstance(result.reason, str) else TypeError(f"{result!r}: the reason is a word")
            if not isinstance(result, Derived):
                return TypeError(f"{type(result).__name__} is neither Derived nor Skip")
            unknown = sorted(set(result.nodes) - set(self._makes))
            return ValueError(f"made {unknown}, which is not in makes {sorted(self._makes)}") if unknown else None
        except Exception as error:
            return error

    def _stored(self, name: str, key: Key, result: Derived) -> Outcome:
        if name not in result.nodes:
            return self._row(key, status="skipped", reason="not_made")
        try:
            encoded = self._codecs[name].encode(result.nodes[name])
            facts = _facts(encoded.attrs, result)
        except Exception as error:
            return self._raised(key, error)
        return self._row(
            key,
            format=encoded.format,
            width=encoded.width,
            height=encoded.height,
            content_hash=checksum(encoded.data),
            data=encoded.data,
            **facts,
        )

    def _raised(self, key: Key, error: BaseException) -> Outcome:
        reason, detail = failure_of(error)
        row = self._row(key, status="failed", reason=reason, detail=detail)
        self.report.failed(row, self._items[key[0]].key, error)
        return row

    def _row(self, key: Key, **values: Any) -> Outcome:
        planned = self._todo[key]
        base = {"item_id": planned.item_id, "status": "ok", "parents": planned.parents, "seed": planned.seed}
        return Outcome(item_ix=key[0], kind=key[1], variant=key[2], **{**base, **values})

    def _finish(self, rows: list[Outcome]) -> None:
        self.rows.update((row.key, row) for row in rows)
        self.tally.add(rows)
        self.report.computed += len(rows)
        self.report.computed_failed = self.tally.failed
        self.spool.add(rows, self.flush_s)
        if self.tally.broken:
            raise AnnotatorBroken(f"{self.tally.failed} of {self.tally.done} rows failed")

    # ---- committing ------------------------------------------------------------------------------------------

    def commit(self) -> UnitReport:
        """Publish the unit, unless no outcome changed; save a part of one."""
        if self.work.part is not None:
            self.spool.flush()
            self.report.status = "saved"
            return self.report
        rows = sorted([*self.plan.kept.values(), *self.rows.values()], key=lambda row: row.key)
        document = unit_document(self.work.producer, self.work.unit, self.work.revision, self.plan.refs)
        committed = publish_unit(
            self.files,
            self.workspace,
            rows=rows,
            previous=self.plan.previous,
            document=document,
            renewed=bool(self.plan.corrected),
        )
        self.spool.close()
        self.report.reused = len(self.plan.kept) + self._taken
        self.report.settle(committed, rows)
        return self.report


def _facts(attrs: Mapping[str, Any], result: Derived) -> dict[str, Any]:
    """Score and attributes as columns; what JSON cannot hold (NaN, arrays) is an error of the row."""
    every = {**attrs, **(result.attrs or {})}
    score = None if result.score is None else float(result.score)
    return {"attrs": canonical_json(every) if every else None, "score": json.loads(canonical_json(score))}
