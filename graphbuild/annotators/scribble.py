"""Scribbles: soft edges reduced to thick strokes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graphbuild.annotators.base import Annotator, Derived, Request, Side, Skip

_LINES = (((0, 0, 0), (1, 1, 1), (0, 0, 0)), ((0, 1, 0), (0, 1, 0), (0, 1, 0)))
_DIAGONALS = (((1, 0, 0), (0, 1, 0), (0, 0, 1)), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
_THICKENED = 3.0
_LEAST = 4


@dataclass(frozen=True, kw_only=True)
class Scribble(Annotator):
    """Thick white strokes on black along the ridges of soft edges, whichever annotator made those (L. Zhang et al.,
    "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543). No weights.

    The edges, at `resolution`, are smoothed; pixels that are the maximum across one of four directions and brighter
    than `threshold` are ridges, which are blurred by 3 pixels and cut at 4 of 255. The score is the share of the
    picture that strokes cover (0..1).

    Args:
        threshold: least brightness of a smoothed edge, 0..255; 127 is ControlNet's.
        smoothing: deviation in pixels of the Gaussian before; more gives fewer, rounder strokes.
        resolution: short side in pixels at which strokes are drawn, so that they are as thick, for their picture, in
            any size; smaller pictures are enlarged.

    Skips with `no_strokes` where no edge is bright enough.
    """

    needs: ClassVar[tuple[str, ...]] = ("hed",)
    makes: ClassVar[tuple[str, ...]] = ("scribble",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    threshold: Annotated[float, Field(ge=0, le=255)] = 127.0
    smoothing: Annotated[float, Field(gt=0, le=100)] = 3.0
    resolution: Side = 512

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._one(request.inputs["hed"].values()) for request in batch]

    def _one(self, edges: NDArray[np.uint8]) -> Derived | Skip:
        height, width = edges.shape
        scale = min(self.resolution / min(height, width), 4 * self.resolution / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(edges, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        ridges = _ridges(cv2.GaussianBlur(small.astype(np.float32), (0, 0), self.smoothing), self.threshold)
        strokes = cv2.GaussianBlur(ridges, (0, 0), _THICKENED) > _LEAST
        drawn = cv2.resize(strokes.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
        return Derived({"scribble": drawn}, score=float(drawn.mean())) if drawn.any() else Skip("no_strokes")


def _ridges(smooth: NDArray[Any], threshold: float) -> NDArray[np.uint8]:
    """255 where a pixel is the largest along one of the four directions, else 0."""
    peaks = np.zeros(smooth.shape, bool)
    for line in (*_LINES, *_DIAGONALS):
        peaks |= cv2.dilate(smooth, np.array(line, np.uint8)) == smooth
    return (peaks & (smooth > threshold)).astype(np.uint8) * np.uint8(255)
