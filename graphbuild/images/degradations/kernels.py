"""Blur kernels, and convolution that stays fast when they are wide."""

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import Floats, Pixels, as_floats, as_pixels, to_pixels

_WIDEST_DIRECT = 9
"""Beyond 9x9 one Fourier transform a channel beats the sum over taps (15 ms against 26 ms at 512x512x3)."""


def disk(radius: float) -> Floats:
    """A flat disk that sums to 1, odd side 2*ceil(radius)+1; pixels cut by the rim count by their covered part."""
    half = int(np.ceil(radius))
    axis = np.arange(-half, half + 1, dtype=np.float32)
    distance = np.hypot(axis[:, np.newaxis], axis[np.newaxis, :])
    kernel = np.clip(radius + 0.5 - distance, 0.0, 1.0)
    return as_floats(kernel / kernel.sum())


def line(weights: Floats, angle: float) -> Floats:
    """Weights laid one pixel apart along a line, centred on their centre of mass, that sum to 1.

    Args:
        weights: float32, shape (N,), not negative.
        angle: radians from the x axis towards the y axis (down).

    Centring keeps the picture where it is: a trail anchored at its head moves everything by several pixels.
    """
    steps = np.arange(len(weights)) - float(np.average(np.arange(len(weights)), weights=weights))
    half = int(np.ceil(np.abs(steps).max())) + 1
    x, y = half + steps * np.cos(angle), half + steps * np.sin(angle)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for row in (0, 1):
        for column in (0, 1):
            share = (1 - np.abs(y - top - row)) * (1 - np.abs(x - left - column))
            np.add.at(kernel, (top + row, left + column), weights * share)
    return as_floats(kernel / kernel.sum())


def convolve(pixels: Pixels, kernel: Floats) -> Pixels:
    """Filter every channel with an odd-sided kernel, mirrored at the borders; same shape, uint8."""
    if max(kernel.shape) <= _WIDEST_DIRECT:
        return to_pixels(cv2.filter2D(as_floats(pixels), cv2.CV_32F, kernel))
    channels = [pixels] if pixels.ndim == 2 else cv2.split(pixels)
    filtered = [to_pixels(convolve_plane(as_floats(channel), kernel)) for channel in channels]
    return filtered[0] if pixels.ndim == 2 else as_pixels(cv2.merge(filtered))


def convolve_plane(plane: Floats, kernel: Floats) -> Floats:
    """Filter one float32 H x W plane with an odd-sided kernel through the Fourier transform, borders mirrored."""
    (height, width), (tall, wide) = plane.shape, kernel.shape
    padded = cv2.copyMakeBorder(plane, tall // 2, tall // 2, wide // 2, wide // 2, cv2.BORDER_REFLECT_101)
    size = tuple(cv2.getOptimalDFTSize(side) for side in padded.shape)
    spectrum = cv2.dft(_extended(as_floats(padded), size))
    # The correlation theorem wants the kernel's conjugate; its output starts at the kernel's first tap.
    taps = cv2.dft(_extended(kernel, size))
    product = cv2.mulSpectrums(spectrum, taps, 0, conjB=True)
    whole = cv2.idft(product, flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)
    return as_floats(whole[:height, :width])


def _extended(plane: Floats, size: tuple[int, ...]) -> Floats:
    extended = np.zeros(size, np.float32)
    extended[: plane.shape[0], : plane.shape[1]] = plane
    return extended
