"""The loss of JPEG 2000 without its file: quantised coefficients of the CDF 9/7 wavelet.

What JPEG 2000 loses it loses in the quantiser; its entropy coder is exact and takes most of its 130 ms at 512x512
(OpenJPEG through Pillow). Leaving the coder out gives the same artefacts at the same PSNR in a seventh of the time.
"""

from typing import TypeAlias

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import Floats, Pixels, as_floats, to_pixels

_LIFTING = ((-1.586134342, -0.052980118), (0.882911075, 0.443506852))
_GAIN = 1.149604398
"""Brings the lifted bands close to an orthonormal transform, so that errors there are errors in the picture."""

_LEVELS = 5
_STRIDE = 29
"""One coefficient in 29 settles the step; a prime, so that it walks through all channels and columns."""

_FEW = 1 << 16
_SEARCH_STEPS = 12
_WIDEST_STEP = 1024.0
_OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]], dtype=np.float32)
"""Orthonormal brightness, red-blue and green-magenta axes: one step size then serves all three."""


_Details: TypeAlias = tuple[Floats, Floats, Floats]
"""The three bands that one level of the transform splits off; the axes of the plane swap at each level."""


def wavelet_compressed(pixels: Pixels, decibel: float) -> Pixels:
    """The picture as JPEG 2000 would return it at a PSNR of about `decibel`.

    uint8 0..255, H x W x 3 RGB or H x W grey, any size from 1x1 -> same shape.
    """
    planes = as_floats(pixels) - np.float32(128)
    if pixels.ndim == 3:
        planes = as_floats(cv2.transform(planes, _OPPONENT))
    octaves, rest = _analysed(planes)
    bands = [rest, *(band for details in octaves for band in details)]
    step = _step_for(bands, 255.0**2 / 10 ** (decibel / 10))
    for band in bands:
        _quantise(band, step)
    planes = _synthesised(octaves, rest)
    if pixels.ndim == 3:
        planes = as_floats(cv2.transform(planes, np.ascontiguousarray(_OPPONENT.T)))
    return to_pixels(planes + np.float32(128))


def _analysed(plane: Floats) -> tuple[list[_Details], Floats]:
    octaves: list[_Details] = []
    while len(octaves) < _LEVELS and min(plane.shape[:2]) > 1:
        low, high = (_transposed(half) for half in _split(plane))
        plane, low_high = _split(low)
        octaves.append((low_high, *_split(high)))
    return octaves, plane


def _synthesised(octaves: list[_Details], plane: Floats) -> Floats:
    for low_high, high_low, high_high in reversed(octaves):
        low, high = _joined(plane, low_high), _joined(high_low, high_high)
        plane = _joined(_transposed(low), _transposed(high))
    return plane


def _transposed(plane: Floats) -> Floats:
    return as_floats(cv2.transpose(plane))


def _split(rows: Floats) -> tuple[Floats, Floats]:
    """Low and high band of the rows (axis 0), by lifting."""
    even, odd = rows[0::2].copy(), rows[1::2].copy()
    for predict, update in _LIFTING:
        _lift_odd(odd, even, predict)
        _lift_even(even, odd, update)
    even *= np.float32(_GAIN)
    odd *= np.float32(1 / _GAIN)
    return even, odd


def _joined(even: Floats, odd: Floats) -> Floats:
    """The rows that the two bands were split from; the bands are used up."""
    even *= np.float32(1 / _GAIN)
    odd *= np.float32(_GAIN)
    for predict, update in reversed(_LIFTING):
        _lift_even(even, odd, -update)
        _lift_odd(odd, even, -predict)
    rows = np.empty((len(even) + len(odd), *even.shape[1:]), np.float32)
    rows[0::2], rows[1::2] = even, odd
    return rows


def _lift_odd(odd: Floats, even: Floats, weight: float) -> None:
    """Add to each odd row its two even neighbours, mirrored at the end."""
    count = len(odd)
    _add(odd, even[:count], weight)
    _add(odd[: len(even) - 1], even[1:], weight)
    if len(even) == count:
        _add(odd[-1:], even[-1:], weight)


def _lift_even(even: Floats, odd: Floats, weight: float) -> None:
    """Add to each even row its two odd neighbours, mirrored at both ends."""
    count = len(odd)
    _add(even[:count], odd, weight)
    _add(even[1:], odd[: len(even) - 1], weight)
    _add(even[:1], odd[:1], weight)
    if len(even) > count:
        _add(even[-1:], odd[-1:], weight)


def _add(rows: Floats, others: Floats, weight: float) -> None:
    """rows += weight * others, without the temporary that numpy would make (twice as fast here)."""
    if len(rows):
        cv2.scaleAdd(others, weight, rows, rows)


def _quantise(band: Floats, step: float) -> None:
    """Round towards zero to whole steps, in place, and put what is left of each value in the middle of its step."""
    band *= np.float32(1 / step)
    np.trunc(band, out=band)
    band += np.sign(band) * np.float32(0.5)
    band *= np.float32(step)


def _step_for(bands: list[Floats], error: float) -> float:
    """The quantiser step whose mean squared error is `error`, by bisection on an even sample of the coefficients."""
    stride = _STRIDE if sum(band.size for band in bands) > _FEW else 1
    sample = np.concatenate([band.ravel()[::stride] for band in bands])
    low, high = 1.0, _WIDEST_STEP
    for _ in range(_SEARCH_STEPS):
        step = float(np.sqrt(low * high))
        coarse = sample.copy()
        _quantise(coarse, step)
        if float(np.mean((coarse - sample) ** 2)) > error:
            high = step
        else:
            low = step
    return low
