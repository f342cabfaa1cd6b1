"""Walks: grid tasks as ids, one or many, and what they were drawn from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import Live
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, digest_of
from graphbuild.images.node import Node
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.counter_rng import Bits, Draws
from graphbuild.tasks.instruction import Pick
from graphbuild.tasks.paths import PathSet, TaskPath


@dataclass(frozen=True, slots=True)
class Walk:
    """Grid task i as ids.

    Attributes:
        path: the task; `columns[k]` is the cell of the path that shown column k holds.
        rows: `item_ix` of each row, the query row last.
        variants: one per row and shown column; 0 for computed kinds.
        columns: the cell behind each shown column.
        holes: shown columns of the query row that are to be generated.
        seeds: one per row, for the computed kinds in it.
        text_variant: which variant of the text that `path.content` names belongs to the query row.
    """

    index: int
    path: TaskPath
    rows: tuple[int, ...]
    variants: tuple[tuple[int, ...], ...]
    columns: tuple[int, ...]
    holes: tuple[int, ...]
    seeds: tuple[int, ...]
    text_variant: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each shown column."""
        return tuple(map(self.path.kinds.__getitem__, self.columns))

    @property
    def targets(self) -> tuple[int, ...]:
        """Shown columns that the path declares as targets; the instruction speaks of these."""
        return tuple(sorted(map(self.columns.index, self.path.targets)))


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """Many walks as padded arrays, one row per walk; `walks[i]` and iteration give each as a `Walk`.

    Attributes:
        paths: the paths that `path` indexes.
        count: number of rows of each walk.
        rows, seeds: walks x rows.
        variants: walks x rows x columns.
        columns, holes: walks x columns.
    """

    paths: tuple[TaskPath, ...]
    index: Bits
    path: NDArray[np.int64]
    count: NDArray[np.int64]
    rows: NDArray[np.int64]
    variants: NDArray[np.int16]
    columns: NDArray[np.int64]
    holes: NDArray[np.bool_]
    seeds: NDArray[np.int64]
    text_variant: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, at: int) -> Walk: ...
    @overload
    def __getitem__(self, at: slice) -> Walks: ...
    def __getitem__(self, at: int | slice) -> Walk | Walks:
        if isinstance(at, slice):
            return Walks(self.paths, *(values[at] for values in self._arrays()))
        at = range(len(self))[at]
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[Walk]:
        columns = (values.tolist() for values in self._arrays())
        for index, at, count, rows, variants, order, holes, seeds, text in zip(*columns, strict=True):
            path = self.paths[at]
            shown = len(path.cells)
            yield Walk(
                index,
                path,
                tuple(rows[:count]),
                tuple([tuple(row[:shown]) for row in variants[:count]]),
                tuple(order[:shown]),
                tuple(compress(range(shown), holes)),
                tuple(seeds[:count]),
                text,
            )

    @classmethod
    def joined(cls, parts: Sequence[Walks]) -> Walks:
        """All walks of `parts`, in order."""
        return cls(parts[0].paths, *map(np.concatenate, zip(*(part._arrays() for part in parts), strict=True)))

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in _ARRAYS]


_ARRAYS = tuple(field.name for field in fields(Walks) if field.name != "paths")


class Frozen(NamedTuple):
    """A fixed set of walks for evaluation, independent of what later releases draw.

    Attributes:
        header: snapshot, list, seed, path_repeat and switches they were drawn with.
        records: one dict per walk, ids only.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """Digest of header and records."""
        return digest_of([self.header, self.records])

    def write(self, file: str | os.PathLike[str]) -> None:
        """JSON lines: the header with the digest, then the records."""
        lines = [canonical_json(line) for line in ({**self.header, "digest": self.digest}, *self.records)]
        with open(file, "w", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Frozen:
        """What `write` wrote.

        Raises:
            GraphError: it is no such file, or was changed.
        """
        try:
            with open(file, encoding="utf-8") as opened:
                header, *records = map(json.loads, opened)
            found = cls({name: value for name, value in header.items() if name != "digest"}, records)
            whole = found.digest == header["digest"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise GraphError(f"{os.fspath(file)}: not a frozen list of walks ({error})") from error
        if not whole:
            raise GraphError(f"{os.fspath(file)}: changed since it was written; its digest is not that of its walks")
        return found

    def walks(self, paths: PathSet) -> list[Walk]:
        """The walks, with the paths of a list that has those of their names.

        Raises:
            GraphError: it has not.
        """
        named = {path.name: path for path in paths.paths}
        if absent := sorted({record["path"] for record in self.records} - {*named}):
            raise GraphError(f"walks of {absent[0]!r}, which is no task of {paths.name!r}; name the list they are of")
        return [Walk(**{name: _tuples(value) for name, value in record.items()} | {"path": named[record["path"]]})
                for record in self.records]  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class NodeReader(Protocol):
    """Anything that serves nodes to a grid task: a `Graph`, or `graphbuild.tasks.pictures.PictureRows`.

    Attributes:
        digest: changes whenever a node may have changed.
        excluded: item_id -> why, of items that must not be used.
        head: stored kinds and their (annotator, version); other kinds are computed when they are read.
    """

    @property
    def digest(self) -> str: ...
    @property
    def head(self) -> Mapping[str, Live]: ...
    @property
    def excluded(self) -> Mapping[str, str]: ...
    def read(self, item_ix: int, kind: str, variant: int = 0, version: str | None = None, *, seed: int = 0) -> Node:
        """One node; raises MissingNode where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """Graph, task list, seed and configuration behind walks; a grid task is made from a walk and its drawing.

    Attributes:
        graph: where nodes are read; a `Graph` is pinned at one snapshot.
        paths: the task list.
        key: key of the counter-based generator, a hash of list, path_repeat, switches and seed.
        beside: digests of graphs that it is sampled together with.
    """

    graph: NodeReader
    paths: PathSet
    seed: int
    path_repeat: int
    config: SamplerConfig
    key: int
    beside: Sequence[str] = ()

    @property
    def switches(self) -> dict[str, Any]:
        """Settings off their default, a digest of the exclusions, and graphs that decide about sides of the split, too:
        with the snapshot they determine every walk."""
        excluded = {"excluded": digest_of(dict(self.graph.excluded))} if self.graph.excluded else {}
        beside = {"beside": list(self.beside)} if self.beside and self.config.split else {}
        return {**self.config.changed(), **excluded, **beside}

    def pick(self, index: int) -> Pick:
        """The draws that choose the words of walk `index`."""
        return Draws(self.key, index, "words").below
