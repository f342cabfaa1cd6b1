"""Shape: rotate_90, rotate_180, rotate_270, barrel, pincushion, elastic. Parameters: VisualCloze (arXiv 2504.07960)."""

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import REFERENCE_SIDE, Floats, Pixels, as_floats, as_pixels, relative_scale

_K1, _K2 = 0.1, 0.05
_CORNER_RADIUS_SQUARED = 1.2
"""Where the corner lies in the lens formula. Pincushion folds back on itself beyond 1.49, so a corner stays below."""

_ELASTIC_ALPHA = 25.0
_ELASTIC_SIGMA = 0.01
_ELASTIC_RANGE = 0.005


def rotate_90(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A quarter turn clockwise.

    uint8, H x W x 3 RGB or H x W grey -> W x H. Source: VisualCloze `rotate90`, which says clockwise and turns the
    other way.
    """
    return as_pixels(cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE))


def rotate_180(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Half a turn.

    uint8, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `rotate180`.
    """
    return as_pixels(cv2.rotate(pixels, cv2.ROTATE_180))


def rotate_270(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Three quarters of a turn clockwise, that is a quarter turn counter-clockwise.

    uint8, H x W x 3 RGB or H x W grey -> W x H. Source: VisualCloze `rotate270`, direction as for `rotate_90`.
    """
    return as_pixels(cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE))


def barrel(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A wide-angle lens: straight lines bulge outwards, black beyond the picture; the same each time.

    uint8, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Barrel`, k1 = 0.1, k2 = 0.05.
    """
    return _through_lens(pixels, _K1, _K2)


def pincushion(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A telephoto lens: straight lines bend inwards and the rim is cut off; the same each time.

    uint8, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Pincushion`, k1 = -0.1, k2 = -0.05.
    """
    return _through_lens(pixels, -_K1, -_K2)


def elastic(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A wobbling surface: smooth random shifts of about 2 px at 512, mirrored at the borders.

    uint8, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Elastic`, severity 4: noise of +-0.5 % of
    the side, smoothed over 1 % of it, times 25. The shift follows the picture's size.
    """
    height, width = pixels.shape[:2]
    rows, columns = np.indices((height, width), dtype=np.float32)
    shift_x, shift_y = _smooth_noise(pixels, rng), _smooth_noise(pixels, rng)
    return as_pixels(
        cv2.remap(pixels, columns + shift_x, rows + shift_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    )


def _through_lens(pixels: Pixels, k1: float, k2: float) -> Pixels:
    height, width = pixels.shape[:2]
    x = as_floats(np.arange(width) - (width - 1) / 2)[np.newaxis, :]
    y = as_floats(np.arange(height) - (height - 1) / 2)[:, np.newaxis]
    radius = (x * x + y * y) * np.float32(4 * _CORNER_RADIUS_SQUARED / (width * width + height * height))
    factor = 1 + radius * (k1 + k2 * radius)
    column, row = x * factor + np.float32((width - 1) / 2), y * factor + np.float32((height - 1) / 2)
    return as_pixels(cv2.remap(pixels, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def _smooth_noise(pixels: Pixels, rng: np.random.Generator) -> Floats:
    side = max(pixels.shape[:2])
    noise = rng.random(pixels.shape[:2], dtype=np.float32) * 2 - 1
    smooth = cv2.GaussianBlur(noise, (0, 0), max(1.0, _ELASTIC_SIGMA * side), borderType=cv2.BORDER_REFLECT)
    # Smoothing over s px divides the spread by 3.5 s: a shift that follows the size needs the scale squared.
    reach = _ELASTIC_ALPHA * _ELASTIC_RANGE * REFERENCE_SIDE * relative_scale(pixels) ** 2
    return as_floats(smooth) * np.float32(reach)
