"""Lost sharpness, and too much of it: blur, defocus, gaussian_blur, oversharpen.

Parameters: VisualCloze (arXiv 2504.07960); the six methods of `blur` go back to the corruption benchmark of
Hendrycks and Dietterich (arXiv 1903.12261). Lengths are in pixels at a long side of 512 and follow the picture's size.
"""

import cv2
import numpy as np

from graphbuild.images.degradations.kernels import convolve, disk, line
from graphbuild.images.degradations.pixels import Pixels, as_floats, as_pixels, draw_level, draw_one, scaled, to_pixels

_GAUSSIAN_SIGMA = (1.0, 2.0, 3.0, 4.0, 5.0)
_MOTION_RADIUS_SIGMA = ((5, 3), (10, 5), (15, 7), (15, 9), (20, 12))
_GLASS_SIGMA_SHIFT_TIMES = ((0.7, 1, 1), (0.9, 2, 1), (1.2, 2, 2), (1.4, 3, 2), (1.6, 4, 2))
_LENS_RADIUS = (2, 3, 4, 6, 8)
_ZOOM_STOP = (1.03, 1.06, 1.10, 1.15, 1.21)
_ZOOM_STEP = 0.02
_JITTER_SHIFT = (1, 2, 3, 4, 5)
_DEFOCUS_RADIUS = 3.0
_SHARPEN_AMOUNT = (2.0, 2.8, 4.0, 6.0, 8.0)


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One of six blurs (gaussian, motion, glass, lens, zoom, jitter) at one of five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `blur`.
    """
    method = draw_one(rng, (_gaussian, _motion, _glass, _lens, _zoom, _jitter))
    return method(pixels, draw_level(rng), rng)


def defocus(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The lens out of focus: a disk of radius 3, the same each time.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Defocus`.
    """
    return convolve(pixels, disk(scaled(_DEFOCUS_RADIUS, pixels, floor=2.0)))


def gaussian_blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian blur with sigma U(2, 4) and a window that ends near 2 sigma (15 px at 512).

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `GaussianBlur`.
    """
    sigma = scaled(rng.uniform(2.0, 4.0), pixels, floor=1.5)
    half = max(3, round(scaled(7, pixels, floor=3.0)))
    return as_pixels(cv2.GaussianBlur(pixels, (2 * half + 1, 2 * half + 1), sigma))


def oversharpen(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Unsharp mask far too strong: (1 + a) * picture - a * blurred, a = 2 ... 8, blur 5x5 (sigma 1.1).

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `oversharpen`.
    """
    amount = _SHARPEN_AMOUNT[draw_level(rng)]
    soft = cv2.GaussianBlur(pixels, (5, 5), 0)
    return as_pixels(cv2.addWeighted(pixels, 1 + amount, soft, -amount, 0))


def _gaussian(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sigma = scaled(_GAUSSIAN_SIGMA[level], pixels, floor=1.0)
    return as_pixels(cv2.GaussianBlur(pixels, (0, 0), sigma))


def _motion(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    radius, sigma = _MOTION_RADIUS_SIGMA[level]
    steps = np.arange(2 * round(scaled(radius, pixels, floor=3.0)) + 1)
    weights = np.exp(-0.5 * (steps / scaled(sigma, pixels, floor=2.0)) ** 2)
    return convolve(pixels, line(as_floats(weights), np.deg2rad(rng.uniform(-90.0, 90.0))))


def _glass(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sigma, shift, times = _GLASS_SIGMA_SHIFT_TIMES[level]
    sigma = scaled(sigma, pixels, floor=0.7)
    soft = as_pixels(cv2.GaussianBlur(pixels, (0, 0), sigma))
    shuffled = _shuffled(soft, round(scaled(shift, pixels, floor=1.0)), times, rng)
    return as_pixels(cv2.GaussianBlur(shuffled, (0, 0), sigma))


def _lens(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return convolve(pixels, disk(scaled(_LENS_RADIUS[level], pixels, floor=2.0)))


def _zoom(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    total = as_floats(pixels).copy()
    factors = np.arange(1.0, _ZOOM_STOP[level], _ZOOM_STEP)
    for factor in factors:
        rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
        top, left = (height - rows) // 2, (width - columns) // 2
        nearer = cv2.resize(pixels[top : top + rows, left : left + columns], (width, height))
        cv2.accumulate(nearer, total)
    return to_pixels(total / (len(factors) + 1))


def _jitter(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return _shuffled(pixels, round(scaled(_JITTER_SHIFT[level], pixels, floor=1.0)), 1, rng)


def _shuffled(pixels: Pixels, shift: int, times: int, rng: np.random.Generator) -> Pixels:
    """Let every pixel take the value of one up to `shift` pixels away, `times` over."""
    rows, columns = np.indices(pixels.shape[:2], dtype=np.float32)
    for _ in range(times):
        move = rng.integers(-shift, shift + 1, (2, *pixels.shape[:2]), dtype=np.int16)
        pixels = as_pixels(
            cv2.remap(pixels, columns + move[0], rows + move[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
        )
    return pixels
