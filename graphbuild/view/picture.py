"""Pictures of nodes for a page: made small on the way, from bytes read at their offset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphbuild.errors import MissingNode
from graphbuild.hashing import digest_of
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS
from graphbuild.store.graph import Graph
from graphbuild.store.nodes import read_node

SIZES = (144, 320, 1280)
"""Longest sides in pixels: in the picture of an item's graph, in the grid, and by itself."""

WORDS = ("text", "json")
"""Codecs without a picture."""

_KEPT = 512  # pictures in memory, of about 20 kB
_QUALITY = 88


class Address(NamedTuple):
    """A node of a graph; without a version the live one."""

    item_ix: int
    kind: str
    variant: int = 0
    version: str | None = None
    seed: int = 0


def stored(graph: Graph, place: Address) -> Node:
    """A node, also of an excluded item.

    Raises:
        MissingNode: it is not stored.
        CorruptNode: its bytes changed.
    """
    if _is_computed(graph, place.kind):
        return graph.read(place.item_ix, place.kind, seed=place.seed)
    rows = graph.rows(place.item_ix, place.kind, place.version)
    row = rows.find(place.item_ix, place.kind, place.variant)
    if row is None or rows.value(row, "status") != "ok":
        raise MissingNode(rows.why_missing(row, place.item_ix, place.kind, place.variant))
    return read_node(graph.fs, rows, row)


def tag(graph: Graph, place: Address) -> str:
    """What changes when the picture does, without reading it: the hash that its edge recorded.

    Raises:
        MissingNode: as `stored`.
    """
    if _is_computed(graph, place.kind):
        parents = KINDS[place.kind].parents
        return digest_of(
            [[tag(graph, place._replace(kind=name, variant=0)) for name in parents], place.kind, place.seed]
        )
    rows = graph.rows(place.item_ix, place.kind, place.version)
    row = rows.find(place.item_ix, place.kind, place.variant)
    if row is None or rows.value(row, "status") != "ok":
        raise MissingNode(rows.why_missing(row, place.item_ix, place.kind, place.variant))
    return str(rows.value(row, "content_hash"))


def _is_computed(graph: Graph, kind: str) -> bool:
    return kind not in graph.head and kind in KINDS and KINDS[kind].is_computed


class Thumbnails:
    """JPEG files of nodes, the recent ones kept; not the graphs that they are of."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Address, int, str], bytes] = {}

    def jpeg(self, graph: Graph, place: Address, size: int, of: str) -> bytes:
        """A picture whose longest side has at most `size` pixels; never enlarged.

        Args:
            of: the `tag` of the node.
        """
        key = (place, size, of)
        made = self._kept.get(key)
        if made is None:
            made = self._kept[key] = encoded(small(stored(graph, place), size))
            for oldest in list(self._kept)[:-_KEPT]:
                self._kept.pop(oldest, None)
        return made


def small(node: Node, size: int) -> Pixels:
    """The picture of a node, its longest side at most `size`: H x W x 3 RGB uint8."""
    import cv2

    pixels = _reduced(node, size)
    pixels = node.array() if pixels is None else pixels
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    if scale >= 1:
        return pixels
    fitted = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, fitted, interpolation=cv2.INTER_AREA), np.uint8)


def _reduced(node: Node, size: int) -> Pixels | None:
    """A large JPEG at some eighths of its size, never below `size`."""
    found = node.jpeg_size()
    if found is None or (eighths := -(-8 * size // max(found))) >= 8:
        return None
    return node.at_eighths(eighths)


def encoded(pixels: Pixels) -> bytes:
    """A JPEG file of H x W (x 3 RGB) uint8."""
    import cv2

    shown = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
    ok, data = cv2.imencode(".jpg", shown, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
    assert ok, "an uint8 picture can be encoded"
    return data.tobytes()
