"""What degradations do to tones, on pictures where it can be counted: noise, channels, quantisation and contrast."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from graphbuild.images.degradations import apply
from graphbuild.images.degradations.pixels import histograms, levels
from graphbuild.images.degradations.tones import median_edges, otsu_edges
from tests.images.test_degradations import photo


def test_channels_are_rgb() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert apply("gray", red, 0)[0, 0].tolist() == [60, 60, 60]
    assert apply("mosaic", red, 0)[..., 0].tolist() == (red[..., 0] * np.tile([[1, 0], [0, 0]], (4, 4))).tolist()
    assert apply("mosaic", red, 0)[..., 1:].sum() == 0
    for seed in range(20):
        for name in ("jpeg", "compression", "brighten", "darken", "low_light"):
            result = apply(name, red, seed).astype(int)
            assert (result[..., 0] > result[..., 2]).all(), name


def test_salt_and_pepper_take_whole_pixels() -> None:
    grey = np.full((400, 400, 3), 100, np.uint8)
    noisy = apply("salt_pepper_noise", grey, 1)
    assert (noisy.min(axis=2) == noisy.max(axis=2)).all()
    assert (noisy[..., 0] == 255).mean() == pytest.approx(0.025, abs=0.003)
    assert (noisy[..., 0] == 0).mean() == pytest.approx(0.025, abs=0.003)


@pytest.mark.parametrize("level", [5, 40, 128, 200])
def test_poisson_noise_has_the_moments_of_counts(level: int) -> None:
    noisy = apply("poisson_noise", np.full((300, 300, 3), level, np.uint8), 0).astype(float)
    assert noisy.mean() == pytest.approx(level, abs=0.3)
    assert noisy.std() == pytest.approx(np.sqrt(level * 255 / 100), rel=0.03)


def test_gaussian_noise_spans_its_range_of_sigma() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    spread = [apply("gaussian_noise", grey, seed).astype(float).std() for seed in range(60)]
    assert 9 < min(spread) < 16
    assert 42 < max(spread) < 51


def test_severity_caps_move_weight_to_the_third_level() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    counts = [len(np.unique(apply("quantization", noise, seed)[..., 0])) for seed in range(150)]
    assert set(counts) == {8, 10, 11, 15, 16, 20, 24}
    assert 0.45 < np.mean([count in (8, 10) for count in counts]) < 0.75


def test_otsu_is_exact() -> None:
    counts = np.zeros(256)
    counts[[10, 12, 100, 104, 240]] = [5, 5, 3, 3, 1]
    assert otsu_edges(counts, 3) == [0, 100, 240]
    assert otsu_edges(counts, 9) == [0, 12, 100, 104, 240]
    ragged = histograms(photo("chelsea"))[0]
    two = otsu_edges(ragged, 2)
    assert two[1] == min(range(1, 256), key=lambda edge: spread_within(ragged, edge))


def spread_within(counts: np.ndarray, edge: int) -> float:
    spread = 0.0
    for part in (slice(0, edge), slice(edge, 256)):
        mass = counts[part].sum()
        if mass:
            mean = (counts[part] * levels()[part]).sum() / mass
            spread += float((counts[part] * (levels()[part] - mean) ** 2).sum())
    return spread


def test_median_cut_makes_classes_of_like_counts() -> None:
    counts = np.ones(256)
    edges = [*median_edges(counts, 8), 256]
    assert {stop - start for start, stop in pairwise(edges)} == {32}
    assert median_edges(np.eye(256)[7], 5)[0] == 0


@pytest.mark.parametrize("level", [0, 90, 250])
def test_quantisation_leaves_a_flat_picture_near_its_tone(level: int) -> None:
    """Guards against a bright plain picture that comes out black."""
    flat = np.full((16, 16, 3), level, np.uint8)
    for seed in range(30):
        assert abs(int(apply("quantization", flat, seed).mean()) - level) <= 64


@pytest.mark.parametrize(("ground", "subject"), [(245, 60), (250, 200), (8, 120), (3, 30)])
def test_contrast_goes_where_its_name_says(ground: int, subject: int) -> None:
    """Guards against a tone curve that flattens a product photo on white, or stretches a night shot."""
    pixels = np.full((64, 96, 3), ground, np.uint8)
    pixels[20:40, 30:60] = np.linspace(subject, ground, 30).astype(np.uint8)[None, :, None]
    for seed in range(200):
        assert apply("contrast_strengthen", pixels, seed).std() > pixels.std(), seed
        assert apply("contrast_weaken", pixels, seed).std() < pixels.std(), seed
