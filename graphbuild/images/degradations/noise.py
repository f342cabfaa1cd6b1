"""Noise: gaussian_noise, poisson_noise, salt_pepper_noise. Parameters: VisualCloze (arXiv 2504.07960)."""

from functools import lru_cache

import numpy as np

from graphbuild.images.degradations.pixels import Pixels, as_floats, to_pixels

_POISSON_PEAK = 100
_POISSON_BITS = 12
_KEEP_PROBABILITY = 0.95


def gaussian_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Independent gaussian noise on every value, one sigma U(10, 50) of 255 for the picture.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `GaussianNoise`.
    """
    sigma = np.float32(rng.uniform(10.0, 50.0))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= sigma
    return to_pixels(as_floats(np.add(noise, pixels, out=noise)))


def poisson_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Shot noise: every value is a Poisson count whose mean is 100 at full white.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `PoissonNoise`, peak 100.
    Drawn by inverse transform from a table of 4,096 quantiles a level: ten times faster than `rng.poisson`.
    """
    address = rng.integers(0, 1 << _POISSON_BITS, pixels.shape, dtype=np.uint32)
    address += pixels.astype(np.uint32) << _POISSON_BITS
    return np.take(_poisson_quantiles(), address)


def salt_pepper_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One pixel in twenty turned white or black, half of each, all channels together.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `SPNoise`, keep probability 0.95.
    """
    lost = round((1 - _KEEP_PROBABILITY) * 65536)
    draw = rng.integers(0, 65536, pixels.shape[:2], dtype=np.uint16)
    noisy = pixels.copy()
    noisy[draw < lost // 2] = 0
    noisy[draw >= 65536 - lost // 2] = 255
    return noisy


@lru_cache(maxsize=1)
def _poisson_quantiles() -> Pixels:
    """For each level, 4,096 equally likely noisy levels; flat, so that one address finds both."""
    size = 1 << _POISSON_BITS
    counts = np.arange(2 * _POISSON_PEAK)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    means = np.maximum(np.arange(256) * (_POISSON_PEAK / 255), 1e-12)[:, np.newaxis]
    cumulative = np.cumsum(np.exp(counts * np.log(means) - means - log_factorial), axis=1)
    chances = (np.arange(size) + 0.5) / size
    quantiles = np.stack([np.searchsorted(row, chances) for row in cumulative])
    table = to_pixels(quantiles * (255 / _POISSON_PEAK)).ravel()
    table.flags.writeable = False
    return table
