"""Lost resolution: sr_x2, sr_x4, pixelate, mosaic. Parameters: VisualCloze (arXiv 2504.07960)."""

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import Pixels, as_pixels, draw_level, in_rgb

_PIXELATE_SCALE = (0.5, 0.4, 0.3, 0.25, 0.2)


def sr_x2(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Half the resolution: bicubic to H//2 x W//2 and back, the same each time.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `SRx2`.
    """
    return _through(pixels, 1 / 2, cv2.INTER_CUBIC, cv2.INTER_CUBIC)


def sr_x4(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A quarter of the resolution: bicubic to H//4 x W//4 and back, the same each time.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `SRx4`.
    """
    return _through(pixels, 1 / 4, cv2.INTER_CUBIC, cv2.INTER_CUBIC)


def pixelate(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Square blocks of one colour: averaged down to 0.5 ... 0.2 of the size, repeated up.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `pixelate`.
    """
    return _through(pixels, _PIXELATE_SCALE[draw_level(rng)], cv2.INTER_AREA, cv2.INTER_NEAREST)


@in_rgb
def mosaic(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """What a sensor sees through an RGGB filter: each pixel keeps one channel, the others are 0; the same each time.

    uint8 0..255, H x W x 3 RGB or H x W grey (the luma of its mosaic), odd sizes too -> same shape.
    Source: VisualCloze `mosaic`.
    """
    seen = np.zeros_like(pixels)
    seen[0::2, 0::2, 0] = pixels[0::2, 0::2, 0]
    seen[0::2, 1::2, 1] = pixels[0::2, 1::2, 1]
    seen[1::2, 0::2, 1] = pixels[1::2, 0::2, 1]
    seen[1::2, 1::2, 2] = pixels[1::2, 1::2, 2]
    return seen


def _through(pixels: Pixels, scale: float, down: int, up: int) -> Pixels:
    height, width = pixels.shape[:2]
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    return as_pixels(cv2.resize(cv2.resize(pixels, small, interpolation=down), (width, height), interpolation=up))
