"""Ice on the window: frost.

The ice is drawn here, from ferns of crystals, once per process; each draw then takes its own cut of it.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from graphbuild.images.degradations.pixels import REFERENCE_SIDE, Floats, Pixels, as_floats, to_pixels

_IMAGE_WEIGHT = 0.65
_FROST_WEIGHT = 0.7
_TINT = (0.93, 0.97, 1.0)

_NUM_SHEETS = 3
_SHEET_SIDE = 768
_STARS_A_SIDE = 9
_BRANCH_GAP_PX = 5.0
_TWIG_GAP_PX = 4.0
_BRANCH_ANGLE = np.deg2rad(60.0)

_Points = NDArray[np.float64]


def frost(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Feathered ice crystals, dense at the rim and in patches, bluish white, over the darkened picture.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Frost`: 0.65 * picture +
    0.7 * frost, both on one scale. The textures are our own: drawn at a long side of 512 and brought to the
    picture's size, so they look alike at every size.
    """
    height, width = pixels.shape[:2]
    unit = REFERENCE_SIDE / max(height, width)
    size = (max(1, round(height * unit)), max(1, round(width * unit)))
    ice = _cut(size, rng) * _cover(size, rng)
    ice = as_floats(cv2.resize(ice, (width, height), interpolation=cv2.INTER_AREA if unit > 1 else cv2.INTER_LINEAR))
    ice *= np.float32(255 * _FROST_WEIGHT)
    if pixels.ndim == 3:
        ice = ice[..., np.newaxis] * np.array(_TINT, np.float32)
    return to_pixels(pixels * np.float32(_IMAGE_WEIGHT) + ice)


def _cut(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """A window of one sheet, turned and mirrored at random; float32 0..1."""
    sheet = np.rot90(_sheet(int(rng.integers(_NUM_SHEETS))), int(rng.integers(4)))
    sheet = sheet[:, :: 1 if rng.integers(2) else -1]
    top, left = (int(rng.integers(_SHEET_SIDE - side + 1)) for side in size)
    return as_floats(sheet[top : top + size[0], left : left + size[1]]) / np.float32(255)


def _cover(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """How thick the ice is: clouds of three sizes, thicker towards the rim; float32 0.1..1."""
    clouds = sum(_cloud(size, cells, rng) * weight for cells, weight in ((3, 0.5), (7, 0.3), (15, 0.2)))
    y, x = (np.abs(np.linspace(-1, 1, side, dtype=np.float32)) for side in size)
    rim = np.maximum(y[:, np.newaxis], x[np.newaxis, :]) ** 3
    return as_floats(np.clip(1.6 * clouds - 0.35 + 0.6 * rim, 0.1, 1.0))


def _cloud(size: tuple[int, int], cells: int, rng: np.random.Generator) -> Floats:
    noise = rng.random((cells, cells), dtype=np.float32)
    return as_floats(cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC))


@lru_cache(maxsize=_NUM_SHEETS)
def _sheet(index: int) -> Pixels:
    """A square of ice, uint8: stars of feathered crystals, the glow they give off, and grain between them."""
    rng = np.random.Generator(np.random.PCG64(index))
    crystals = np.zeros((_SHEET_SIDE, _SHEET_SIDE), np.uint8)
    for cell in np.ndindex(_STARS_A_SIDE, _STARS_A_SIDE):
        _draw_star(crystals, (cell + rng.random(2)) * (_SHEET_SIDE / _STARS_A_SIDE), rng)
    glow = as_floats(cv2.GaussianBlur(crystals, (0, 0), 8.0))
    grain = as_floats(cv2.GaussianBlur(rng.random(crystals.shape, dtype=np.float32), (0, 0), 0.8))
    sheet = to_pixels(0.9 * crystals + 0.6 * glow + 100 * (grain - 0.5) + 30)
    sheet.flags.writeable = False
    return sheet


def _draw_star(crystals: Pixels, seed: _Points, rng: np.random.Generator) -> None:
    """Ferns that grow from one seed of ice, some 60 degrees apart."""
    turn = rng.uniform(0, 2 * np.pi)
    for arm in range(int(rng.integers(2, 6))):
        heading = turn + arm * np.deg2rad(60) + rng.normal(0, 0.12)
        _draw_fern(crystals, seed, heading, rng)


def _draw_fern(crystals: Pixels, root: _Points, heading: float, rng: np.random.Generator) -> None:
    """One curved stem with branches to both sides and twigs on the branches."""
    length, level = _SHEET_SIDE * rng.uniform(0.05, 0.24), rng.uniform(70, 230)
    count = int(length / _BRANCH_GAP_PX)
    headings = heading + np.linspace(0, rng.normal(0, 0.35), count)
    stem = root + np.cumsum(_polar(np.full(count, _BRANCH_GAP_PX), headings), axis=0)
    _draw(crystals, stem[np.newaxis], level, 1)
    for side in (-1, 1):
        reach = length * rng.uniform(0.1, 0.32, count) * np.linspace(1, 0.1, count)
        tips = stem + _polar(reach, headings + side * _BRANCH_ANGLE)
        _draw(crystals, np.stack([stem, tips], axis=1), 0.75 * level, 1)
        num_twigs = max(1, int(0.25 * length / _TWIG_GAP_PX))
        along = np.linspace(0.2, 0.9, num_twigs)[np.newaxis, :, np.newaxis]
        roots = (stem[:, np.newaxis] * (1 - along) + tips[:, np.newaxis] * along).reshape(-1, 2)
        twig_reach = (reach[:, np.newaxis] * 0.35 * (1 - along[..., 0])).ravel()
        ends = roots + _polar(twig_reach, np.repeat(headings, num_twigs))
        _draw(crystals, np.stack([roots, ends], axis=1), 0.55 * level, 1)


def _polar(reach: _Points, angle: _Points) -> _Points:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, np.newaxis]


def _draw(crystals: Pixels, strokes: _Points, level: float, thickness: int) -> None:
    """Strokes of shape (N, points, 2) in px, anti-aliased, at 1/16 px."""
    fixed = np.rint(strokes * 16).astype(np.int32)
    cv2.polylines(crystals, list(fixed), False, (level,), thickness, cv2.LINE_AA, 4)
