"""Pictures of one to four pixels in height or width through every annotator with a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Derived, Request, Skip, needs_of
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Value
from graphbuild.images.node import Node
from graphbuild.kinds.registry import kind_of
from tests.support.everything import OTHERS, TINY

SIZES = [(8, 1), (8, 3), (1, 8), (2, 2)]
"""Width and height. Image processors that guess take a height of 1, 3 or 4 for channels."""
NETWORKS = {**TINY, **OTHERS}


def node(kind: str, width: int, height: int) -> Node:
    noise = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    grey = noise[:, :, 0]
    values: dict[str | None, Value] = {"text": "a dog", "png1": grey > 127, "labels": grey // 16, "jpeg_gray": grey}
    codec = kind_of(kind).codec
    if codec not in values:
        return Node.computed(0, kind, noise)
    encoded = CODECS[codec].encode(values[codec])
    return Node(0, kind, 0, "v", encoded.data, encoded.format, codec, {})


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_shape_is_annotated(name: str, tmp_path: Path) -> None:
    """Guards against a row that fails, or a map of another size than its picture, for pictures a few pixels high."""
    annotator = resolve(name, NETWORKS[name](tmp_path))
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    batch = [
        Request(item, {need: node(need, width, height) for need in needs_of(annotator)}, 0, 7)
        for width, height in SIZES
    ]
    for (width, height), result in zip(SIZES, annotator.annotate(batch, annotator.load("cpu")), strict=True):
        assert isinstance(result, Derived | Skip), (width, height, result)
        made = result.nodes.values() if isinstance(result, Derived) else ()
        assert all(each.shape[:2] == (height, width) for each in made if isinstance(each, np.ndarray))
