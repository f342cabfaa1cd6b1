"""Parts painted over: inpainting. Parameters: VisualCloze (arXiv 2504.07960)."""

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import REFERENCE_SIDE, Pixels, draw_one


def inpainting(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """20..50 straight strokes between random points, 10..20 px thick at 512, all white or all black.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Inpainting`. The thickness follows
    the root of the area, so that strokes cover a quarter to two thirds of a square and of a long picture alike.
    """
    height, width = pixels.shape[:2]
    strokes = rng.integers(0, (width, height), (int(rng.integers(20, 51)), 2, 2), dtype=np.int32)
    level = draw_one(rng, (0, 255))
    scale = float(np.sqrt(height * width)) / REFERENCE_SIDE
    painted = pixels.copy()
    for stroke in strokes:
        thickness = max(1, round(int(rng.integers(10, 21)) * scale))
        cv2.polylines(painted, [stroke], False, (level, level, level), thickness)
    return painted
