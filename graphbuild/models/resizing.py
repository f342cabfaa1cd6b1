"""Pictures resized to a network's working size, and its outputs resized back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""Height and width in pixels."""

Made = TypeVar("Made")

HEIGHT_WIDTH_RGB = {"input_data_format": "channels_last", "return_tensors": "pt"}
"""How image processors of transformers are called with pictures: left to guess, they take a height of 1, 3 or 4 pixels
for channels."""


def working_size(picture: NDArray[Any], *, short: int, long: int, multiple: int) -> Size:
    """The largest size of about the picture's aspect whose sides are at most `short` and `long`, smaller ones enlarged;
    both are rounded to a multiple, so that even a picture one pixel high has one."""
    height, width = picture.shape[:2]
    scale = min(short / min(height, width), long / max(height, width))
    sides = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return next(sides), next(sides)


def picture_at(picture: Pixels, size: Size) -> Pixels:
    """A copy of a picture (H x W x 3 uint8) resized: by area where it shrinks, else bicubic."""
    import cv2

    return _resized(picture, size, cv2.INTER_CUBIC)


def map_at(values: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """A network's output (h x w or h x w x C) resized: by area where it shrinks, else bilinear.

    Raises:
        ValueError: a value is not finite.
    """
    import cv2

    if not np.isfinite(values).all():
        raise ValueError("the network gave values that are not finite; dtype float32 has the range for them")
    return _resized(values, size, cv2.INTER_LINEAR)


def in_stacks(inputs: Sequence[torch.Tensor], run: Callable[[torch.Tensor, list[int]], Sequence[Made]]) -> list[Made]:
    """Run inputs of equal shape in one stack each; results are in the order of the inputs.

    Args:
        inputs: one tensor a picture.
        run: called with a stack and the places of its members in `inputs`; gives one result for each.
    """
    import torch

    places: dict[tuple[int, ...], list[int]] = {}
    for place, tensor in enumerate(inputs):
        places.setdefault(tuple(tensor.shape), []).append(place)
    made: dict[int, Made] = {}
    for members in places.values():
        results = run(torch.stack([inputs[place] for place in members]), members)
        made.update(zip(members, results, strict=True))
    return [made[place] for place in range(len(inputs))]


def _resized(array: NDArray[Any], size: Size, enlarging: int) -> NDArray[Any]:
    import cv2

    height, width = size
    if array.shape[:2] == size:
        return array.copy()  # torch warns of the read-only memory that the pictures of a graph are
    shrinks = height * width < array.shape[0] * array.shape[1]
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA if shrinks else enlarging)
