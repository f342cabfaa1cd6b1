"""Masks of what is to be painted, drawn by chance: boxes, brush strokes, irregular regions.

Each is a function of (height, width, generator), at least 1 x 1, and gives H x W booleans, true where to paint. Lengths
follow the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_BOX_SIDES = 0.2, 0.75
_STROKES = 1, 4
_CORNERS = 4, 9
_BRUSH = 0.05, 0.15
_REGION_SHARE = 0.15, 0.5
_REGION_GRAIN = 3, 9


def box(height: int, width: int, rng: np.random.Generator) -> Mask:
    """One upright box anywhere in the picture, each side 0.2 to 0.75 of the picture's."""
    sides = np.maximum(1, np.rint(rng.uniform(*_BOX_SIDES, 2) * (height, width)).astype(int))
    top, left = (rng.random(2) * ((height, width) - sides + 1)).astype(int)
    mask = np.zeros((height, width), bool)
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def brush(height: int, width: int, rng: np.random.Generator) -> Mask:
    """1 to 4 strokes of a round brush through 4 to 9 points each, 0.05 to 0.15 of the short side thick: free-form masks
    (J. Yu et al., "Free-Form Image Inpainting with Gated Convolution", arXiv 1806.03589)."""
    drawn = np.zeros((height, width), np.uint8)
    reach = min(height, width) / 3
    for _ in range(rng.integers(*_STROKES, endpoint=True)):
        corners = int(rng.integers(*_CORNERS, endpoint=True))
        start = rng.random(2) * (width, height)
        angles, lengths = rng.uniform(0, 2 * np.pi, corners - 1), rng.uniform(0.3, 1, corners - 1) * reach
        steps = np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]
        line = np.clip(np.vstack([start, start + steps.cumsum(0)]), 0, (width - 1, height - 1))
        thickness = max(1, round(rng.uniform(*_BRUSH) * min(height, width)))
        cv2.polylines(drawn, [line.astype(np.int32)], False, 255, thickness)
        for x, y in line.astype(int).tolist():
            cv2.circle(drawn, (x, y), thickness // 2, 255, -1)
    return drawn > 0


def random(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Irregular regions, 0.15 to 0.5 of the picture together: the high parts of smooth noise whose hills are a third to
    a ninth of the long side wide."""
    share, grain = rng.uniform(*_REGION_SHARE), int(rng.integers(*_REGION_GRAIN, endpoint=True))
    cells = (max(2, round(grain * side / max(height, width))) for side in (width, height))
    small = rng.random(tuple(cells)[::-1], np.float32)
    noise = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    seen = noise[:: max(1, height // 256), :: max(1, width // 256)]
    mask: Mask = noise >= np.quantile(seen, 1 - share)
    return mask


SHAPES: dict[str, Callable[[int, int, np.random.Generator], Mask]] = {"box": box, "brush": brush, "random": random}
