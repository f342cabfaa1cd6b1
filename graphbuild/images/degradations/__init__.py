"""The 32 degradations of VisualCloze as pure functions of (pixels, seed).

Each takes uint8 pixels, H x W x 3 RGB or H x W grey, and gives uint8 pixels of the same number of dimensions and
the same size; `rotate_90` and `rotate_270` swap the sides. The parameters are those of VisualCloze (arXiv
2504.07960). Lengths in pixels hold for a long side of 512 and follow the picture's size, so that a degradation looks
alike on a thumbnail and on a photo from a camera.

A change that gives other pixels for the same (pixels, seed) bumps `version` of that kind in `kinds/registry.py`.

All chance comes from one PCG64 generator made of the seed: no global state, the same pixels for any thread count.
"""

from collections.abc import Mapping
from types import MappingProxyType

import cv2
import numpy as np

from graphbuild.images.degradations.color import color_distortion, gray, saturate_strengthen, saturate_weaken
from graphbuild.images.degradations.geometry import barrel, elastic, pincushion, rotate_90, rotate_180, rotate_270
from graphbuild.images.degradations.ice import frost
from graphbuild.images.degradations.light import brighten, contrast_strengthen, contrast_weaken, darken, low_light
from graphbuild.images.degradations.lossy import compression, jpeg
from graphbuild.images.degradations.noise import gaussian_noise, poisson_noise, salt_pepper_noise
from graphbuild.images.degradations.occlusion import inpainting
from graphbuild.images.degradations.pixels import REFERENCE_SIDE, Degradation, Pixels, as_pixels
from graphbuild.images.degradations.rainfall import rain
from graphbuild.images.degradations.resolution import mosaic, pixelate, sr_x2, sr_x4
from graphbuild.images.degradations.sharpness import blur, defocus, gaussian_blur, oversharpen
from graphbuild.images.degradations.tones import quantization

__all__ = ["DEGRADATIONS", "NAMES", "apply", "fit"]

DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        "blur": blur,
        "compression": compression,
        "sr_x2": sr_x2,
        "sr_x4": sr_x4,
        "pixelate": pixelate,
        "defocus": defocus,
        "gaussian_blur": gaussian_blur,
        "oversharpen": oversharpen,
        "gaussian_noise": gaussian_noise,
        "poisson_noise": poisson_noise,
        "salt_pepper_noise": salt_pepper_noise,
        "mosaic": mosaic,
        "contrast_strengthen": contrast_strengthen,
        "contrast_weaken": contrast_weaken,
        "quantization": quantization,
        "jpeg": jpeg,
        "brighten": brighten,
        "darken": darken,
        "low_light": low_light,
        "saturate_strengthen": saturate_strengthen,
        "saturate_weaken": saturate_weaken,
        "gray": gray,
        "color_distortion": color_distortion,
        "inpainting": inpainting,
        "rotate_90": rotate_90,
        "rotate_180": rotate_180,
        "rotate_270": rotate_270,
        "barrel": barrel,
        "pincushion": pincushion,
        "elastic": elastic,
        "rain": rain,
        "frost": frost,
    }
)
"""Name -> function of (pixels, generator). Names are the upstream ones in snake case."""

NAMES: tuple[str, ...] = tuple(DEGRADATIONS)


def apply(name: str, pixels: Pixels, seed: int) -> Pixels:
    """Degrade a picture.

    Args:
        name: one of `NAMES`.
        pixels: uint8 0..255, H x W x 3 RGB or H x W grey, at least 1x1; left as it is.
        seed: any integer from 0; the same one gives the same pixels.

    Returns:
        A new contiguous uint8 array of the same number of dimensions and size (sides swapped by quarter turns).
        Callers pass the picture through `fit` first, or fine damage is lost when it is shrunk into a cell.
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"degradation {name!r} is unknown; known: {', '.join(NAMES)}")
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"pixels must be uint8 HxWx3 or HxW and not empty, not {pixels.dtype} {pixels.shape}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    generator = np.random.Generator(np.random.PCG64(seed))
    return np.ascontiguousarray(DEGRADATIONS[name](np.ascontiguousarray(pixels), generator))


def fit(pixels: Pixels, long_side: int = REFERENCE_SIDE) -> Pixels:
    """Shrink a picture by area so that its long side is `long_side` px; a smaller one comes back as it is.

    Args:
        pixels: uint8, H x W x 3 RGB or H x W grey.
        long_side: in px, at least 1.
    """
    if long_side < 1:
        raise ValueError(f"long_side must be 1 or more, not {long_side}")
    height, width = pixels.shape[:2]
    if max(height, width) <= long_side:
        return pixels
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return as_pixels(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
