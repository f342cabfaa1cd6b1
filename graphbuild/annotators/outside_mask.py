"""Whether an edit left alone what is outside of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Derived, Each, Request, Score, Skip, scored
from graphbuild.config.strict_yaml import Share
from graphbuild.images.agreement import canny_edges, near_f1

_EQUAL = 16
_REACH = 0.004  # of the longer side: two pixels at 512


@dataclass(frozen=True, kw_only=True)
class OutsideMask(Score):
    """How much of an edit is as in the picture where its main object is not: the lower of `edges`, the F1 of both
    pictures' Canny edges there (within 0.4 % of the longer side), and `pixels`, the share of pixels there that differ
    by less than 16 levels. An edit that leaks out of its mask has a low one.

    Args:
        grow: how far around the foreground mask may be edited, as a share of the longer side.

    Skips with `all_foreground` where nothing is left outside.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", "foreground_mask")
    of: str = "edit_local"
    grow: Share = 0.03

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived | Skip:
        picture, mask = request.inputs["image"].array(), request.inputs["foreground_mask"].values() > 0
        edited, side = fitted(request.inputs["judged"].array(), picture), max(picture.shape[:2])
        outside = ~widened(mask, self.grow * side)
        if not outside.any():
            return Skip("all_foreground")
        edges = near_f1(canny_edges(edited), canny_edges(picture), max(1.0, _REACH * side), outside)
        differ = np.abs(edited.astype(np.int16) - picture).max(2)
        pixels = float((differ[outside] < _EQUAL).mean())
        return scored(min(edges, pixels), edges=edges, pixels=pixels)


def fitted(picture: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture at the size of another."""
    import cv2

    if picture.shape == like.shape:
        return picture
    return np.asarray(cv2.resize(picture, like.shape[1::-1], interpolation=cv2.INTER_AREA))


def widened(mask: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    """A mask (H x W) with all within `reach` pixels of it."""
    import cv2

    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= reach)
