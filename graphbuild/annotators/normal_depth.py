"""Whether normals fit the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Derived, Each, Request, Score, Skip, scored

_BLUR = 0.01  # of the longer side
_STEEP, _EDGES = 50, 98  # percentiles of the gradient between which it says where a surface faces
_FACING = 0.1  # least part of a normal across the line of sight


@dataclass(frozen=True, kw_only=True)
class NormalDepth(Score):
    """How well the directions that surfaces face, up or down and left or right, fit the slope of the depth, from 0 (the
    opposite) over 0.5 (nothing in common) to 1; where the depth changes, but is not torn. Depth has no scale, so that
    how steep a surface is says nothing.

    Skips with `flat` where depth or normals have no slope.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("depth",)
    of: str = "normal"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived | Skip:
        depth: NDArray[np.uint8] = request.inputs["depth"].values()
        slope = _slope(depth)
        facing = _facing(request.inputs["judged"].array(), depth.shape)
        steep, across = np.linalg.norm(slope, axis=2), np.linalg.norm(facing, axis=2)
        told = (steep > 0) & (across > _FACING)
        if not told.any():
            return Skip("flat")
        low, high = np.percentile(steep[told], (_STEEP, _EDGES))
        told &= (steep >= low) & (steep <= high)
        cosine = (slope * facing).sum(2)[told] / (steep * across)[told]
        return scored((1 + float(cosine.mean())) / 2, share=float(told.mean()))


def _slope(depth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """H x W x 2: how much a surface faces right and up, by the depth, in which near is bright."""
    import cv2

    sigma = max(1.0, _BLUR * max(depth.shape))
    down, right = np.gradient(cv2.GaussianBlur(depth.astype(np.float64), (0, 0), sigma))
    return np.stack([-right, down], 2)


def _facing(normal: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The same by the normals, in the colours of `marigold_normals`: green is up, blue left."""
    import cv2

    resized = cv2.resize(normal, shape[1::-1], interpolation=cv2.INTER_AREA) / 127.5 - 1
    return np.stack([-resized[:, :, 2], resized[:, :, 1]], 2)
