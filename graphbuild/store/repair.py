"""Repair of a damaged graph: documents whose content commits or snapshots hold are written again, and units with
damaged files are withdrawn, so that the next run computes them again."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from graphbuild.contracts import CommitDocument
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, version_of
from graphbuild.store.commits import read_commit
from graphbuild.store.files import Files, files_at
from graphbuild.store.heads import HEAD, committed, head_numbers, head_of, read_snapshot, snapshots
from graphbuild.store.parts import edges_folder
from graphbuild.store.verify import verify
from graphbuild.store.workspace import Workspace

_EDGES = re.compile(r"(edges/annotator=[^/]+/version=[^/]+)/shard-(\d+)-r\d+\.parquet")
_PART = re.compile(r"nodes/kind=[^/]+/version=([^/]+)/shard-(\d+)-r\d+-.*\.parquet")
Unit = tuple[str, int]
"""(folder of its edges parts, shard)."""


@dataclass
class Repair:
    """What became of the damaged files of a graph, by name.

    Attributes:
        restored: written again, with the content they had.
        withdrawn: gone, with what belongs to the same units; the next run computes those.
        lost: damaged still, since nothing in the graph holds their content.
    """

    restored: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def repair(url: str | os.PathLike[str], *, reread: bool = False) -> Repair:
    """Check a graph in full and mend what can be mended. No run may work on it meanwhile.

    Args:
        reread: also withdraw units of the source. Their pictures are read from it again; those it no longer has are
            lost.

    Raises:
        GraphError: there is no graph.
    """
    files = files_at(url)
    damaged = verify(url, "full").damaged
    workspace = Workspace.create(files, f"repair-{secrets.token_hex(3)}")
    try:
        return _Repairing(files, workspace, reread).all(damaged)
    finally:
        workspace.close()


class _Repairing:
    def __init__(self, files: Files, workspace: Workspace, reread: bool) -> None:
        self.files, self.workspace, self.reread, self.done = files, workspace, reread, Repair()
        self.units = {
            (edges_folder(*producer), shard): [
                f"{edges_folder(*producer)}/{name}" for _, name in sorted(revisions.items())
            ]
            for producer, shards in committed(files).items()
            for shard, revisions in shards.items()
        }
        self.commits = list(self._readable())

    def all(self, damaged: list[str]) -> Repair:
        self._documents(damaged)
        units = {unit for name in damaged for unit in self._units_of(name)}
        parts = {name for name in damaged if _PART.fullmatch(name) and self._units_of(name)}
        for name in sorted({*parts, *(name for unit in units for name in self._revisions(unit, damaged))}):
            self.files.remove(name)
            self.done.withdrawn.append(name)
        self.done.lost += [name for name in damaged if name not in self.done.restored and not self._units_of(name)]
        return self.done

    def _readable(self) -> Iterator[CommitDocument]:
        for name in (name for revisions in self.units.values() for name in revisions):
            try:
                yield read_commit(self.files, name).document
            except GraphError:
                continue

    def _units_of(self, name: str) -> set[Unit]:
        """The units that a damaged file takes with it: all revisions, as later ones keep rows of earlier ones."""
        found: set[Unit] = set()
        if edges := _EDGES.fullmatch(name):
            unit = edges[1], int(edges[2])
            # A revision beyond those that are there is named by a snapshot alone; without it the unit is whole.
            found = {unit} if not self.units.get(unit) or name <= self.units[unit][-1] else found
        elif part := _PART.fullmatch(name):
            found = {unit for unit in self.units if unit[1] == int(part[2]) and unit[0].endswith(f"version={part[1]}")}
        return {unit for unit in found if self.reread or not unit[0].startswith("edges/annotator=source:")}

    def _revisions(self, unit: Unit, damaged: list[str]) -> list[str]:
        """All edges parts of a unit, also those that are gone."""
        return [
            *self.units.get(unit, ()),
            *(name for name in damaged if name.startswith(f"{unit[0]}/shard-{unit[1]:05d}-")),
        ]

    def _documents(self, damaged: list[str]) -> None:
        lineages = {version_of(commit.lineage): commit.lineage for commit in self.commits}
        for version, lineage in lineages.items():
            if (name := f"lineage/{version}.json") in damaged:
                self._restore(name, canonical_json(lineage.model_dump(mode="json")))
        if heads := [name for name in damaged if name.startswith("heads")]:
            self._head(heads, damaged)

    def _head(self, names: list[str], damaged: list[str]) -> None:
        """Restore the one head that is damaged or lost, if snapshots know one head that is not there."""
        numbers = head_numbers(self.files)
        newest = f"heads/{max(numbers, default=0) + 1:08d}.json"
        broken = [name for name in names if name != "heads"] or [newest]
        kept = [head_of(self.files, number) for number in numbers if f"heads/{number:08d}.json" not in broken]
        sound = [digest for digest in snapshots(self.files) if f"snapshots/{digest}.parquet" not in damaged]
        heads = [read_snapshot(self.files, digest).head for digest in sound]
        texts = {canonical_json(HEAD.dump_python(head, mode="json")) for head in heads if head not in kept}
        if len(broken) == len(texts) == 1:
            self._restore(broken[0], texts.pop())
            damaged[:] = [name for name in damaged if name != "heads"]  # they lacked the one that is back

    def _restore(self, name: str, text: str) -> None:
        self.files.remove(name)
        self.files.publish(name, f"{text}\n".encode(), self.workspace)
        self.done.restored.append(name)
