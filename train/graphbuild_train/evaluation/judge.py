"""Judging pictures: every metric that has its weights here, one picture at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.tasks.grid import GridTask
from graphbuild_train.metrics.control import READ_AGAIN, Controls
from graphbuild_train.metrics.example import PICTURES, Example
from graphbuild_train.metrics.networks import networks
from graphbuild_train.metrics.table import ABSENT, METRICS

FID = "fid"


class Judge:
    """Measures pictures.

    Args:
        names: of metrics, by default all.
        weights: network -> other weights than its own.

    Attributes:
        names: of the metrics whose weights are here.
        left_out: metric -> why it is not measured.

    Raises:
        ValueError: no metric, or no network, of a name.
    """

    def __init__(
        self, names: Sequence[str] = (), weights: Mapping[str, str] | None = None, device: str = "cpu"
    ) -> None:
        known = (*METRICS, FID)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"metrics: {unknown[0]!r}; allowed: {', '.join(known)}")
        self.device, self._networks = device, networks(weights)
        self.left_out: dict[str, str] = {} if names else dict(ABSENT)
        wanted = [name for name in known if not names or name in names]
        self.names = [name for name in wanted if self._is_ready(name)]
        self._loaded: dict[str, Any] = {}

    def _is_ready(self, name: str) -> bool:
        network = _network(name)
        if network and (missing := self._networks[network].missing()):
            self.left_out[name] = missing
            return False
        return True

    @cached_property
    def identity(self) -> dict[str, str]:
        """Metric -> the weights that it is measured with; empty for those without."""
        return {name: self._networks[net].checkpoint.identity() if (net := _network(name)) else ""
                for name in self.names}  # fmt: skip

    def values(self, example: Example) -> dict[str, float]:
        """The figures of one picture that has them, but for those of sets."""
        found = {name: METRICS[name].measure(example, self.network(METRICS[name].network))
                 for name in self.names if name != FID}  # fmt: skip
        return {name: float(value) for name, value in found.items() if value is not None}

    def features(self, picture: Pixels) -> NDArray[np.float64]:
        """What sets are compared by."""
        found: NDArray[np.float64] = self.network("inception").picture(picture)
        return found

    def network(self, name: str) -> Any:
        """A network, loaded when it is first wanted; None for no name."""
        if name and name not in self._loaded:
            network = self._networks[name]
            self._loaded[name] = network.load(network.checkpoint.folder(), self.device)
        return self._loaded.get(name)


def example_of(task: GridTask, hole: int, made: Pixels, controls: Controls) -> Example:
    """A picture that was made for a hole of a task (a column), with what it is compared with."""
    kind, graph, item = task.kinds[hole], task.drawing.graph, task.walk.rows[-1]
    given = {shown.name: column for column, shown in enumerate(task.kinds) if column not in task.holes}
    maps: Mapping[str, Any] = {}
    if kind.family in PICTURES and any(name in READ_AGAIN for name in given):
        maps = controls.maps(list(given), made, task.frames[-1].cell(graph.read(item, "image").array()))
    return Example(
        made=made,
        truth=task.cell(-1, hole),
        kind=kind,
        given={name: task.cell(-1, column) for name, column in given.items()},
        caption=caption_of(task),
        maps=maps,
    )


def _network(name: str) -> str:
    return "inception" if name == FID else METRICS[name].network


def caption_of(task: GridTask) -> str:
    """The task's caption, or the item's, which also says what a styled version of its picture shows."""
    if task.caption:
        return task.caption
    graph = task.drawing.graph
    try:
        return graph.read(task.walk.rows[-1], "caption").text if "caption" in graph.head else ""
    except MissingNode:
        return ""
