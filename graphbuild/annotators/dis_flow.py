"""Optical flow between a picture and its references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Derived, Each, Request, Side, Skip, each
from graphbuild.images.codecs import Pixels
from graphbuild.models.resizing import map_at, picture_at, working_size

_PYRAMID = 16
_SAME_ASPECT = 1.02


@dataclass(frozen=True, kw_only=True)
class DisFlow(Annotator):
    """Where each pixel of the picture goes in a reference, such as another frame of its video or view of its scene
    (T. Kroeger et al., "Fast Optical Flow using Dense Inverse Search", arXiv 1603.03590; OpenCV's, medium preset).
    No weights.

    Directions are hues, red to the right and then clockwise through yellow (down), cyan (left) and violet (up); lengths
    are saturations, white for what stays. Attrs: `longest`, the length in pixels of the picture that is shown at full
    saturation, the longest there is. The score is the mean length over the picture's diagonal.

    Args:
        resolution: short side in pixels at which it works, multiples of 16; the long side is at most four times as
            long.

    Skips with `other_shape` where the two differ in aspect, and with `no_motion` where nothing moves by a pixel.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image", each("reference"))
    makes: ClassVar[tuple[str, ...]] = ("flow",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    resolution: Side = 512

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._one(*(request.inputs[kind].array() for kind in ("image", "reference"))) for request in batch]

    def _one(self, picture: Pixels, reference: Pixels) -> Derived | Skip:
        height, width = picture.shape[:2]
        aspect = (width / height) / (reference.shape[1] / reference.shape[0])
        if not 1 / _SAME_ASPECT <= aspect <= _SAME_ASPECT:
            return Skip("other_shape")
        size = working_size(picture, short=self.resolution, long=4 * self.resolution, multiple=_PYRAMID)
        flow = _flow(picture_at(picture, size), picture_at(reference, size))
        flow = map_at(flow, (height, width)) * np.array([width / size[1], height / size[0]], np.float32)
        lengths = np.hypot(flow[:, :, 0], flow[:, :, 1])
        longest = float(lengths.max())
        if longest < 1:
            return Skip("no_motion")
        attrs = {"longest": round(longest, 2)}
        return Derived({"flow": _colours(flow, lengths)}, float(lengths.mean() / np.hypot(height, width)), attrs)


def _flow(picture: Pixels, reference: Pixels) -> NDArray[np.float32]:
    """H x W x 2: how far right and down each pixel goes."""
    import cv2

    grey = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (picture, reference))
    made = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    return np.asarray(made.calc(*grey, None), np.float32)


def _colours(flow: NDArray[np.float32], lengths: NDArray[np.float32]) -> Pixels:
    import cv2

    angles = np.degrees(np.arctan2(flow[:, :, 1], flow[:, :, 0])) % 360
    shades = np.stack([angles, lengths / lengths.max(), np.ones_like(lengths)], 2).astype(np.float32)
    return np.rint(cv2.cvtColor(shades, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
