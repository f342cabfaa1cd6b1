"""A graph opened at a snapshot: its kinds, items, edges and nodes."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.config.lookup import suggestion
from graphbuild.contracts import ITEMS, SNAPSHOT, GraphDocument, Live, Shard
from graphbuild.errors import GraphError, MissingNode, counted
from graphbuild.hashing import canonical_json, digest_of
from graphbuild.images.node import Node
from graphbuild.images.notebook import Shown, escaped, figure, quotation, table
from graphbuild.kinds.registry import KINDS
from graphbuild.store.buckets import filesystem_at
from graphbuild.store.commits import Commit, newest_spine, read_commits
from graphbuild.store.edges import EdgeRows, Scores, cached_presence, cached_scores, unit_rows
from graphbuild.store.erased import served
from graphbuild.store.exclusions import read_exclusions
from graphbuild.store.files import Files
from graphbuild.store.heads import (
    HEAD,
    Head,
    lineages,
    newest_commits,
    read_document,
    read_head,
    read_lineage,
    read_snapshot,
    shard_index,
    snapshot_bytes,
    snapshot_digest,
    with_items,
)
from graphbuild.store.locations import files_at
from graphbuild.store.nodes import LazyEdge, read_node
from graphbuild.store.offsets import Offsets, cached_offsets
from graphbuild.store.parts import read_table
from graphbuild.store.sql import connect
from graphbuild.store.workspace import Workspace

_INDEX_AFTER = 32  # edges parts of one producer loaded for single reads, before its kind is indexed


class Graph:
    """A graph as it was when opened (or at a pinned snapshot). Later commits are seen by opening it again.

    Attributes:
        excluded: item_id -> why, of items that must not be used: neither sampled nor read.

    >>> graph = Graph.open("graph/")                   # doctest: +SKIP
    >>> graph.read(0, "canny").array().shape           # doctest: +SKIP
    (512, 512, 3)
    """

    def __init__(
        self,
        files: Files,
        document: GraphDocument,
        head: Head,
        newest: Mapping[tuple[str, str], list[str]],
        excluded: Mapping[str, str],
    ):
        self.fs = files
        self.document = document
        self.head = head
        self.excluded = excluded
        self._newest = newest
        self._rows = lru_cache(maxsize=256)(self._load_rows)
        self._commits: dict[str, Commit] = {}
        self._offsets: dict[tuple[str, str | None], Offsets] = {}
        self._loads: Counter[str] = Counter()
        self._shard_names: dict[tuple[str, str], dict[int, str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what is costly to compute; file descriptors and indexes are reopened."""
        found = ("digest", "shards", "excluded_items", "_lies")
        known = {name: self.__dict__[name] for name in found if name in self.__dict__}
        return Graph, (self.fs, self.document, self.head, self._newest, self.excluded), known

    @classmethod
    def open(cls, url: str | os.PathLike[str], snapshot: str | None = None) -> Graph:
        """Open a graph; `snapshot` pins a digest from `snapshots/`, without the items excluded since. Writes nothing.

        Raises:
            GraphError: no graph there, an unknown format or feature, or no such snapshot.
        """
        files = files_at(url)
        document, excluded = read_document(files), read_exclusions(files)[1]
        if snapshot is None:
            newest = with_items(files, document, newest_commits(files))
            return cls(files, document, read_head(files)[1], newest, excluded)
        pinned = read_snapshot(files, snapshot)
        graph = cls(files, document, pinned.head, {}, excluded)
        newest = served(files, snapshot, pinned, lambda name: graph._read([name])[0])
        graph._newest = with_items(files, document, newest)
        graph.digest = snapshot
        if any(name not in pinned.newest.get(producer, ()) for producer, names in newest.items() for name in names):
            graph._lies = digest_of([snapshot, *newest.values()])  # other parts than before gc
        return graph

    @cached_property
    def _lies(self) -> str:
        """Where nodes lie is cached under this name."""
        return self.digest

    @property
    def url(self) -> str:
        return self.fs.url

    # ---- what is there ---------------------------------------------------------------------------------------

    def kinds(self) -> dict[str, int]:
        """Live kinds and how many stored nodes each has, from commit footers alone."""
        return {kind: sum(c.document.counts[kind].get("ok", 0) for c in self.commits(kind)) for kind in self.head}

    def live(self, kind: str) -> Live:
        """The (annotator, version) that serves a kind.

        Raises:
            GraphError: the graph has no such kind; the message lists those it has.
        """
        if kind not in self.head:
            known = ", ".join(sorted(self.head)) or "none yet"
            raise GraphError(f"{self.url} has no kind {kind!r}{suggestion(kind, self.head)}; it has: {known}")
        return self.head[kind]

    def producer(self, kind: str, version: str | None) -> Live:
        """The (annotator, version) behind a kind, live or named by version."""
        if version is None or version == self.live(kind).version:
            return self.live(kind)
        if version not in lineages(self.fs):
            raise GraphError(f"{self.url} has no version {version!r}; see its lineage/ folder")
        return Live(annotator=read_lineage(self.fs, version).annotator, version=version)

    def commits(self, kind: str, version: str | None = None) -> list[Commit]:
        """The newest commits of the units that make a kind, by shard."""
        producer = self.producer(kind, version)
        commits = self.unit_commits(producer.annotator, producer.version)
        if any(kind not in commit.document.variants for commit in commits):
            raise GraphError(
                f"{self.url}: {producer.annotator} {producer.version} does not make {kind!r}, as the head says; see "
                "graphbuild verify"
            )
        return commits

    def unit_commits(self, annotator: str, version: str) -> list[Commit]:
        return self._read(self.unit_names(annotator, version))

    def unit_names(self, annotator: str, version: str) -> list[str]:
        """Names of the newest commits of a version, by shard; none is opened."""
        return self._newest.get((annotator, version), [])

    def producers(self) -> list[tuple[str, str]]:
        """Every (annotator, version) with commits, live or not."""
        return sorted(self._newest)

    @cached_property
    def source_commits(self) -> list[Commit]:
        """The newest commits of the source, by shard: the spine."""
        name = f"source:{self.document.source.name}"
        versions = [version for annotator, version in self._newest if annotator == name]
        by_shard: dict[int, list[Commit]] = {}
        for commit in (commit for version in versions for commit in self.unit_commits(name, version)):
            by_shard.setdefault(commit.ref.shard, []).append(commit)
        newest = (newest_spine(commits) for _, commits in sorted(by_shard.items()))
        return [commit for commit in newest if commit is not None]

    @cached_property
    def shards(self) -> list[Shard]:
        shards = [commit.document.unit.shard for commit in self.source_commits]
        if any(one.stop > other.start for one, other in pairwise(shards)):
            raise GraphError(f"{self.url}: shards overlap; see graphbuild verify")
        return shards

    @property
    def num_items(self) -> int:
        """One more than the highest `item_ix`."""
        return self.shards[-1].stop if self.shards else 0

    def names_of(self, what: str) -> list[str]:
        """Graph-relative names of live committed parts: a kind, `items` or `edges`."""
        if what == "items":
            return [commit.document.items.name for commit in self.source_commits if commit.document.items]
        if what == "edges":
            producers = {(live.annotator, live.version) for live in self.head.values()}
            return [commit.name for producer in sorted(producers) for commit in self.unit_commits(*producer)]
        return [part.name for c in self.commits(what) for part in c.document.parts if part.kind == what]

    def files(self, what: str) -> list[str]:
        """Paths of the live committed parts of a kind, of `items` or of `edges`, for plain Parquet readers."""
        return [self.fs.path(name) for name in self.names_of(what)]

    # ---- tables ----------------------------------------------------------------------------------------------

    def items(self) -> pa.Table:
        """The spine, in `item_ix` order."""
        tables = [ITEMS.empty_table()]
        for name in self.names_of("items"):
            table = read_table(self.fs, name).replace_schema_metadata(None)
            if not table.schema.equals(ITEMS):
                raise GraphError(f"{self.fs.path(name)}: another schema than items of format 1; see graphbuild verify")
            tables.append(table)
        return pa.concat_tables(tables).sort_by("item_ix")

    def edges(self, kind: str | None = None, version: str | None = None) -> pa.Table:
        """Edge rows of one kind, or of every live kind."""
        if kind is None:
            return pa.concat_tables([self.edges(name) for name in sorted(self.head)])
        commits = self.commits(kind, version)
        tables = [unit_rows(self.fs, commit).replace_schema_metadata(None) for commit in commits]
        if not tables:
            raise GraphError(f"{self.url}: no unit of {kind!r} is committed yet")
        table = pa.concat_tables(tables)
        return table.filter(pc.equal(table.column("kind"), kind))

    def sql(self, query: str, **parameters: Any) -> Any:
        """The rows of an SQL query over three views, as a relation of DuckDB (`.df()`, `.arrow()`, `.fetchall()`).

        `items` is the spine; `edges` the newest outcome of every planned node of a live kind; `nodes` the stored bytes
        of those that are ok, with `kind` and `version`, without excluded items. Columns: docs/format.md.

        Args:
            parameters: values of `$name` in the query.

        Raises:
            GraphError: DuckDB is not installed (extra `duckdb`).
        """
        return self._duckdb.sql(query, params=parameters or None)

    @cached_property
    def _duckdb(self) -> Any:
        filesystem, root = filesystem_at(self.url) if self.fs.remote else (None, self.url)
        edges = {kind: [f"{root}/{commit.name}" for commit in self.commits(kind)] for kind in self.head}
        nodes = {kind: [f"{root}/{name}" for name in self.names_of(kind)] for kind in self.head}
        return connect(self.items(), edges, nodes, self.head, self.excluded_items, filesystem=filesystem)

    # ---- nodes -----------------------------------------------------------------------------------------------

    def read(self, item_ix: int, kind: str, variant: int = 0, version: str | None = None, *, seed: int = 0) -> Node:
        """One node: a stored one, its bytes checked against the hash its edge recorded, or a computed kind made from
        its stored parents and `seed`.

        Raises:
            MissingNode: it was skipped, failed, is not committed, or its item is excluded.
            CorruptNode: the stored bytes changed.
        """
        if (why := self.excluded_items.get(item_ix)) is not None:
            raise MissingNode(f"item {item_ix} is excluded ({why}); graphbuild exclude --undo puts it back")
        if kind not in self.head and kind in KINDS and (compute := KINDS[kind].computed) is not None:
            parents = {parent: self.read(item_ix, parent) for parent in KINDS[kind].parents}
            return Node.computed(item_ix, kind, compute(parents, seed))
        if (offsets := self._offsets.get((kind, version))) is not None:
            edge = LazyEdge(partial(self._edge, item_ix, kind, variant, version))
            if (node := offsets.read(self.fs, item_ix, variant, edge)) is not None:
                return node
        rows = self.rows(item_ix, kind, version)
        if self._loads[os.path.dirname(rows.commit.name)] > _INDEX_AFTER and "digest" in self.__dict__:
            self.offsets(kind, version)
        row = rows.find(item_ix, kind, variant)
        if row is None or rows.value(row, "status") != "ok":
            raise MissingNode(rows.why_missing(row, item_ix, kind, variant))
        return read_node(self.fs, rows, row)

    def rows(self, item_ix: int, kind: str, version: str | None = None) -> EdgeRows:
        """The edge rows of the unit that planned a node.

        Raises:
            MissingNode: no such item, or its unit is not committed.
        """
        producer = self.producer(kind, version)
        shard = self.shard_of(item_ix)
        name = self._by_shard(producer.annotator, producer.version).get(shard.index)
        if name is None:
            raise MissingNode(f"item {item_ix}: {kind} of {shard.label} is not committed yet; run graphbuild run")
        return self._rows(name)

    def offsets(self, kind: str, version: str | None = None) -> Offsets:
        """The index of a stored kind's byte offsets; once it is built, `read` of this kind takes constant time."""
        if (kind, version) not in self._offsets:
            producer = self.producer(kind, version)
            commits = self.unit_commits(producer.annotator, producer.version)
            self._offsets[kind, version] = cached_offsets(
                self._lies, self.fs, commits, kind=kind, version=producer.version, num_items=self.num_items
            )
        return self._offsets[kind, version]

    def will_read(self, nodes: Iterable[tuple[int, str, int]]) -> None:
        """Tell of coming `read`s of (item_ix, kind, variant): a store answers those of indexed kinds together."""
        indexed = ((self._offsets.get((kind, None)), item_ix, variant) for item_ix, kind, variant in nodes)
        spans = (offsets.span(item_ix, variant) for offsets, item_ix, variant in indexed if offsets)
        self.fs.will_read([span for span in spans if span])

    def reopen(self) -> None:
        """Drop file descriptors and their lock, in a process that was forked while threads were reading."""
        self.fs = files_at(self.fs.url)

    @cached_property
    def excluded_items(self) -> dict[int, str]:
        """item_ix -> why, of the excluded items."""
        if not self.excluded:
            return {}
        items = self.items().select(["item_ix", "item_id"]).to_pylist()
        return {row["item_ix"]: self.excluded[row["item_id"]] for row in items if row["item_id"] in self.excluded}

    def shard_of(self, item_ix: int) -> Shard:
        at = bisect.bisect_right(self.shards, item_ix, key=lambda shard: shard.start) - 1
        if at < 0 or not self.shards[at].start <= item_ix < self.shards[at].stop:
            raise MissingNode(f"no item {item_ix}; {self.url} has items 0 to {self.num_items - 1}")
        return self.shards[at]

    def presence(self, kind: str) -> NDArray[np.bool_]:
        """Which nodes of a live kind exist: bool, `num_items` x variants."""
        return cached_presence(self.digest, self.fs, self.commits(kind), kind, self.num_items)

    def scores(self, kind: str) -> Scores:
        """The scores of a live kind's nodes: `num_items` x variants, NaN where there is none."""
        return cached_scores(self.digest, self.fs, self.commits(kind), kind, self.num_items)

    def _read(self, names: Sequence[str]) -> list[Commit]:
        new = [name for name in names if name not in self._commits]
        self._commits |= zip(new, read_commits(self.fs, new), strict=True)
        return [self._commits[name] for name in names]

    def _load_rows(self, name: str) -> EdgeRows:
        self._loads[os.path.dirname(name)] += 1
        return EdgeRows(self.fs, *self._read([name]))

    def _edge(self, item_ix: int, kind: str, variant: int, version: str | None) -> tuple[pa.Table, int]:
        rows = self.rows(item_ix, kind, version)
        row = rows.find(item_ix, kind, variant)
        assert row is not None, "a node without an edge"
        return rows.table, row

    def _by_shard(self, annotator: str, version: str) -> dict[int, str]:
        key = (annotator, version)
        if key not in self._shard_names:
            self._shard_names[key] = {shard_index(name): name for name in self._newest.get(key, [])}
        return self._shard_names[key]

    # ---- notebooks -------------------------------------------------------------------------------------------

    def show(self, item_ix: int) -> Shown:
        """The live nodes of an item, as a notebook shows them.

        Raises:
            MissingNode: no such item, or it is excluded.
        """
        shown = []
        for kind in sorted(self.head, key=lambda kind: (kind != "image", kind)):
            rows = self.rows(item_ix, kind)
            for variant in range(rows.commit.document.variants[kind]):
                row, name = rows.find(item_ix, kind, variant), f"{kind} {variant}" if variant else kind
                if row is None or rows.value(row, "status") != "ok":
                    shown.append(quotation("-", f"{name}: {rows.why_missing(row, item_ix, kind, variant)}"))
                    continue
                node = self.read(item_ix, kind, variant)
                has_words = node.codec in ("text", "json")
                shown.append(quotation(node.text, name) if has_words else figure(node.array(), name))
        return Shown("".join(shown))

    def _repr_html_(self) -> str:
        """For notebooks: where it is, and its kinds."""
        rows = [
            (kind, count, self.head[kind].annotator, self.head[kind].version) for kind, count in self.kinds().items()
        ]
        title = f"<p><b>{escaped(self.url)}</b>: {counted(self.num_items, 'item')}</p>"
        return title + table(("kind", "nodes", "annotator", "version"), rows)

    # ---- snapshots -------------------------------------------------------------------------------------------

    @cached_property
    def snapshot_table(self) -> pa.Table:
        refs = [commit.ref.model_dump() for names in self._newest.values() for commit in self._read(names)]
        order = ("annotator", "version", "shard")
        return pa.Table.from_pylist(sorted(refs, key=lambda ref: [ref[name] for name in order]), schema=SNAPSHOT)

    @cached_property
    def digest(self) -> str:
        """Digest of this snapshot: a hash of its head and commits."""
        return snapshot_digest(self.head, self.snapshot_table)

    def publish_snapshot(self, workspace: Workspace) -> str:
        """Publish this snapshot, so that `Graph.open(url, snapshot=digest)` can open it; returns its digest."""
        text = canonical_json(HEAD.dump_python(self.head, mode="json"))
        name = f"snapshots/{self.digest}.parquet"
        if not self.fs.exists(name):
            table = self.snapshot_table.replace_schema_metadata({"graphbuild": text})
            self.fs.publish(name, snapshot_bytes(table), workspace)
        return self.digest
