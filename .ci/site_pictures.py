"""Example pictures of the site, made from the sample source while it is built: by each annotator that runs there, and
of the computed kinds that are no degradations.

An annotator with weights has one where `$GRAPHBUILD_TEST_DATA/weights` holds their file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

import graphbuild as gb
from graphbuild.annotators.base import Annotator, Derived, Request, makes_of
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.dis_flow import DisFlow
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.annotators.lsd import Lsd
from graphbuild.annotators.mlsd import Mlsd
from graphbuild.annotators.pidinet import Pidinet
from graphbuild.annotators.scribble import Scribble
from graphbuild.annotators.style_picker import StylePicker
from graphbuild.contracts import Item
from graphbuild.images.codecs import Pixels, codec_of
from graphbuild.images.degradations import NAMES
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS, Kind

STYLES = ("astronaut", "coffee", "coins")
_HEIGHT, _GAP, _QUALITY, _SEED = 180, 4, 85, 1


def of_annotators() -> dict[str, bytes]:
    """Annotator -> a JPEG of what it reads, and beside it what it makes."""
    weights = Path(os.environ.get("GRAPHBUILD_TEST_DATA", "")) / "weights"
    coffee, cat, face, left, right = map(
        _photo, ("coffee", "chelsea", "astronaut", "motorcycle_left", "motorcycle_right")
    )
    made = {
        "canny": _made(Canny(), coffee),
        "lsd": _made(Lsd(), left),
        "grabcut": _made(Grabcut(), coffee),
        "dis_flow": _made(DisFlow(), left, {"reference": right}),
        "style_picker": _picked(cat),
        "pidinet": _made(Pidinet(model=str(weights / "table5_pidinet.pth")), face),
        "mlsd": _made(Mlsd(model=str(weights), variant="tiny"), left),
    }
    if len(made["pidinet"]) > 1:
        edges = made["pidinet"][-1]
        made["scribble"] = [edges, _made(Scribble(), face, {"hed": edges})[-1]]
    return {name: _strip(nodes) for name, nodes in made.items() if len(nodes) > 1}


def of_computed_kinds() -> dict[str, bytes]:
    """Kind -> a JPEG of it."""
    coffee = _photo("coffee")
    parents = {"image": coffee, "foreground_mask": _made(Grabcut(), coffee)[-1]}
    kinds = [kind for kind in KINDS.values() if kind.computed is not None and kind.name not in NAMES]
    return {kind.name: _jpeg(kind.computed(parents, _SEED)) for kind in kinds if kind.computed is not None}


def _photo(name: str) -> Node:
    """A photograph, so small that lines in it are seen in a table."""
    (item,) = gb.source("sample").read([f"{name}.png"])
    picture = _node(KINDS["image"], item.nodes["image"]).array()
    size = (round(picture.shape[1] * _HEIGHT / picture.shape[0]), _HEIGHT)
    small = cv2.cvtColor(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return _node(KINDS["image"], cv2.imencode(".png", small)[1].tobytes())


def _node(kind: Kind, value: object) -> Node:
    codec = kind.codec or "source"
    encoded = codec_of(codec).encode(value)
    return Node(0, kind.name, 0, "", encoded.data, encoded.format, codec, encoded.attrs)


def _made(annotator: Annotator, image: Node, others: Mapping[str, Node] | None = None, variant: int = 0) -> list[Node]:
    """What it reads and what it makes; the picture alone where its weights are missing."""
    inputs = {"image": image, **(others or {})}
    if annotator.missing():
        return [image]
    item = Item(0, "0" * 32, "", None, None, None, None, None)
    (result,) = annotator.annotate([Request(item, inputs, variant, _SEED)], annotator.load("cpu"))
    assert isinstance(result, Derived), result
    makes = makes_of(annotator)
    return [*inputs.values(), *(_node(makes[kind], value) for kind, value in result.nodes.items())]


def _picked(image: Node) -> list[Node]:
    with tempfile.TemporaryDirectory() as folder:
        for name in STYLES:
            (Path(folder) / f"{name}.png").write_bytes(_photo(name).bytes)
        picker = StylePicker(folder=folder, variants=2)
        return [image, *(_made(picker, image, variant=variant)[-1] for variant in range(2))]


def _strip(nodes: Sequence[Node]) -> bytes:
    gap = np.full((_HEIGHT, _GAP, 3), 255, np.uint8)
    return _jpeg(np.concatenate([part for node in nodes for part in (gap, node.array())][1:], axis=1))


def _jpeg(picture: Pixels) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()
