"""Whether the masks of objects lie in their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Derived, Each, Request, Score, scored
from graphbuild.images.node import Node

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class MaskBoxes(Score):
    """Mean, over the named objects, of the intersection over union of an object's box and the bounding box of its mask,
    which has the box's colour. Masks of another picture, or of each other, have a low one; `missing` is the share of
    objects without a mask."""

    needs: ClassVar[tuple[str | Each, ...]] = ("boxes",)
    of: str = "mask"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived:
        document, mask = request.inputs["boxes"].values(), request.inputs["judged"]
        found = [_overlap(box, _extent(mask, box["colour"], document)) for box in document["boxes"]]
        missing = sum(value is None for value in found)
        count = max(1, len(found))
        return scored(sum(value or 0.0 for value in found) / count, missing=missing / count)


def _extent(mask: Node, colour: Sequence[int], document: Mapping[str, Any]) -> Box | None:
    """Left, top, right and bottom of what has a colour, in the pixels of the boxes; None if nothing has."""
    labels: NDArray[np.uint8] = mask.values()
    palette = [list(entry) for entry in mask.attrs["palette"]]
    if list(colour) not in palette:
        return None
    rows, columns = np.nonzero(labels == palette.index(list(colour)))
    if not len(rows):
        return None
    across, along = document["width"] / labels.shape[1], document["height"] / labels.shape[0]
    left, right = columns.min() * across, (columns.max() + 1) * across
    return float(left), float(rows.min() * along), float(right), float((rows.max() + 1) * along)


def _overlap(box: Mapping[str, Any], extent: Box | None) -> float | None:
    """Intersection over union of two boxes."""
    if extent is None:
        return None
    one, other = np.array(box["box"], float), np.array(extent)
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    union = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return shared / union if union > 0 else 0.0
