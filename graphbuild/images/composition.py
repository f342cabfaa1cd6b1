"""Cut-outs of several subjects laid side by side over a background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

_HEIGHTS = 0.45, 0.75
_WIDEST = 1.1
_FLOOR = 0.82, 0.98
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class CutOut:
    """A subject: h x w x 3 RGB uint8 pixels, and h x w floats of how much of each pixel is its own, 0..1; both cropped
    to the subject."""

    pixels: Pixels
    share: NDArray[np.float32]

    @classmethod
    def of(cls, picture: Pixels, mask: NDArray[np.bool_]) -> CutOut:
        """From a picture and an H x W mask with something in it; its specks are left out."""
        mask = _without_specks(mask)
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        part = (slice(top, top + height), slice(left, left + width))
        return cls(picture[part], mask[part].astype(np.float32))


@dataclass(frozen=True, slots=True)
class Composition:
    """A picture, H x W x 3 RGB uint8, an H x W uint8 label map (subject n is n + 1, later ones lie above), and the box
    of what is seen of each subject; None where others hide it."""

    picture: Pixels
    labels: NDArray[np.uint8]
    boxes: tuple[Box | None, ...]


def compose(background: Pixels, subjects: Sequence[CutOut], rng: np.random.Generator) -> Composition:
    """Lay each subject into a column of its own, in random order, on a floor in the lowest fifth, 0.45 to 0.75 of the
    height tall or as wide as 1.1 columns; their edges are smoothed by what resizing makes of their masks."""
    picture, labels = background.astype(np.float32), np.zeros(background.shape[:2], np.uint8)
    height, width = background.shape[:2]
    column = width / len(subjects)
    for place, number in enumerate(rng.permutation(len(subjects)).tolist()):
        subject = subjects[number]
        tall, wide = subject.share.shape[:2]
        scale = min(height * rng.uniform(*_HEIGHTS) / tall, column * _WIDEST / wide)
        size = max(1, round(wide * scale)), max(1, round(tall * scale))
        middle = column * (place + 0.5 + rng.uniform(-_JITTER, _JITTER))
        left, bottom = round(middle - size[0] / 2), round(height * rng.uniform(*_FLOOR))
        _paste(picture, labels, _resized(subject, size), (left, bottom - size[1]), number + 1)
    boxes = tuple(_box(labels == number + 1) for number in range(len(subjects)))
    return Composition(np.rint(picture).astype(np.uint8), labels, boxes)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask that have at least a fiftieth of its largest part's pixels: a speck in a corner would make
    the subject as large as the picture."""
    _, parts, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    large: NDArray[np.bool_] = np.take((areas * 50 >= areas.max()) & (areas > 0), np.asarray(parts, np.intp))
    return large


def _resized(subject: CutOut, size: tuple[int, int]) -> CutOut:
    shrinks = size[0] * size[1] < subject.share.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # What is not the subject's own must not bleed in at its edge.
    own = cv2.resize(subject.pixels * subject.share[:, :, None], size, interpolation=how)
    share = cv2.resize(subject.share, size, interpolation=how)
    pixels = own / np.maximum(share, 1e-3)[:, :, None]
    return CutOut(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), share)  # type: ignore[arg-type]


def _paste(
    picture: NDArray[np.float32], labels: NDArray[np.uint8], subject: CutOut, corner: tuple[int, int], number: int
) -> None:
    """Over both with its left and top corner there, cut at their edges."""
    left, top = corner
    height, width = labels.shape[:2]
    rows, columns = subject.share.shape
    first = max(0, -top), max(0, -left)
    last = min(rows, height - top), min(columns, width - left)
    part = (slice(first[0], last[0]), slice(first[1], last[1]))
    place = (slice(top + first[0], top + last[0]), slice(left + first[1], left + last[1]))
    share = subject.share[part]
    picture[place] += share[:, :, None] * (subject.pixels[part] - picture[place])
    labels[place][share >= 0.5] = number


def _box(region: NDArray[np.bool_]) -> Box | None:
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    return (left, top, left + width, top + height) if width else None
