"""One item as a picture of its graph: its nodes from source to derived, what made them, and how it came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphbuild.contracts import FINAL_REASONS, LineageDocument, Live
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.view.look import Look
from graphbuild.view.picture import WORDS

WIDTH, HEIGHT, MARGIN = 152, 176, 14
"""Of a box of the drawing, and around all of them, in pixels."""

_DOWN, _BESIDE, _DEEPER = HEIGHT + 26, WIDTH + 40, WIDTH + 84  # to the next box below, beside, and made from this one
_LANE = 13  # above a box: there run the lines that come from farther away
_MOST_ROWS = 5
_FIX = "put a good file in its place and run the command that made the graph again, with --accept-changed"

Key = tuple[str, int]
"""(kind, variant) of a node of the item."""


@dataclass(kw_only=True)
class NodeBox:
    """A planned node of an item: its edge, and its place in the drawing.

    Attributes:
        edge: the row of the edges part.
        live: annotator and version; `lineage`: what the version is the hash of.
        codec: how its bytes hold the value.
        mend: the command or the words that mend a failure; empty for others.
        seconds: that a node took, as the mean of the newest runs; None if no run says so.
    """

    kind: str
    variant: int
    edge: Mapping[str, Any]
    live: Live
    lineage: LineageDocument
    codec: str
    mend: str = ""
    seconds: float | None = None
    x: int = 0
    y: int = 0

    @property
    def key(self) -> Key:
        return self.kind, self.variant

    @property
    def name(self) -> str:
        return f"{self.kind} {self.variant}" if self.variant else self.kind

    @property
    def ok(self) -> bool:
        return bool(self.edge["status"] == "ok")

    @property
    def pictured(self) -> bool:
        """Whether it is stored and has a picture."""
        return self.ok and self.codec not in WORDS

    @property
    def parents(self) -> Sequence[Mapping[str, Any]]:
        return self.edge["parents"] or ()


class Arrow(NamedTuple):
    """A curve from a parent to its child, as an SVG path."""

    start: Key
    end: Key
    path: str
    ok: bool


@dataclass(kw_only=True)
class ItemGraph:
    """The drawing of an item's nodes, `width` x `height` pixels."""

    item_ix: int
    boxes: list[NodeBox]
    arrows: list[Arrow] = field(default_factory=list)
    width: int = 0
    height: int = 0
    pending: list[str] = field(default_factory=list)

    @property
    def pictured(self) -> list[NodeBox]:
        return [box for box in self.boxes if box.pictured]


def item_graph(look: Look, item_ix: int, pace: Mapping[str, float] | None = None) -> ItemGraph:
    """The live nodes of one item.

    Args:
        pace: annotator -> seconds a node.

    Raises:
        MissingNode: no such item.
    """
    boxes, pending = list[NodeBox](), list[str]()
    for kind, edges in sorted(look.edges(item_ix).items(), key=lambda each: (each[0] != "image", each[0])):
        live, lineage = look.graph.live(kind), look.lineage(kind)
        boxes += [
            NodeBox(
                kind=kind, variant=edge["variant"], edge=edge, live=live, lineage=lineage, codec=lineage.codec[kind],
                mend=mend(look.graph, live.annotator, edge["status"], edge["reason"]),
                seconds=(pace or {}).get(live.annotator),
            )
            for edge in edges
        ]  # fmt: skip
        pending += [] if edges else [kind]
    return _laid_out(ItemGraph(item_ix=item_ix, boxes=boxes, pending=pending))


def mend(graph: Graph, annotator: str, status: str, reason: str | None) -> str:
    """How a node that is not there can be had: a command, or words; empty where nothing is to be done."""
    if status != "failed":
        return ""
    if reason in FINAL_REASONS and annotator.startswith("source:"):
        return f"final: {_FIX}"
    if reason in FINAL_REASONS:
        return "final: its input cannot be used"
    path = " --path FOLDER" if annotator.startswith("source:") else ""
    return f"graphbuild retry {shlex.quote(graph.url)}{path}"


# ---- layout ----------------------------------------------------------------------------------------------------


def _laid_out(drawn: ItemGraph) -> ItemGraph:
    """Places of boxes, column after column by the longest way from a source, and the curves between them."""
    by_key = {box.key: box for box in drawn.boxes}
    own = {box.key: [_key(p) for p in box.parents if _key(p) in by_key and p["item_ix"] == drawn.item_ix]
           for box in drawn.boxes}  # fmt: skip
    columns: dict[int, list[NodeBox]] = {}
    for key, depth in _depths(own, drawn.item_ix).items():
        columns.setdefault(depth, []).append(by_key[key])
    are_parents = {key for parents in own.values() for key in parents}
    tallest, left = max((_rows(len(boxes)) for boxes in columns.values()), default=0), MARGIN
    for _, boxes in sorted(columns.items()):
        rows = _rows(len(boxes))
        for number, box in enumerate(sorted(boxes, key=lambda box: box.key in are_parents)):
            across, down = divmod(number, rows)
            box.x, box.y = left + across * _BESIDE, MARGIN + _LANE + ((tallest - rows) // 2 + down) * _DOWN
        left += (len(boxes) - 1) // rows * _BESIDE + _DEEPER
    drawn.width = max((box.x + WIDTH for box in drawn.boxes), default=0) + MARGIN
    drawn.height = max((box.y + HEIGHT for box in drawn.boxes), default=0) + MARGIN
    drawn.arrows = [_arrow(by_key[start], box) for box in drawn.boxes for start in dict.fromkeys(own[box.key])]
    return drawn


def _rows(boxes: int) -> int:
    """Of a column that is divided into as few as can be, of equal height."""
    return -(-boxes // -(-boxes // _MOST_ROWS))


def _depths(parents: Mapping[Key, Sequence[Key]], item_ix: int) -> dict[Key, int]:
    """The longest way of each node from one without parents."""
    depths = dict.fromkeys(parents, 0)
    for _ in parents:
        new = {key: 1 + max((depths[parent] for parent in own), default=-1) for key, own in parents.items()}
        if new == depths:
            return depths
        depths = new
    if parents:
        raise GraphError(f"item {item_ix}: nodes are made from each other; see graphbuild verify")
    return depths


def _key(parent: Mapping[str, Any]) -> Key:
    return parent["kind"], parent["variant"]


def _arrow(start: NodeBox, end: NodeBox) -> Arrow:
    """A curve to a box in the next column; to one farther away, along the lane above it, so that it meets no other."""
    x, y = start.x + WIDTH, start.y + HEIGHT // 2
    to_x, to_y = end.x, end.y + HEIGHT // 2
    if to_x - x <= _DEEPER - WIDTH:
        middle = (x + to_x) // 2
        path = f"M{x},{y} C{middle},{y} {middle},{to_y} {to_x},{to_y}"
    else:
        out, back, lane = x + _DEEPER - WIDTH - 16, to_x - 26, end.y - _LANE
        rise = f"M{x},{y} C{x + 34},{y} {x + 34},{lane} {out},{lane}"
        path = f"{rise} H{back} C{to_x},{lane} {to_x - 24},{to_y} {to_x},{to_y}"
    return Arrow(start.key, end.key, path, end.ok)
