"""Line segments without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Skip
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels


@dataclass(frozen=True, kw_only=True)
class Lsd(Condition):
    """Straight line segments, white on black, one pixel wide (R. Grompone von Gioi et al., "LSD: a Line Segment
    Detector", IPOL 2012). The score is the total segment length over the picture's diagonal.

    Args:
        min_length: shorter segments are left out, as a fraction of the picture's diagonal.
    """

    makes: ClassVar[tuple[str, ...]] = ("lines",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    min_length: Share = 0.02

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._draw(request.inputs["image"].array()) for request in batch]

    def _draw(self, picture: Pixels) -> Derived | Skip:
        import cv2

        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        found = cv2.createLineSegmentDetector().detect(grey)[0]
        # OpenCV 5 returns N x 4 where 4 returned N x 1 x 4, and None where nothing is found.
        segments = np.empty((0, 4), np.float32) if found is None else found.reshape(-1, 4)
        diagonal = float(np.hypot(*grey.shape))
        lengths = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
        segments, lengths = (
            segments[lengths >= self.min_length * diagonal],
            lengths[lengths >= self.min_length * diagonal],
        )
        if not len(segments):
            return Skip("no_lines")
        canvas = np.zeros(grey.shape, np.uint8)
        cv2.polylines(canvas, list(segments.round().astype(np.int32).reshape(-1, 2, 2)), False, 255, 1)
        return Derived({"lines": canvas}, float(lengths.sum()) / diagonal, {"num_lines": len(segments)})
