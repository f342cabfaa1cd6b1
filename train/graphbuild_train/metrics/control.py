"""Conditions made again from a generated picture, by the annotators that made them in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from graphbuild.annotators import recorded
from graphbuild.annotators.base import Annotator, Derived, Request, needs_of
from graphbuild.contracts import Item
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from graphbuild_train.metrics.example import Maps

READ_AGAIN = ("canny", "lines", "scribble", "depth", "hed", "lineart", "normal", "pose", "foreground_mask", "semantic",
              "clothes", "mask")  # fmt: skip
"""Conditions of which two maps can be compared."""


class Controls:
    """The annotators of a graph's conditions, each loaded when it is first wanted.

    Args:
        weights: condition -> a folder or hub repository to load instead of what the graph recorded; folders are never
            taken from a graph.

    Attributes:
        left_out: condition -> why it cannot be made again here.
    """

    def __init__(self, graph: Graph, device: str = "cpu", weights: Mapping[str, str] | None = None) -> None:
        self.graph, self.device, self.weights = graph, device, weights or {}
        self.left_out: dict[str, str] = {}
        self._known: dict[str, Annotator | None] = {}
        self._models: dict[str, Any] = {}

    def maps(self, given: Sequence[str], made: Pixels, picture: Pixels) -> Maps:
        """For each of these kinds that can be made again: that of `made`, and that of `picture`.

        Args:
            made: generated, H x W x 3 RGB uint8.
            picture: the item's own, fitted to the same cell, so that both are annotated at one size.
        """
        pairs = {kind: (self._of(kind, made), self._of(kind, picture)) for kind in given if self.annotator(kind)}
        return {kind: pair for kind, pair in pairs.items() if all(each is not None for each in pair)}

    def _of(self, kind: str, picture: Pixels) -> Any:
        """The condition of one picture; None where the annotator finds nothing."""
        annotator = self.annotator(kind)
        assert annotator is not None
        if kind not in self._models:
            self._models[kind] = annotator.load(self.device)
        request = Request(_ITEM, {"image": Node.computed(0, "image", picture)}, 0, 0)
        (made,) = annotator.annotate([request], self._models[kind])
        if isinstance(made, Exception):
            raise made
        return made.nodes[kind] if isinstance(made, Derived) else None

    def annotator(self, kind: str) -> Annotator | None:
        """What makes a condition again; None, and a reason in `left_out`, if it cannot be made here."""
        if kind not in self._known:
            self._known[kind] = self._usable(kind)
        return self._known[kind]

    def _usable(self, kind: str) -> Annotator | None:
        if kind not in READ_AGAIN or kind not in self.graph.head:
            return None
        try:
            annotator = self._recorded(kind)
        except ValueError as error:
            self.left_out[kind] = str(error)
            return None
        if missing := annotator.missing():
            self.left_out[kind] = "; ".join(missing)
        elif needs_of(annotator) != {"image": "image"}:
            self.left_out[kind] = "its annotator reads more than the picture"
        return None if kind in self.left_out else annotator

    def _recorded(self, kind: str) -> Annotator:
        document = self.graph.commits(kind)[0].document
        if kind not in self.weights:
            return recorded(document.use, document.config)
        config = {name: value for name, value in document.config.items() if name != "model"}
        return replace(recorded(document.use, config), model=self.weights[kind])  # type: ignore[call-arg]


_ITEM = Item(0, "0" * 32, "", *(None,) * 5)
"""A picture that is judged alone."""
