"""Optical flow of pictures that were moved by a known way, and of a stereo pair."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from graphbuild.annotators.base import Derived, Request, Skip
from graphbuild.annotators.dis_flow import DisFlow
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node


def flow(picture: Pixels, reference: Pixels, **parameters: Any) -> Derived | Skip:
    item = Item(0, "id", "key", None, None, None, None, None)
    inputs = {name: Node.computed(0, name, each) for name, each in (("image", picture), ("reference", reference))}
    [result] = DisFlow(**parameters).annotate([Request(item, inputs, 0, 1)], None)
    return result


def photo() -> Pixels:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:400, 50:450])


def moved(picture: Pixels, right: float, down: float) -> Pixels:
    size = picture.shape[1::-1]
    way = np.array([[1, 0, right], [0, 1, down]], np.float32)
    return cv2.warpAffine(picture, way, size, borderMode=cv2.BORDER_REFLECT)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("way", "colour"),
    [((9, 0), (255, 0, 0)), ((0, 9), (128, 255, 0)), ((-9, 0), (0, 255, 255)), ((0, -9), (128, 0, 255))],
    ids=["right", "down", "left", "up"],
)
def test_directions_are_hues(way: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Guards against swapped axes, and the flow of the reference to the picture."""
    result = flow(photo(), moved(photo(), *way))
    assert isinstance(result, Derived) and result.attrs is not None
    shown: Any = result.nodes["flow"]
    assert shown.shape == photo().shape and shown.dtype == np.uint8
    lengths = (255 - shown[60:-60, 60:-60].min(2).astype(float)) / 255 * result.attrs["longest"]
    assert np.median(lengths) == pytest.approx(9, abs=1)
    seen = cv2.cvtColor(shown[60:-60, 60:-60], cv2.COLOR_RGB2HSV)[:, :, 0].astype(float) * 2
    wanted = float(cv2.cvtColor(np.array([[colour]], np.uint8), cv2.COLOR_RGB2HSV)[0, 0, 0]) * 2
    assert np.median(np.abs((seen - wanted + 180) % 360 - 180)) < 8


def test_lengths_are_pixels_of_the_picture() -> None:
    """Guards against lengths at the size it works at."""
    large = cv2.resize(photo(), (1200, 1200), interpolation=cv2.INTER_CUBIC)
    result = flow(large, moved(large, 30, 0), resolution=400)  # type: ignore[arg-type]
    assert isinstance(result, Derived) and result.score == pytest.approx(30 / np.hypot(1200, 1200), rel=0.15)


def test_nothing_to_show_is_a_skip() -> None:
    assert flow(photo(), photo()) == Skip("no_motion")
    assert flow(photo(), photo()[:200]) == Skip("other_shape")
    assert flow(np.zeros((1, 3000, 3), np.uint8), np.zeros((1, 3000, 3), np.uint8)) == Skip("no_motion")


def test_the_contract() -> None:
    pictures = [np.ascontiguousarray(photo()[:h, :w]) for h, w in ((64, 64), (101, 67))]
    check_annotator(DisFlow(resolution=64), pictures, inputs={"reference": [moved(each, 5, 3) for each in pictures]})


def test_a_stereo_pair_moves_sideways() -> None:
    """Of two views from left and right, what is near moves most, and all to one side."""
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    result = flow(left, right)
    assert isinstance(result, Derived) and result.attrs is not None
    shown: Any = result.nodes["flow"]
    lengths = (255 - shown.min(2).astype(float)) / 255 * result.attrs["longest"]
    known = np.isfinite(disparity)
    assert np.corrcoef(lengths[known], disparity[known])[0, 1] > 0.7
    hues = cv2.cvtColor(shown, cv2.COLOR_RGB2HSV)[:, :, 0].astype(float) * 2
    assert np.median(np.abs(hues[known] - 180)) < 10, "to the left"
