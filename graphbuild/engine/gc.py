"""What a graph holds in vain: replaced versions, nodes of excluded items, what killed runs left. Listed, or deleted.

Whatever is deleted goes in an order that leaves a sound graph at any moment: snapshots before the versions they name,
commits before their parts, new revisions before the parts of old ones. A call that is killed is finished by the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Literal

from graphbuild.contracts import Document
from graphbuild.engine.erase import Erasing, Producer, readable
from graphbuild.engine.spool import remove_finished
from graphbuild.errors import GraphError
from graphbuild.store.card import write_card
from graphbuild.store.commits import Commit, read_commit
from graphbuild.store.erased import note_removed, read_by
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import Snapshot, committed, past_lives, read_lineage, read_snapshot, snapshots
from graphbuild.store.locations import files_at
from graphbuild.store.parts import edges_folder
from graphbuild.store.pins import PINNED, read_uses, write_use
from graphbuild.store.workspace import GC, Workspace, at_work

BEAT_EVERY = 100
"""Parts that are deleted between two signs of life."""

_PART = re.compile(r"shard-(\d{5,})-r\d{3,}-\d+-[0-9a-f]{16}\.parquet")
_COMMIT = re.compile(r"edges/annotator=(.+)/version=(.+)/shard-(\d{5,})-r\d{3,}\.parquet")


class Waste(Document):
    """One line of what goes: a version that nothing reaches, the nodes of excluded items in one that stays, or parts
    that no commit names. `count` is of parts, of nodes for excluded items."""

    what: Literal["version", "excluded", "leftover"]
    annotator: str
    version: str
    kind: str
    count: int
    nbytes: int


class Collection(Document):
    """What `gc` found, and whether it is `deleted`.

    Attributes:
        snapshots: digests that cannot be opened afterwards, with who uses them.
        kept: versions that no kind is served by, and why they stay.
    """

    deleted: bool
    waste: list[Waste]
    snapshots: dict[str, str]
    kept: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(line.nbytes for line in self.waste)


def gc(
    url: str | os.PathLike[str],
    *,
    delete: bool = False,
    versions: Sequence[str] = (),
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Collection:
    """List what a graph holds in vain, or delete it.

    Versions stay that serve a kind, did never yet, or serve a kind in a pinned snapshot, and all that those are made
    from. Trainings pin the snapshot they use.

    Args:
        delete: delete it, which no run, sample or training may be beside.
        versions: versions that never served a kind and are wanted no more.
        keep: digests of snapshots to pin from now on.
        drop: digests of snapshots that are pinned no more.

    Raises:
        GraphError: no graph, a damaged one, a run at work on it, or an unknown version or digest.
    """
    files = files_at(url)
    if not delete:
        return _Collecting(files, versions, keep, drop).collection(deleted=False)
    with closing(Workspace.create(files, GC)) as workspace:
        if others := [name for name in at_work(files) if name != workspace.name]:
            raise GraphError(f"{files.url}: {others[0].partition('+')[0]} is at work on this graph; wait until it ends")
        collecting = _Collecting(files, versions, keep, drop)
        found = collecting.collection(deleted=True)
        collecting.delete(workspace)
        return found


class _Collecting:
    def __init__(self, files: Files, versions: Sequence[str], keep: Sequence[str], drop: Sequence[str]) -> None:
        self.files, self.graph = files, Graph.open(files.url)
        self.keep, self.drop, self.asked = keep, drop, versions
        self.commits = {
            producer: {shard: self._read(producer, revisions) for shard, revisions in shards.items()}
            for producer, shards in committed(files).items()
            if shards
        }
        self.snapshots: dict[str, Snapshot] = {digest: read_snapshot(files, digest) for digest in snapshots(files)}
        self.uses = read_uses(files)
        for digest in {*keep, *drop} - self.snapshots.keys():
            read_snapshot(files, digest)  # raises
        if unknown := sorted(set(versions) - {version for _, version in self.commits}):
            raise GraphError(f"{files.url} has no version {unknown[0]!r} with commits; see graphbuild status")
        if wanted := sorted(set(versions) & {version for _, version in self.reached}):
            raise GraphError(f"{wanted[0]} stays: {self.reached[self._producer(wanted[0])]}")
        self.erasing = Erasing(self.graph, {p: shards for p, shards in self.commits.items() if p not in self.gone})

    def _read(self, producer: Producer, revisions: Mapping[int, str]) -> list[Commit]:
        folder = edges_folder(*producer)
        return [read_commit(self.files, f"{folder}/{name}") for _, name in sorted(revisions.items())]

    def _producer(self, version: str) -> Producer:
        return next(producer for producer in self.commits if producer[1] == version)

    # ---- what stays ------------------------------------------------------------------------------------------

    @cached_property
    def pinned(self) -> dict[str, str]:
        """Digest -> why it is pinned."""
        pins = {digest: use for digest, use in self.uses.items() if use in PINNED and digest in self.snapshots}
        return {d: why for d, why in {**pins, **dict.fromkeys(self.keep, "kept")}.items() if d not in self.drop}

    @cached_property
    def reached(self) -> dict[Producer, str]:
        """Versions that stay -> why."""
        found: dict[Producer, str] = {}
        for producer in self.commits:
            if producer[0].startswith("source:"):
                self._reach(producer, "source", found)
        for live in self.graph.head.values():
            self._reach((live.annotator, live.version), "live", found)
        for digest, why in self.pinned.items():
            for live in self.snapshots[digest].head.values():
                self._reach((live.annotator, live.version), f"snapshot {digest} ({why})", found)
        served = {(live.annotator, live.version) for live in past_lives(self.files)}
        for producer in self.commits.keys() - served:
            if producer[1] not in self.asked:
                self._reach(producer, "never live yet; --version removes it", found)
        return found

    def _reach(self, producer: Producer, why: str, found: dict[Producer, str]) -> None:
        if producer in found or producer not in self.commits:
            return
        found[producer] = why
        for version in read_lineage(self.files, producer[1]).parents.values():
            for parent in self.commits:
                if parent[1] == version:
                    self._reach(parent, why, found)

    # ---- what goes -------------------------------------------------------------------------------------------

    @cached_property
    def gone(self) -> list[Producer]:
        """Versions that go, children before their parents."""
        lineage = {producer: read_lineage(self.files, producer[1]) for producer in self.commits}
        left = {producer for producer in self.commits if producer not in self.reached}
        order: list[Producer] = []
        while left:
            parents = {version for producer in left for version in lineage[producer].parents.values()}
            childless = sorted(producer for producer in left if producer[1] not in parents)
            order += childless
            left -= set(childless)
        return order

    @cached_property
    def unreadable(self) -> dict[str, str]:
        """Snapshots that cannot be opened afterwards -> who uses them."""
        gone = {version for _, version in self.gone}
        renewed = {(*self._of(unit.newest), unit.shard.index): unit.newest.ref.revision for unit in self.erasing.units}
        found = {}
        for digest, snapshot in self.snapshots.items():
            needed = {live.version for live in snapshot.head.values()}
            lost = needed & gone
            for ref in snapshot.refs:
                unit = self.commits.get((ref.annotator, ref.version), {}).get(ref.shard, [])
                erases = {commit.ref.revision: commit.document.erases for commit in unit}
                if (newest := renewed.get((ref.annotator, ref.version, ref.shard))) is not None:
                    erases[newest + 1] = newest
                if ref.version in needed and unit and read_by(ref.revision, erases) is None:
                    lost |= {ref.version}
            if lost:
                found[digest] = self.uses.get(digest, "run")
        return found

    @staticmethod
    def _of(commit: Commit) -> Producer:
        return commit.ref.annotator, commit.ref.version

    def _named(self) -> set[str]:
        """Parts that a revision names whose parts are kept."""
        stay = (shards for producer, shards in self.commits.items() if producer in self.reached)
        return {
            part.name
            for shards in stay
            for revisions in shards.values()
            for commit in readable(revisions)
            for part in commit.document.parts
        }

    def _unnamed(self) -> Iterator[tuple[str, str, str]]:
        """(kind, version, name) of every other part."""
        named = self._named()
        for kind in (name for name in self.files.names("nodes") if name.startswith("kind=")):
            for version in (name for name in self.files.names(f"nodes/{kind}") if name.startswith("version=")):
                folder = f"nodes/{kind}/{version}"
                for name in filter(_PART.fullmatch, self.files.names(folder)):
                    if f"{folder}/{name}" not in named:
                        yield kind.removeprefix("kind="), version.removeprefix("version="), f"{folder}/{name}"

    def collection(self, deleted: bool) -> Collection:
        """What there is to delete."""
        lines: dict[tuple[str, str, str, str], list[int]] = {}

        def add(what: str, producer: Producer, kind: str, count: int, nbytes: int) -> None:
            line = lines.setdefault((what, *producer, kind), [0, 0])
            line[0], line[1] = line[0] + count, line[1] + nbytes

        annotators = {version: annotator for annotator, version in self.commits}
        for kind, version, name in self._unnamed():
            producer = annotators.get(version, ""), version
            add("version" if producer in self.gone else "leftover", producer, kind, 1, self.files.size(name))
        for producer in self.gone:
            for kind in next(iter(self.commits[producer].values()))[-1].document.variants:
                add("version", producer, kind, 0, 0)
        for unit in self.erasing.units:
            for kind in unit.newest.document.variants:
                add("excluded", self._of(unit.newest), kind, unit.nodes[kind], unit.nbytes[kind])
        live = {(live.annotator, live.version) for live in self.graph.head.values()}
        return Collection(
            deleted=deleted,
            waste=[
                Waste(what=what, annotator=annotator, version=version, kind=kind, count=count, nbytes=nbytes)  # type: ignore[arg-type]
                for (what, annotator, version, kind), (count, nbytes) in sorted(lines.items(), reverse=True)
            ],
            snapshots=self.unreadable,
            kept={f"{a} {v}": why for (a, v), why in sorted(self.reached.items()) if (a, v) not in live},
        )

    # ---- deleting --------------------------------------------------------------------------------------------

    def delete(self, workspace: Workspace) -> None:
        for digest in self.drop:
            write_use(self.files, workspace, digest, "sample")
        for digest in self.keep:
            write_use(self.files, workspace, digest, "kept")
        for digest in self.unreadable:
            write_use(self.files, workspace, digest, "removed")
            self.files.remove(f"snapshots/{digest}.parquet")
        for producer in self.gone:
            self._delete_version(producer, workspace)
            workspace.beat()
        for unit in self.erasing.units:
            self.erasing.erase(unit, workspace)
            workspace.beat()
        now = committed(self.files) if self.erasing.units else {}
        for unit in self.erasing.units:
            producer, shard = self._of(unit.newest), unit.shard.index
            self.commits[producer][shard] = self._read(producer, now[producer][shard])
        for number, (_, _, name) in enumerate(list(self._unnamed())):
            self.files.remove(name)
            if number % BEAT_EVERY == 0:
                workspace.beat()
            if not self.files.names(folder := name.rpartition("/")[0]):
                self.files.remove(folder)
        self._tidy(workspace)

    def _delete_version(self, producer: Producer, workspace: Workspace) -> None:
        commits = [commit for revisions in self.commits[producer].values() for commit in revisions]
        note_removed(self.files, workspace, [commit.ref for commit in commits])
        for commit in sorted(commits, key=lambda commit: (commit.ref.shard, -commit.ref.revision)):
            self.files.remove(commit.name)

    def _tidy(self, workspace: Workspace) -> None:
        """Staging folders of what went, and the documents that tell of the state now."""
        gone, shards = set(self.gone), self.erasing.shards

        def unwanted(commit: str) -> bool:
            match = _COMMIT.fullmatch(commit)
            return match is None or (match[1], match[2]) in gone or int(match[3]) in shards

        remove_finished(self.files, unwanted)
        graph = Graph.open(self.files.url)
        if self.gone or self.erasing.units:
            graph.publish_snapshot(workspace)
            if self.uses.get(graph.digest, "removed") == "removed":
                write_use(self.files, workspace, graph.digest, "gc")
        write_card(graph, workspace)
