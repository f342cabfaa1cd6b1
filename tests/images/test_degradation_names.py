"""Every degradation does what its name says, on every photo and for every seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from graphbuild.images.decode import decode_image
from graphbuild.images.degradations import NAMES, apply
from graphbuild.images.degradations.pixels import Pixels

pytestmark = pytest.mark.data

LONG_SIDE, SEEDS = 128, 3
"""Of the short form; GRAPHBUILD_LONG=1 asks for 512 px and 50 seeds."""


def luma(pixels: Pixels) -> NDArray[np.float64]:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)


def contrast(pixels: Pixels) -> float:
    return float(luma(pixels).std())


def brightness(pixels: Pixels) -> float:
    return float(luma(pixels).mean())


def detail(pixels: Pixels) -> float:
    """Energy of what differs from the neighbours."""
    return float(np.square(cv2.Laplacian(luma(pixels), cv2.CV_64F)).mean())


def saturation(pixels: Pixels) -> float:
    return float(np.ptp(pixels.astype(int), axis=2).mean())


def flatness(pixels: Pixels) -> float:
    """Share of pixels that are equal to their right neighbour."""
    return float((pixels[:, 1:] == pixels[:, :-1]).all(axis=2).mean())


def extremes(pixels: Pixels) -> float:
    """Share of pixels that are black or white."""
    return float(np.isin(pixels, (0, 255)).all(axis=2).mean())


def levels(pixels: Pixels) -> float:
    return float(max(len(np.unique(pixels[..., channel])) for channel in range(3)))


def colourless(pixels: Pixels) -> bool:
    return saturation(pixels) < 0.5


Check = Callable[[Pixels, Pixels], bool]


def more(measure: Callable[[Pixels], float]) -> Check:
    return lambda before, after: measure(after) > measure(before)


def less(measure: Callable[[Pixels], float]) -> Check:
    return lambda before, after: measure(after) < measure(before)


def detail_kept(before: Pixels, after: Pixels) -> float:
    """How much of the fine detail is still where it was, 1 for all: also right for blur that shuffles pixels."""
    was, now = (cv2.Laplacian(luma(pixels), cv2.CV_64F) for pixels in (before, after))
    return float((was * now).sum() / np.square(was).sum())


def keeps_less_detail_than(share: float) -> Check:
    return lambda before, after: detail_kept(before, after) < share


def turned(quarters: int) -> Check:
    return lambda before, after: np.array_equal(after, np.rot90(before, -quarters))


def one_channel_a_pixel(before: Pixels, after: Pixels) -> bool:
    return int((after > 0).sum(axis=2).max()) <= 1 and bool(((after == before) | (after == 0)).all())


def other_colours(before: Pixels, after: Pixels) -> bool:
    return float(cv2.absdiff(before, after).mean()) >= 4


def painted_over(before: Pixels, after: Pixels) -> bool:
    changed = (before != after).any(axis=2)
    return 0.05 < changed.mean() < 0.95 and set(np.unique(after[changed])) in ({0}, {255})


def bent(before: Pixels, after: Pixels) -> bool:
    """The middle stays, the rim moves."""
    height, width = before.shape[:2]
    middle = slice(height // 2 - 4, height // 2 + 4), slice(width // 2 - 4, width // 2 + 4)
    moved = cv2.absdiff(before, after)
    return float(moved[middle].mean()) <= float(np.ptp(before[middle].astype(int))) and float(moved.mean()) > 1


def veiled(before: Pixels, after: Pixels) -> bool:
    """Much is changed, and the picture still shows through."""
    shown = np.corrcoef(luma(before).ravel(), luma(after).ravel())[0, 1]
    return float(cv2.absdiff(before, after).mean()) > 8 and shown > 0.2


CHECKS: dict[str, Check] = {
    "blur": keeps_less_detail_than(0.9),
    "compression": keeps_less_detail_than(0.97),
    "sr_x2": less(detail),
    "sr_x4": less(detail),
    "pixelate": more(flatness),
    "defocus": less(detail),
    "gaussian_blur": less(detail),
    "oversharpen": more(detail),
    "gaussian_noise": more(detail),
    "poisson_noise": more(detail),
    "salt_pepper_noise": more(extremes),
    "mosaic": one_channel_a_pixel,
    "contrast_strengthen": more(contrast),
    "contrast_weaken": less(contrast),
    "quantization": less(levels),
    "jpeg": keeps_less_detail_than(0.97),
    "brighten": more(brightness),
    "darken": less(brightness),
    "low_light": less(brightness),
    "saturate_strengthen": lambda before, after: colourless(before) or saturation(after) > saturation(before),
    "saturate_weaken": lambda before, after: colourless(before) or saturation(after) < saturation(before),
    "gray": lambda before, after: saturation(after) == 0,
    "color_distortion": other_colours,
    "inpainting": painted_over,
    "rotate_90": turned(1),
    "rotate_180": turned(2),
    "rotate_270": turned(3),
    "barrel": bent,
    "pincushion": bent,
    "elastic": bent,
    "rain": more(brightness),
    "frost": veiled,
}


@pytest.fixture(scope="module")
def photos(data_folder: Callable[[str], Path]) -> dict[str, Pixels]:
    side = 512 if os.environ.get("GRAPHBUILD_LONG") else LONG_SIDE
    shown = {}
    for file in sorted(data_folder("photos").glob("*.jpg")):
        whole = decode_image(file.read_bytes(), "jpeg")
        scale = side / max(whole.shape)
        size = round(whole.shape[1] * scale), round(whole.shape[0] * scale)
        shown[file.stem] = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_does_what_its_name_says(name: str, photos: dict[str, Pixels]) -> None:
    """Guards against damage that is none, or the opposite: "too much contrast" above a picture that lost it."""
    seeds = range(50 if os.environ.get("GRAPHBUILD_LONG") else SEEDS)
    wrong = [
        (file, seed)
        for file, photo in photos.items()
        for seed in seeds
        if not CHECKS[name](photo, apply(name, photo, seed))
    ]
    assert len(photos) == 53
    assert not wrong, f"{len(wrong)} of {len(photos) * len(seeds)}: {wrong[:8]}"
