"""Pictures of one pixel in height or width, and long strips, through codecs, annotators without weights and reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graphbuild.images.codecs import CODECS
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

SIZES = [(1, 1), (1, 300), (300, 1), (2, 2), (3, 500), (20_000, 1), (1, 20_000), (20_000, 3)]
"""Width and height."""


def noise(width: int, height: int) -> Any:
    return np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_codecs(width: int, height: int) -> None:
    """Guards against an encoder, or a drawing, that divides by a side or rounds it to nothing."""
    picture = noise(width, height)
    values = {
        "source": picture, "jpeg": picture, "jpeg444": picture, "png": picture, "jpeg_gray": picture[:, :, 0],
        "png1": picture[:, :, 0] > 127, "png8": picture[:, :, 0], "labels": picture[:, :, 0] // 64,
        "pose": {"width": width, "height": height, "people": [{"keypoints": [[0, 0, 1.0]] * 18}]},
        "boxes": {"width": width, "height": height,
                  "boxes": [{"label": "a", "box": [0, 0, width, height], "colour": [9, 9, 9]}]},
        "rays": {"width": width, "height": height, "focal": [9.0, 9.0], "centre": [width / 2, height / 2],
                 "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
    }  # fmt: skip
    assert set(values) | {"text", "json"} == set(CODECS)
    for codec, value in values.items():
        encoded = CODECS[codec].encode(value)
        attrs = {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]} if codec == "labels" else {}
        node = Node(0, "image", 0, "v", encoded.data, encoded.format, codec, attrs)
        assert (encoded.width, encoded.height) == (width, height) == node.array().shape[1::-1], codec
        if encoded.format == "jpeg":
            reduced = node.at_eighths(1)
            assert reduced is not None and reduced.shape[:2] == (-(-height // 8), -(-width // 8)), codec


def test_annotators_and_computed_kinds(tmp_path: Path) -> None:
    """Guards against shapes that an annotator fails on: each has a row that is ok, or skipped for want of content."""
    (tmp_path / "photos").mkdir()
    for width, height in SIZES:
        Image.fromarray(noise(width, height)).save(tmp_path / "photos" / f"{width}x{height}.png")
    complete(build(tmp_path / "photos", tmp_path / "g", ["canny", "lsd", "grabcut"]))
    graph = Graph.open(tmp_path / "g")
    for kind in ("image", "canny", "lines", "foreground_mask"):
        rows = graph.edges(kind).to_pylist()
        assert len(rows) == len(SIZES)
        assert [row for row in rows if row["status"] == "failed"] == [], kind
    for row in graph.edges("foreground_mask").to_pylist():
        computed = [kind.name for kind in KINDS.values() if kind.is_computed]
        for kind in computed if row["status"] == "ok" else [name for name in computed if "ground" not in name]:
            assert graph.read(row["item_ix"], kind, seed=1).array().size > 0
