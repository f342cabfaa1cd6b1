"""Labels: names and colours of the objects in a mask, label map or boxes, for the instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.hashing import canonical_json
from graphbuild.images.node import Node

Colour = tuple[int, int, int]
COLOURS: Mapping[str, Colour] = {
    "black": (0, 0, 0),
    "dark grey": (80, 80, 80),
    "grey": (128, 128, 128),
    "light grey": (200, 200, 200),
    "white": (255, 255, 255),
    "maroon": (128, 0, 0),
    "red": (230, 20, 20),
    "pink": (255, 160, 190),
    "brown": (130, 75, 35),
    "orange": (255, 140, 0),
    "beige": (235, 215, 175),
    "yellow": (255, 230, 20),
    "olive": (128, 128, 0),
    "green": (30, 160, 40),
    "lime": (60, 255, 30),
    "teal": (0, 128, 128),
    "cyan": (0, 230, 255),
    "navy": (0, 0, 128),
    "blue": (20, 60, 240),
    "purple": (130, 20, 150),
    "magenta": (255, 0, 230),
    "lavender": (190, 170, 240),
}
"""Names of colours in an instruction."""

_BLACK: Colour = (0, 0, 0)

LABELLED = ("labels", "boxes")
"""Codecs whose values can have names."""


def labels_of(node: Node) -> list[tuple[str, Colour]]:
    """Names and RGB colours of what a node shows, largest area first for label maps; empty if it names nothing.

    A label map has attrs `labels` (a name for each label, "" for none) and `palette`; boxes have both themselves.
    """
    if node.codec == "labels":
        return _map_labels(node.values(), node.attrs)
    if node.codec == "boxes":
        found = [(each["label"], _rgb(each["colour"])) for each in node.values()["boxes"]]
        return list(dict.fromkeys(found))
    return []


def recoloured(node: Node, colours: Mapping[str, Colour]) -> Node:
    """A label map or boxes with these names in these colours; what has another name, or none, is not shown."""
    if node.codec == "boxes":
        document = node.values()
        shown = [
            {**each, "colour": list(colours[each["label"]])} for each in document["boxes"] if each["label"] in colours
        ]
        return replace(node, bytes=canonical_json({**document, "boxes": shown}).encode())
    names, palette = node.attrs.get("labels") or [], node.attrs["palette"]
    painted = [list(colours.get(str(name), _BLACK)) for name in names[: len(palette)]]
    return replace(node, attrs={**node.attrs, "palette": painted + [list(_BLACK)] * (len(palette) - len(painted))})


def colour_name(rgb: Sequence[int]) -> str:
    """The name in `COLOURS` nearest to an RGB colour of 0..255, green counting most and blue least, as to the eye."""
    weights = (2, 4, 3)

    def distance(name: str) -> int:
        return sum(w * (int(a) - b) ** 2 for w, a, b in zip(weights, rgb, COLOURS[name], strict=True))

    return min(COLOURS, key=distance)


def _map_labels(values: NDArray[np.uint8], attrs: Mapping[str, Any]) -> list[tuple[str, Colour]]:
    names, palette = attrs.get("labels") or [], attrs.get("palette") or []
    areas = np.bincount(values.ravel(), minlength=1)
    shown = [int(label) for label in np.argsort(-areas, kind="stable") if areas[label]]
    known = [label for label in shown if label < min(len(names), len(palette))]
    named = [label for label in known if names[label] not in ("", None, "background")]
    return [(str(names[label]), _rgb(palette[label])) for label in named]


def _rgb(colour: Sequence[int]) -> Colour:
    red, green, blue = colour
    return int(red), int(green), int(blue)
