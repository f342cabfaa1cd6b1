"""Metrics of two pictures of one size, H x W x 3 RGB uint8, by scikit-image."""

from __future__ import annotations

import math
from typing import Any

from graphbuild.images.codecs import Pixels


def psnr(made: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, at most 100, which equal pictures have."""
    from skimage.metrics import mean_squared_error

    error = float(mean_squared_error(truth, made))
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def ssim(made: Pixels, truth: Pixels) -> float:
    """Structural similarity in [-1, 1], mean over the channels, with the Gaussian window of Z. Wang et al. (IEEE TIP
    2004): sigma 1.5, 11 x 11 pixels."""
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similarity: Any = structural_similarity
    return float(similarity(truth, made, channel_axis=2, data_range=255, **options))
