"""Masks of what to paint, the pictures that lack it, and tiles: computed on read from the picture and a seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from graphbuild.images.codecs import Pixels
from graphbuild.images.inpaint_masks import SHAPES
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS


def photo(height: int = 240, width: int = 360) -> Pixels:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:height, :width])


def made(kind: str, seed: int, picture: Pixels) -> Pixels:
    compute = KINDS[kind].computed
    assert compute is not None
    return compute({"image": Node.computed(0, "image", picture)}, seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_masked_picture_lacks_what_its_mask_marks(shape: str) -> None:
    """Guards against a picture and a mask of one row that do not belong together, and a picture changed elsewhere."""
    picture = photo()
    for seed in range(20):
        mask, masked = made(f"inpaint_{shape}", seed, picture), made(f"masked_{shape}", seed, picture)
        white = mask[:, :, 0] == 255
        assert mask.shape == picture.shape and set(np.unique(mask)) == {0, 255}
        assert (masked[white] == 128).all() and np.array_equal(masked[~white], picture[~white])
        assert 0.01 < white.mean() < 0.75


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_drawn_by_the_seed_and_follow_the_size(shape: str) -> None:
    """Guards against one mask for all, and masks that shrink to a dot in a large picture."""
    one, other = (made(f"inpaint_{shape}", seed, photo()) for seed in (1, 2))
    assert np.array_equal(one, made(f"inpaint_{shape}", 1, photo())) and not np.array_equal(one, other)
    rng = [np.random.Generator(np.random.PCG64(seed)) for seed in range(30)]
    small = np.mean([SHAPES[shape](64, 96, each).mean() for each in rng])
    large = np.mean([SHAPES[shape](640, 960, np.random.Generator(np.random.PCG64(seed))).mean() for seed in range(30)])
    assert 0.1 < small < 0.5 and 0.6 < small / large < 1.6


def test_shapes_are_what_they_are_called() -> None:
    picture = photo()
    for seed in range(10):
        box, brush, random = (made(f"inpaint_{shape}", seed, picture)[:, :, 0] > 0 for shape in SHAPES)
        rows, columns = np.nonzero(box)
        assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "one full box"
        thick = cv2.distanceTransform(brush.astype(np.uint8), cv2.DIST_L2, 5).max()
        assert thick < brush.shape[0] / 3, "strokes, not regions"
        assert 0.1 < random.mean() < 0.55


def test_a_tile_keeps_colours_and_loses_detail() -> None:
    """Guards against a tile of another size, and against one that is as sharp as the picture."""
    picture = photo()
    for seed in range(10):
        tile = made("tile", seed, picture)
        assert tile.shape == picture.shape
        assert cv2.Laplacian(tile, cv2.CV_64F).std() < 0.5 * cv2.Laplacian(picture, cv2.CV_64F).std()
        assert np.abs(tile.mean((0, 1)) - picture.mean((0, 1))).max() < 2
    assert not np.array_equal(made("tile", 1, picture), made("tile", 2, picture))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_thin_pictures(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    kinds = [f"{what}_{shape}" for what in ("inpaint", "masked") for shape in SHAPES] + ["tile"]
    assert all(made(kind, seed, picture).shape == picture.shape for kind in kinds for seed in range(5))
