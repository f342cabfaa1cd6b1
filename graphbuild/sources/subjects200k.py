"""Subjects200K: pairs of pictures of one subject, side by side on one canvas, in Parquet shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from graphbuild.errors import UnusableImage
from graphbuild.images.codecs import Pixels, check_image
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location
from graphbuild.sources.places import Place
from graphbuild.sources.tables import listed, rows_of

COLUMNS = ("image.bytes", "collection", "quality_assessment", "description")
"""What is read of each row; other columns of a shard are left alone."""

_REQUIRED = {*COLUMNS, "description.description_0", "description.description_1"}


class Box(NamedTuple):
    """A rectangle in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def squares(width: int, height: int) -> tuple[Box, Box] | None:
    """The left and the right square of a canvas, or None if it cannot hold two.

    W = 2s + 3p and H = s + 2p for side s and padding p, hence p = 2H - W and s = 2W - 3H.
    """
    padding, side = 2 * height - width, 2 * width - 3 * height
    if padding < 0 or side <= 0:
        return None
    bottom, second = padding + side, 2 * padding + side
    return Box(padding, padding, bottom, bottom), Box(second, padding, second + side, bottom)


@dataclass(frozen=True, kw_only=True)
class Subjects200K(Source):
    """Subjects200K (Tan et al., OminiControl, arXiv 2411.15098): 206,841 pairs, 10.6 GB, Apache-2.0.

    The left square of a canvas, with `description_0`, is `image`; the right one, with `description_1`, is
    `reference`. Captions are `item + " " + description`, as VisualCloze trains them: a description alone ("this item
    is photographed up close") need not name its subject. The squares are worked out for every row, because the
    collections differ in padding. Nothing is filtered: `quality_assessment` goes to `meta` as it is, null included.

    A shard that is gone or damaged stops the read instead of failing its thousands of rows: it can be fetched again.

    Attributes:
        path: a folder of Parquet shards, local or any fsspec URL; it may pin a commit (`...Subjects200K@<commit>`).
    """

    name: ClassVar[str] = "subjects200k"
    makes: ClassVar[tuple[str, ...]] = ("image", "reference")
    path: Any = location("hf://datasets/Yuanshi/Subjects200K")

    def entries(self) -> Sequence[Entry]:
        """Every row of every shard, from the footers alone."""
        entries = listed(Place.at(self.path, self.name), [".parquet"], _check_columns)
        if not entries:
            raise ValueError(f"source 'subjects200k': no Parquet rows in {self.path}; give the folder with the shards")
        return entries

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The pairs, cut out of their canvases. Only row groups with wanted rows are read, a few rows at a time.

        Raises:
            ValueError: a shard is gone, is not Parquet, or has fewer rows than it had when it was listed.
            OSError: a shard is damaged inside, or its file system failed.
        """
        for _, key, values in rows_of(Place.at(self.path, self.name), keys, lambda leaves: COLUMNS):
            yield _item(key, values)

    def codec(self, kind: Kind) -> str:
        """Crops are encoded anew, in full colour resolution."""
        return "jpeg444"


def _check_columns(leaves: Sequence[str], file: str) -> None:
    found = {".".join(path.split(".")[:depth]) for path in leaves for depth in (1, 2)}
    missing = sorted(_REQUIRED - found)
    if missing:
        raise ValueError(
            f"source 'subjects200k': {file} lacks the columns {', '.join(missing)}; it has {', '.join(leaves)}"
        )


def _item(key: str, values: Mapping[str, Any]) -> SourceItem:
    canvas = (values["image"] or {}).get("bytes")
    description = values["description"] or {}
    left, right = _pair(canvas)
    return SourceItem(
        key=key,
        uri=key,
        original=canvas,
        nodes={"image": left, "reference": right},
        licence="Apache-2.0",
        attribution="Yuanshi/Subjects200K",
        caption=_caption(description, "description_0"),
        reference_caption=_caption(description, "description_1"),
        subject=description.get("item") or None,
        category=description.get("category") or None,
        meta={
            "collection": values["collection"],
            "quality_assessment": values["quality_assessment"],
            "description_valid": description.get("description_valid"),
        },
    )


def _caption(description: Mapping[str, Any], side: str) -> str | None:
    words = description.get(side)
    return " ".join(filter(None, (description.get("item"), words))) if words else None


def _pair(canvas: bytes | None) -> tuple[Pixels, Pixels] | tuple[Unusable, Unusable]:
    if canvas is None:
        return (Unusable("undecodable", "null image"),) * 2
    try:
        _, pixels = check_image(canvas)
    except UnusableImage as error:
        return (Unusable(error.reason, str(error)),) * 2
    height, width = pixels.shape[:2]
    boxes = squares(width, height)
    if boxes is None:
        return (Unusable("bad_geometry", f"{width}x{height}"),) * 2
    return _crop(pixels, boxes[0]), _crop(pixels, boxes[1])


def _crop(pixels: Pixels, box: Box) -> Pixels:
    return np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
