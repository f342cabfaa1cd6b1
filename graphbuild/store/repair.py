"""Repair of a damaged graph: documents whose content commits or snapshots hold are written again, and units with
damaged files are withdrawn, so that the next run computes them again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field

from graphbuild.contracts import CommitDocument
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, version_of
from graphbuild.store.card import CardCheck, read_card, write_card
from graphbuild.store.commits import read_commit
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import HEAD, committed, foreign_names, head_numbers, head_of, read_snapshot, snapshots
from graphbuild.store.locations import files_at
from graphbuild.store.parallel import Mapper
from graphbuild.store.parts import edges_folder
from graphbuild.store.pins import PIN_FILE, write_use
from graphbuild.store.verify import verify
from graphbuild.store.verify_unit import UnitVerdict
from graphbuild.store.workspace import Workspace

_EDGES = re.compile(r"(edges/annotator=[^/]+/version=[^/]+)/shard-(\d+)-r\d+\.parquet")
_ITEMS = re.compile(r"items/shard-(\d+)(-r\d+-[0-9a-f]+)?\.parquet")
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
        foreign: no files of a graph, left where they are.
    """

    restored: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def repair(
    url: str | os.PathLike[str],
    *,
    reread: bool = False,
    progress: Callable[[UnitVerdict], None] | None = None,
    mapped: Mapper = map,
) -> Repair:
    """Check a graph in full and repair what can be repaired. No run may work on it meanwhile.

    Args:
        reread: also withdraw units of the source. Their items are read from it again; those it no longer has are
            lost.
        progress, mapped: as of `verify`.

    Raises:
        GraphError: there is no graph.
    """
    files = files_at(url)
    damaged = verify(url, "full", progress, mapped).damaged
    with closing(Workspace.create(files, "repair")) as workspace:
        return _Repairing(files, workspace, reread).all(damaged)


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
        self.done.foreign = [name for name in damaged if name in set(foreign_names(self.files))]
        self._documents(damaged)
        units = {unit for name in damaged for unit in self._units_of(name)}
        parts = {name for name in damaged if self._goes(name)}
        for name in sorted({*parts, *(name for unit in units for name in self._revisions(unit, damaged))}):
            self.files.remove(name)
            self.done.withdrawn.append(name)
        self._what_follows(damaged)
        known = {*self.done.restored, *self.done.withdrawn, *self.done.foreign}
        self.done.lost += [name for name in damaged if name not in known and not self._units_of(name)]
        return self.done

    def _goes(self, name: str) -> bool:
        """Whether a damaged part goes with its units: their next run makes it anew."""
        return bool(_PART.fullmatch(name) and self._units_of(name)) or bool(_ITEMS.fullmatch(name) and self.reread)

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
        elif items := _ITEMS.fullmatch(name):
            found = {unit for unit in self.units if unit[1] == int(items[1]) and self._reads(unit)}
        return {unit for unit in found if self.reread or not unit[0].startswith("edges/annotator=source:")}

    def _reads(self, unit: Unit) -> bool:
        """Whether a unit is the source's, or looks at facts that the source corrected later: those are not restored
        under the same revision."""
        refs = [ref for c in self.commits if _unit_of(c) == unit for ref in c.parents]
        corrected = any(ref.annotator.startswith("source:") and ref.revision for ref in refs)
        return unit[0].startswith("edges/annotator=source:") or (self.reread and corrected)

    def _revisions(self, unit: Unit, damaged: list[str]) -> list[str]:
        """All edges parts of a unit, also those that are gone."""
        return [
            *self.units.get(unit, ()),
            *(name for name in damaged if name.startswith(f"{unit[0]}/shard-{unit[1]:05d}-")),
        ]

    def _documents(self, damaged: list[str]) -> None:
        if "graph.json" in damaged and (check := _card(self.files)) is not None:
            self._restore("graph.json", canonical_json(check.graph.model_dump(mode="json")))
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

    def _what_follows(self, damaged: list[str]) -> None:
        """What says again what the rest of the graph says: uses of snapshots, the newest snapshot, the card."""
        for name in damaged:
            if (match := PIN_FILE.fullmatch(name.removeprefix("snapshots/"))) is not None:
                write_use(self.files, self.workspace, match[1], "kept")
                self.done.restored.append(name)
        with suppress(GraphError):  # too much is lost for that
            graph = Graph.open(self.files.url)
            if (name := f"snapshots/{graph.digest}.parquet") in damaged:
                self.files.remove(name)
                graph.publish_snapshot(self.workspace)
                self.done.restored.append(name)
            if "README.md" in damaged:
                write_card(graph, self.workspace)
                self.done.restored.append("README.md")

    def _restore(self, name: str, text: str) -> None:
        self.files.remove(name)
        self.files.publish(name, f"{text}\n".encode(), self.workspace)
        self.done.restored.append(name)


def _unit_of(commit: CommitDocument) -> Unit:
    return edges_folder(commit.unit.annotator, commit.unit.version), commit.unit.shard.index


def _card(files: Files) -> CardCheck | None:
    try:
        return read_card(files)[1]
    except (GraphError, OSError):
        return None
