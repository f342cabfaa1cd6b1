"""Lossy codecs: compression (JPEG or JPEG 2000) and jpeg. Parameters: VisualCloze (arXiv 2504.07960)."""

import io

import numpy as np
from PIL import Image

from graphbuild.images.degradations.pixels import Pixels, draw_level, draw_one
from graphbuild.images.degradations.wavelet import wavelet_compressed

_JPEG_QUALITY = (25, 18, 12)
_JPEG_2000_DECIBEL = (29.0, 27.5, 26.0)


def compression(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """JPEG (quality 25, 18, 12) or JPEG 2000 (29, 27.5, 26 dB), with probabilities 0.2, 0.2, 0.6.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `compression`.
    """
    by_wavelet = draw_one(rng, (False, True))
    level = draw_level(rng, cap=3)
    if by_wavelet:
        return wavelet_compressed(pixels, _JPEG_2000_DECIBEL[level])
    return _through_jpeg(pixels, _JPEG_QUALITY[level])


def jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """JPEG of a quality 10..40, colour at half resolution (4:2:0).

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `JPEG`.
    """
    return _through_jpeg(pixels, int(rng.integers(10, 41)))


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    with Image.open(data) as image:
        return np.array(image, dtype=np.uint8)
