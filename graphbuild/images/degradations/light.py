"""Light and contrast: brighten, darken, low_light, contrast_strengthen, contrast_weaken.

Parameters: VisualCloze (arXiv 2504.07960). All are tone curves, of the channels or of the HSV value.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from graphbuild.images.degradations.pixels import (
    Pixels,
    apply_curve,
    as_floats,
    as_pixels,
    draw_level,
    draw_one,
    histograms,
    in_rgb,
    levels,
    to_pixels,
)

_Curve = NDArray[np.float64]

_BRIGHTEN_VALUE_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)
_BRIGHTEN_SHIFT = (0.1, 0.15, 0.2, 0.27, 0.35)
_BRIGHTEN_VALUE_GAMMA = (0.7, 0.58, 0.47, 0.36, 0.25)
_BRIGHTEN_GAMMA = (0.8, 0.7, 0.6, 0.45, 0.3)
_DARKEN_VALUE_SHIFT = (-0.1, -0.2, -0.3, -0.4, -0.5)
_DARKEN_SHIFT = (-0.1, -0.15, -0.2, -0.27, -0.35)
_DARKEN_VALUE_GAMMA = (1.5, 1.8, 2.2, 2.7, 3.5)
_DARKEN_GAMMA = (1.4, 1.7, 2.1, 2.6, 3.2)
_STRENGTHEN_FACTOR = (1.4, 1.7, 2.1, 2.6, 4.0)
_STRENGTHEN_EXPONENT = (2.0, 4.0, 6.0, 8.0, 10.0)
_WEAKEN_FACTOR = (0.75, 0.6, 0.45, 0.3, 0.2)
_WEAKEN_EXPONENT = (1.0, 0.9, 0.8, 0.6, 0.4)
_LEAST_CHANGE = 0.05
"""Of the contrast, as a share: a curve that changes it less, or the other way, is not used."""


def brighten(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Lighter by a shift or a gamma below 1, of the three channels or of the HSV value, at one of five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `brighten`.
    """
    shifts, gammas = (_BRIGHTEN_VALUE_SHIFT, _BRIGHTEN_SHIFT), (_BRIGHTEN_VALUE_GAMMA, _BRIGHTEN_GAMMA)
    return _relit(pixels, shifts, gammas, rng)


def darken(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Darker by a shift or a gamma above 1, of the three channels or of the HSV value, at one of five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `darken`.
    """
    shifts, gammas = (_DARKEN_VALUE_SHIFT, _DARKEN_SHIFT), (_DARKEN_VALUE_GAMMA, _DARKEN_GAMMA)
    return _relit(pixels, shifts, gammas, rng)


def low_light(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Underexposed: every value times U(0.3, 0.4).

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `LowLight`.
    """
    return apply_curve(pixels, levels() * rng.uniform(0.3, 0.4))


def contrast_strengthen(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """More contrast about the mean, by a factor (1.4 ... 4) or a curve (exponent 2 ... 10), at five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `contrast_strengthen`, but for photos
    that the drawn curve would flatten (bright ones): they get the factor of that severity.
    """
    return _recontrasted(pixels, _STRENGTHEN_FACTOR, _STRENGTHEN_EXPONENT, rng)


def contrast_weaken(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Less contrast about the mean, by a factor (0.75 ... 0.2) or a curve (exponent 1 ... 0.4), at five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `contrast_weaken`, but for photos
    whose contrast the drawn curve would raise (dark ones): they get the factor of that severity.
    """
    return _recontrasted(pixels, _WEAKEN_FACTOR, _WEAKEN_EXPONENT, rng)


def _relit(
    pixels: Pixels,
    shifts: tuple[tuple[float, ...], tuple[float, ...]],
    gammas: tuple[tuple[float, ...], tuple[float, ...]],
    rng: np.random.Generator,
) -> Pixels:
    of_channels = draw_one(rng, (False, True))
    by_gamma = draw_one(rng, (False, True))
    amount = (gammas if by_gamma else shifts)[of_channels][draw_level(rng)]
    curve = 255 * (levels() / 255) ** amount if by_gamma else levels() + 255 * amount
    if of_channels:
        return apply_curve(pixels, curve)
    return in_rgb(lambda colour, _: _tone_value(colour, np.clip(curve, 0, 255)))(pixels, rng)


def _tone_value(pixels: Pixels, curve: _Curve) -> Pixels:
    """Move the HSV value along a curve, hue and saturation kept: a gain for each pixel, without a trip through HSV."""
    red, green, blue = cv2.split(pixels)
    value = as_pixels(cv2.max(cv2.max(red, green), blue))
    gain = as_floats(cv2.LUT(value, as_floats(curve / np.maximum(levels(), 1))))
    toned = to_pixels(pixels * gain[..., np.newaxis])
    toned[value == 0] = round(float(curve[0]))
    return toned


def _recontrasted(
    pixels: Pixels, factors: tuple[float, ...], exponents: tuple[float, ...], rng: np.random.Generator
) -> Pixels:
    level = draw_level(rng)
    centre, before = _luma_moments(pixels)
    if draw_one(rng, (False, True)):
        toned = apply_curve(pixels, _sigmoids(pixels, exponents[level]))
        ratio = _luma_moments(toned)[1] / max(before, 1e-6)
        if ratio >= 1 + _LEAST_CHANGE if factors[level] > 1 else ratio <= 1 - _LEAST_CHANGE:
            return toned
    return apply_curve(pixels, centre + factors[level] * (levels() - centre))


def _luma_moments(pixels: Pixels) -> tuple[float, float]:
    """Mean and standard deviation of the luma: brightness and contrast, in levels."""
    luma = pixels if pixels.ndim == 2 else as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    return float(luma.mean()), float(luma.std())


def _sigmoids(pixels: Pixels, exponent: float) -> _Curve:
    """x^c / (x^c + mean^c) in each channel; the mean of the channel goes to the middle grey. Shape (C, 256)."""
    counts = histograms(pixels)
    means = np.maximum(counts @ levels() / counts.sum(axis=1), 1.0)[:, np.newaxis]
    ratio = (levels() / means) ** exponent
    curves: _Curve = 255 * ratio / (1 + ratio)
    return curves if pixels.ndim == 3 else curves[0]
