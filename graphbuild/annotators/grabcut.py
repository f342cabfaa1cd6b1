"""A foreground mask without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from graphbuild.annotators.base import Condition, Derived, Request, Side, Skip
from graphbuild.images.codecs import Pixels


@dataclass(frozen=True, kw_only=True)
class Grabcut(Condition):
    """Foreground mask, white on black, from a centre prior (C. Rother et al., "GrabCut", SIGGRAPH 2004).

    The picture is reduced to `resolution`, everything outside a centred rectangle is taken for background, and the
    segmentation is enlarged again. The score is the mask's share of the picture (0..1). A picture without foreground,
    or with less than `smallest`, is skipped as `no_foreground`.

    Args:
        margin: width of the certain background on each side, as a fraction of that side.
        iterations: of graph cuts.
        resolution: long side in pixels at which the cut is computed.
        smallest: share of the picture below which a mask shows no subject: a few bright pixels of a background.
    """

    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)
    code_version: ClassVar[int] = 2
    item_facts: ClassVar[tuple[str, ...]] = ()
    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    iterations: Annotated[int, Field(ge=1, le=100)] = 5
    resolution: Side = 256
    smallest: Annotated[float, Field(ge=0, lt=1)] = 0.02

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._mask(request.inputs["image"].array(), request.seed) for request in batch]

    def _mask(self, picture: Pixels, seed: int) -> Derived | Skip:
        import cv2

        height, width = picture.shape[:2]
        scale = min(1.0, self.resolution / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        cut = self._cut(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), seed)
        smooth = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        mask = smooth >= 0.5
        share = float(mask.mean())
        found = share > 0 and share >= self.smallest
        return Derived({"foreground_mask": mask}, score=share) if found else Skip("no_foreground")

    def _cut(self, small: Any, seed: int) -> Any:
        import cv2

        height, width = small.shape[:2]
        left, top = round(width * self.margin), round(height * self.margin)
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        labels[top : height - top, left : width - left] = cv2.GC_PR_FGD
        if left == 0 or top == 0:
            return np.zeros((height, width), bool)  # too thin to have a background to learn from
        # Its k-means draws from OpenCV's global generator.
        cv2.setRNGSeed(seed & 0x7FFFFFFF)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, (0, 0, 1, 1), background, foreground, self.iterations, cv2.GC_INIT_WITH_MASK)
        return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
