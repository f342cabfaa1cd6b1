"""A graph as the pages see it: opened again when it has grown, its counts read beside."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.contracts import EDGES, LineageDocument, Shard
from graphbuild.errors import GraphError
from graphbuild.hashing import digest_of
from graphbuild.kinds.registry import KINDS, parents_of
from graphbuild.store.cache import cached_array
from graphbuild.store.commits import Commit, read_commit
from graphbuild.store.edges import unit_rows
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_lineage, shard_index
from graphbuild.store.leakage import components, links_of
from graphbuild.store.parts import read_table
from graphbuild.view.outcomes import Outcomes, cached_outcomes

FACTS = ["item_ix", "item_id", "key", "caption", "subject", "category", "split", "group", "licence", "attribution"]
"""Columns of the spine that pages show and search."""

_SECONDS = 5.0  # between two looks at whether the graph has changed
_SHOWN = ["item_ix", "kind", "variant", "status", "reason", "detail", "parents", "nbytes", "format", "width", "height",
          "score"]  # fmt: skip
_SCORES = ["item_ix", "kind", "variant", "status", "score"]


class Look:
    """One state of a graph. Nothing is read before a page asks for it.

    Args:
        graph: that state.
        before: an earlier state, whose counts are taken over.
    """

    def __init__(self, graph: Graph, before: Look | None = None) -> None:
        self.graph = graph
        names = [[*producer, *graph.unit_names(*producer)] for producer in graph.producers()]
        head = sorted((kind, live.annotator, live.version) for kind, live in graph.head.items())
        self.key = digest_of([graph.url, head, names])
        self.state = digest_of([self.key, dict(graph.excluded)])
        self._lineages: dict[str, LineageDocument] = {}
        self._outcomes: Future[Outcomes] | None = None
        self._before = before.counted if before is not None else None
        self._commit = lru_cache(maxsize=1024)(self._read_commit)
        self._shown = lru_cache(maxsize=128)(self._read_shown)  # the items of a shard are looked at one after another
        self.facts_of_shard = lru_cache(maxsize=64)(self._read_facts)

    # ---- counts ------------------------------------------------------------------------------------------------

    def count(self, pool: ThreadPoolExecutor) -> None:
        """Begin to read the counts."""
        self._outcomes = pool.submit(cached_outcomes, self.key, self.graph, self._before)

    @property
    def counted(self) -> Outcomes | None:
        """The counts, if they have been read."""
        known = self._outcomes is not None and self._outcomes.done() and self._outcomes.exception() is None
        return self._outcomes.result() if known and self._outcomes is not None else None

    @property
    def outcomes(self) -> Outcomes:
        """The counts; waits for them."""
        return self._outcomes.result() if self._outcomes is not None else cached_outcomes(self.key, self.graph)

    # ---- kinds and units ---------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> list[str]:
        """Stored kinds, the image first, and the computed ones that can be made from them."""
        stored = sorted(self.graph.head, key=lambda kind: (kind != "image", kind))
        computed = (name for name, kind in KINDS.items() if kind.is_computed and set(kind.parents) <= set(stored))
        return [*stored, *(name for name in computed if name not in stored)]

    @cached_property
    def annotators(self) -> list[str]:
        """Those with a live version."""
        return sorted({live.annotator for live in self.graph.head.values()})

    def made_by(self, annotator: str) -> list[str]:
        """The stored kinds that the live versions of an annotator serve."""
        return [kind for kind in self.kinds if kind in self.graph.head and self.graph.live(kind).annotator == annotator]

    def edge_kind(self, kind: str) -> str:
        """The stored kind whose edges say whether a kind is there: itself, or a computed kind's rarest parent."""
        return kind if kind in self.graph.head else parents_of(kind)[-1]

    def units(self, kind: str) -> dict[int, str]:
        """Number of the shard -> name of the live commit of a stored kind."""
        live = self.graph.live(kind)
        return {shard_index(name): name for name in self.graph.unit_names(live.annotator, live.version)}

    def rows(self, name: str, columns: list[str]) -> pa.Table:
        """Some columns of the edge rows of a unit."""
        return unit_rows(self.graph.fs, self._commit(name), columns)

    def _read_commit(self, name: str) -> Commit:
        return read_commit(self.graph.fs, name)

    def edges(self, item_ix: int) -> dict[str, list[dict[str, Any]]]:
        """Live kind -> the edge rows of one item, by variant; no row where its unit is not committed yet.

        Raises:
            MissingNode: there is no such item.
            GraphError: an edges part cannot be read.
        """
        shard = self.graph.shard_of(item_ix).index
        names = {kind: name for kind in self.graph.head if (name := self.units(kind).get(shard)) is not None}
        with ThreadPoolExecutor(4) as pool:  # Arrow reads without Python's lock
            wanted = sorted({*names.values()})
            rows = dict(zip(wanted, pool.map(lambda name: self._edges_of(name, item_ix), wanted), strict=True))
        return {
            kind: [row for row in rows[names[kind]] if row["kind"] == kind] if kind in names else []
            for kind in self.graph.head
        }

    def _edges_of(self, name: str, item_ix: int) -> list[dict[str, Any]]:
        """The rows of one item, those of others unchecked."""
        table = self._shown(name)
        rows: list[dict[str, Any]] = table.filter(pc.equal(table["item_ix"], item_ix)).to_pylist()
        return rows

    def _read_shown(self, name: str) -> pa.Table:
        table = read_table(self.graph.fs, name, _SHOWN)
        if not table.schema.equals(pa.schema([EDGES.field(column) for column in _SHOWN])):
            where = self.graph.fs.path(name)
            raise GraphError(f"{where}: another schema than edges of format 1; see graphbuild verify")
        return table

    def lineage(self, kind: str) -> LineageDocument:
        """What the live version of a stored kind is the hash of."""
        version = self.graph.live(kind).version
        if version not in self._lineages:
            self._lineages[version] = read_lineage(self.graph.fs, version)
        return self._lineages[version]

    # ---- items -------------------------------------------------------------------------------------------------

    def facts(self, item_ix: int) -> dict[str, Any]:
        """What the spine says of one item.

        Raises:
            MissingNode: there is no such item.
        """
        table = self.facts_of_shard(self.graph.shard_of(item_ix).index)
        row = table.filter(pc.equal(table["item_ix"], item_ix)).to_pylist()
        return row[0] if row else dict.fromkeys(FACTS)

    def _read_facts(self, shard: int) -> pa.Table:
        at = bisect.bisect_left(self.graph.source_commits, shard, key=lambda commit: commit.ref.shard)
        items = self.graph.source_commits[at].document.items
        assert items is not None, "a source commit names its items"
        return read_table(self.graph.fs, items.name, FACTS)

    def why_excluded(self, facts: Mapping[str, Any]) -> str | None:
        """Why an item is excluded; None if it is not."""
        return self.graph.excluded.get(facts["item_id"] or "")

    @property
    def shards(self) -> list[Shard]:
        return self.graph.shards

    # ---- arrays over all items, computed once --------------------------------------------------------------------

    def scores(self, *kinds: str) -> NDArray[np.float64]:
        """The scored nodes of stored kinds, lowest first: N x 4 of item_ix, variant, score, and number of the kind."""

        def compute() -> NDArray[np.float64]:
            found = [np.empty((0, 4))]
            found += [
                self._scored(kind, name, at) for at, kind in enumerate(kinds) for name in self.units(kind).values()
            ]
            rows = np.concatenate(found)
            return rows[np.argsort(rows[:, 2], kind="stable")]

        return cached_array(self.key, f"scores-{digest_of(list(kinds))}", np.float64, (None, 4), compute)

    def _scored(self, kind: str, name: str, at: int) -> NDArray[np.float64]:
        table = self.rows(name, _SCORES)
        chosen = pc.and_(pc.equal(table["kind"], kind), pc.equal(table["status"], "ok"))
        table = table.filter(pc.and_(chosen, pc.is_valid(table["score"])))
        columns = [table[name].to_numpy().astype(float) for name in _SCORES[::2]]
        return np.stack([*columns, np.full(table.num_rows, float(at))], axis=1)

    def near_duplicates(self) -> NDArray[np.int64]:
        """Items that look like another one: N x 2 of the first that looks so and themselves, in order."""

        def compute() -> NDArray[np.int64]:
            items = self.graph.items()
            alone = pa.nulls(items.num_rows, items.schema.field("group").type)
            pairs = links_of(items.set_column(items.schema.get_field_index("group"), "group", alone))
            first = components(self.graph.num_items, pairs)
            linked = np.unique(pairs)
            rows = np.stack([first[linked], linked], axis=1)
            return rows[np.lexsort((rows[:, 1], rows[:, 0]))]

        return cached_array(self.key, "near-duplicates", np.int64, (None, 2), compute)


class Looking:
    """The newest state of the graph at a location.

    Raises:
        GraphError: no graph is there.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = ThreadPoolExecutor(1, "graphbuild-count")
        self._look = Look(Graph.open(url))
        self._look.count(self._pool)
        self._at = time.monotonic()

    def now(self, *, at_once: bool = False) -> Look:
        """The state of the graph a few seconds ago, or `at_once` the present one."""
        if at_once or time.monotonic() - self._at > _SECONDS:
            self._at = time.monotonic()
            look = Look(Graph.open(self.url), self._look)
            if look.state != self._look.state:
                look.count(self._pool)
                self._look = look
        return self._look

    def close(self) -> None:
        """Count no more, and end the thread that does."""
        self._pool.shutdown(wait=True, cancel_futures=True)
