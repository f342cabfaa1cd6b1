"""A contact sheet of all degradations: `python -m graphbuild.images.degradations PHOTO SHEET [SEED]`."""

from __future__ import annotations

import sys

import cv2
import numpy as np
from PIL import Image

from graphbuild.images.degradations import NAMES, apply, fit
from graphbuild.images.degradations.pixels import Pixels, as_pixels

SIDE = 200
COLUMNS = 4
LABEL = 24
WHOLE = ("barrel", "pincushion")
"""Shown reduced: in the middle of a picture they change little."""


def sheet(photo: Pixels, seed: int) -> Pixels:
    """The middle of the photo (H x W x 3 RGB uint8, fitted to 512 px) and of its 32 degradations, pixel for pixel:
    reduced, noise and blocks would vanish. RGB uint8; of `WHOLE` the whole centre square."""
    fitted = fit(photo)
    cells = [_cell("(the photo)", fitted)] + [_cell(name, apply(name, fitted, seed)) for name in NAMES]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[at : at + COLUMNS], axis=1) for at in range(0, len(cells), COLUMNS)]
    return np.concatenate(rows)


def _cell(name: str, pixels: Pixels) -> Pixels:
    shown = _middle(pixels, min(pixels.shape[:2]) if name in WHOLE else SIDE)
    if name in WHOLE:
        shown = as_pixels(cv2.resize(shown, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    cell = np.full((SIDE + LABEL, SIDE + 4, 3), 255, np.uint8)
    cv2.putText(cell, name, (2, LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)
    cell[LABEL : LABEL + shown.shape[0], 2 : 2 + shown.shape[1]] = shown
    return cell


def _middle(pixels: Pixels, side: int) -> Pixels:
    height, width = (min(side, whole) for whole in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def main(photo: str, out: str, seed: str = "1") -> None:
    pixels = cv2.imread(photo, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        sys.exit(f"{photo}: not a readable image")
    if not seed.isdecimal():
        sys.exit(f"seed: {seed!r}; allowed: an integer from 0")
    try:
        Image.fromarray(sheet(pixels.astype(np.uint8), int(seed))).save(out, quality=95, subsampling=0)
    except (OSError, ValueError) as error:  # no such folder, or no such format
        sys.exit(f"{out}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) in (3, 4) else sys.exit(__doc__)
