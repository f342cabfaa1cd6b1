"""Several graphs and task lists sampled together: which of them draws grid task i is a function of (seed, i), too."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json
from graphbuild.images.notebook import Shown
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig, DataConfig, SamplerConfig
from graphbuild.tasks.counter_rng import Bits, draw_bits, hash64, label_hashes, unit
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import PathSet, load
from graphbuild.tasks.sampler import OnMissing, PathSampler
from graphbuild.tasks.together import Together
from graphbuild.tasks.walk import Walk

_DEFAULTS = SamplerConfig()
_CELLS = CellConfig()
_PART = label_hashes(["part"])

Data = tuple[Graph, str | os.PathLike[str] | PathSet, float]
"""A graph, its task list, and its relative weight."""


class TaskMixture:
    """Draws each grid task from one of several graphs, by their weights.

    Grid task i is the one that the `PathSampler` of its graph draws for i. All share seed, `path_repeat` and
    configuration: held-out tasks are held out in every list, and a picture is on the same side of a split in every
    graph that has it, or something that looks like it; the first such graph decides.

    Args:
        data: graphs, task lists and weights; a graph may come twice, with two lists.
        seed: as of `PathSampler`.
        path_repeat: as of `PathSampler`.
        config: as of `PathSampler`.
        on_missing: for a path that its graph cannot serve, `error` raises; `drop` leaves it out, and a graph that
            serves none of its paths as well.

    Attributes:
        parts: the samplers, in order.
        chances: the probability of each.
        lacking: why graphs were left out, in one line each.

    Raises:
        GraphError: a path cannot be served (`error`), or no graph serves any.
        ValueError: no data, a weight that is not above 0, or as `PathSampler`.
    """

    def __init__(
        self, data: Sequence[Data], *, seed: int = 0, path_repeat: int = 1, on_missing: OnMissing = "error",
        config: SamplerConfig = _DEFAULTS,
    ) -> None:  # fmt: skip
        if not data or not all(0 < weight < np.inf for *_, weight in data):
            raise ValueError(f"weights: {[weight for *_, weight in data]}; allowed: a number above 0 for each graph")
        known: dict[str, Graph] = {}
        graphs = [known.setdefault(graph.digest, graph) for graph, *_ in data]
        lists = [paths if isinstance(paths, PathSet) else load(paths) for _, paths, _ in data]
        together = Together(list(known.values()), lists)
        found, kept, self.lacking = list[PathSampler](), list[float](), list[str]()
        for graph, listed, (*_, weight) in zip(graphs, lists, data, strict=True):
            try:
                found.append(
                    PathSampler(
                        graph, listed, seed=seed, path_repeat=path_repeat, on_missing=on_missing, config=config,
                        together=together,
                    )
                )  # fmt: skip
                kept.append(weight)
            except GraphError as error:
                if on_missing == "error":
                    raise
                self.lacking.append(str(error))
        if not found:
            raise GraphError("; ".join(self.lacking))
        self.parts, self.seed, self.path_repeat, self.config = tuple(found), seed, path_repeat, config
        self.chances = np.array(kept) / sum(kept)
        named = [[part.listed.name, weight] for part, weight in zip(found, kept, strict=True)]
        self._key = hash64(canonical_json([{"mixture": named, "path_repeat": path_repeat}, seed]))

    @property
    def snapshot(self) -> str:
        """Digests of the graphs' states, one for each part."""
        return "+".join(part.graph.digest for part in self.parts)

    def part(self, index: int) -> PathSampler:
        """The sampler that draws grid task `index`; the same for `path_repeat` consecutive ones."""
        return self.parts[int(self._parts(np.array([index], np.uint64))[0])]

    def walk(self, index: int) -> Walk:
        """Grid task `index` as ids, of the graph of `part(index)`."""
        return self.part(index).walk(index)

    def walks(self, start: int, n: int) -> list[Walk]:
        """Grid tasks `start`, `start` + 1, ...: what `walk` gives for each, much faster."""
        indices = np.arange(start, start + n, dtype=np.uint64)
        at = self._parts(indices)
        drawn: dict[int, Walk] = {}
        for number, part in enumerate(self.parts):
            drawn |= {walk.index: walk for walk in part.walks_of(indices[at == number])}
        return [drawn[index] for index in range(start, start + n)]

    def task(self, index: int, resolution: int = 384, *, cells: CellConfig = _CELLS) -> GridTask:
        """Grid task `index` with its pictures; arguments as of `PathSampler.task`."""
        return self.part(index).task(index, resolution, cells=cells)

    def show(self, n: int = 3, start: int = 0, resolution: int = 224) -> Shown:
        """Grid tasks `start`, `start` + 1, ... as a notebook shows them."""
        return Shown("".join(str(self.part(at).show(1, at, resolution)) for at in range(start, start + n)))

    def _parts(self, indices: Bits) -> NDArray[np.int64]:
        drawn = unit(draw_bits(self._key, "mixture", indices // np.uint64(self.path_repeat), _PART))[:, 0]
        return np.minimum(np.cumsum(self.chances).searchsorted(drawn, "right"), len(self.parts) - 1)


Sampler = PathSampler | TaskMixture
"""What draws grid tasks: one graph's, or several's."""


def open_mixture(
    data: Sequence[DataConfig], paths: str = "graph200k", *, snapshots: Sequence[str] = (), seed: int = 0,
    path_repeat: int = 1, on_missing: OnMissing = "error", config: SamplerConfig = _DEFAULTS,
) -> TaskMixture:  # fmt: skip
    """The mixture of graphs at these places.

    Args:
        paths: the list of data that name none.
        snapshots: digests to open the graphs at, one for each entry; empty for their newest states.

    Raises:
        GraphError, ValueError: as `Graph.open` and `TaskMixture`.
    """
    digests: Sequence[str | None] = snapshots or [None] * len(data)
    places = [(entry.graph, digest) for entry, digest in zip(data, digests, strict=True)]
    graphs = {place: Graph.open(place[0], snapshot=place[1]) for place in dict.fromkeys(places)}
    parts = [(graphs[place], entry.paths or paths, entry.weight) for place, entry in zip(places, data, strict=True)]
    return TaskMixture(parts, seed=seed, path_repeat=path_repeat, on_missing=on_missing, config=config)
