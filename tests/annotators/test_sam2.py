"""`sam2`: masks at the right place in the picture, with a network that answers what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from graphbuild.annotators.base import Derived, Skip
from graphbuild.annotators.sam2 import Sam2
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.models.sam2 import Sam2Network, masks_from_boxes
from tests.annotators.test_regions import annotated, photo, request

pytestmark = pytest.mark.usefixtures("one_thread")

Answer = Callable[[list[float]], Sequence[tuple[NDArray[np.bool_], float]]]


class Answering:
    """A SAM 2 of 64 x 64 pixels that gives each prompt the masks and scores that the test says."""

    def __init__(self, answer: Answer, sharpness: float = 10.0) -> None:
        self.answer, self.sharpness = answer, sharpness
        self.batches: list[int] = []

    def get_image_embeddings(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        assert pixels.shape[1:] == (3, 64, 64)
        return [torch.zeros(len(pixels), 1)]

    def __call__(self, *, image_embeddings: list[torch.Tensor], **prompts: Any) -> SimpleNamespace:
        asked = (prompts["input_points"][0, :, 0] if "input_points" in prompts else prompts["input_boxes"][0]).tolist()
        self.batches.append(len(asked))
        answers = [self.answer(prompt) for prompt in asked]
        masks = torch.tensor(np.array([[mask for mask, _ in answer] for answer in answers]))
        scores = torch.tensor([[score for _, score in answer] for answer in answers])
        return SimpleNamespace(pred_masks=(masks.float() - 0.5)[None] * 2 * self.sharpness, iou_scores=scores[None])


def answering(answer: Answer, sharpness: float = 10.0) -> Sam2Network:
    from transformers import Sam2ImageProcessor

    return Sam2Network(
        Answering(answer, sharpness), Sam2ImageProcessor(size={"height": 64, "width": 64}), "cpu", "float32"
    )


def area(left: int, top: int, right: int, bottom: int, side: int = 16) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return mask


def tile(point: list[float], shrink: int = 0) -> NDArray[np.bool_]:
    """The one of 4 x 2 equal tiles of the square that a point lies in."""
    column, row = int(point[0] // 16), int(point[1] // 32)
    return area(column * 4 + shrink, row * 8 + shrink, column * 4 + 4 - shrink, row * 8 + 8 - shrink)


def labels_of(result: Derived | Skip) -> Pixels:
    assert isinstance(result, Derived), result
    labels = result.nodes["segments"]
    assert isinstance(labels, np.ndarray)
    return labels


def test_points_cover_the_whole_of_a_wide_picture() -> None:
    """Guards against a grid laid over the square of the long side, which leaves half of a wide picture unasked, and
    against one region that is counted once for each point in it."""
    [result] = annotated(Sam2(points_per_side=4), answering(lambda point: [(tile(point), 0.9)]), photo(200, 100))
    labels = labels_of(result)
    centres = labels[25::50, 25::50]
    assert sorted(centres.ravel().tolist()) == list(range(1, 9)) and (labels > 0).mean() > 0.99
    for row, column in np.ndindex(2, 4):
        inner = labels[row * 50 + 3 : row * 50 + 47, column * 50 + 3 : column * 50 + 47]
        assert (inner == centres[row, column]).all()


def test_small_regions_lie_above_large_ones_and_hidden_ones_have_no_number() -> None:
    """The whole picture is found with the best score; tiles with gaps between them stay visible on it."""
    seen = answering(lambda point: [(area(0, 0, 16, 16), 0.99), (tile(point, 1), 0.9), (tile(point), 0.5)])
    [result] = annotated(Sam2(points_per_side=4), seen, photo(128, 64))
    labels = labels_of(result)
    assert np.unique(labels).tolist() == list(range(1, 10)) and (labels == 1).mean() > 0.4
    assert labels[32, 1] == 1 and labels[16, 16] > 1
    left, right = area(0, 0, 9, 16), area(7, 0, 16, 16)
    hiding = answering(lambda point: [(area(0, 0, 16, 16), 0.99), (left if point[0] < 32 else right, 0.9)])
    [result] = annotated(Sam2(points_per_side=4), hiding, photo(128, 64))
    assert np.unique(labels_of(result)).tolist() == [1, 2], "the whole lies below its halves"
    assert isinstance(result, Derived) and result.attrs is not None and len(result.attrs["palette"]) == 3


@pytest.mark.parametrize("height", [1, 3, 4])
def test_low_pictures_are_not_taken_for_channels(height: int) -> None:
    """Guards against an image processor that reads 3 x 8 x 3 as three channels of 8 x 3."""
    red = np.full((height, 8, 3), (255, 0, 0), np.uint8)
    given: list[torch.Tensor] = []
    model = answering(lambda point: [])
    model.network.get_image_embeddings = lambda pixels: given.append(pixels) or []
    model.embedded([red])
    assert given[0].shape == (1, 3, 64, 64) and torch.allclose(given[0], given[0][:, :, :1, :1].expand(1, 3, 64, 64))
    assert given[0][0, 0].min() > given[0][0, 1].max()


def test_colours_are_drawn_for_each_request() -> None:
    """Guards against a largest region of one colour in every picture; one request keeps its own."""
    tiles, picture = answering(lambda point: [(tile(point), 0.9)]), photo(128, 64)
    requests = [request(picture, seed) for seed in (1, 2, 1)]
    results = Sam2(points_per_side=4).annotate(requests, tiles)
    one, other, again = (each.attrs["palette"] for each in results if isinstance(each, Derived) and each.attrs)
    assert one == again != other and one[0] == other[0] == [255, 255, 255] and one[1] != other[1]


def test_uncovered_pixels_are_white_and_the_score_is_what_is_covered() -> None:
    half = answering(lambda point: [(area(0, 0, 8, 16), 0.9)])
    [result] = annotated(Sam2(points_per_side=2), half, photo(64, 64))
    assert isinstance(result, Derived) and result.attrs is not None and result.score == pytest.approx(0.5, abs=0.02)
    encoded = CODECS["labels"].encode(labels_of(result))
    picture = Node(0, "segments", 0, "v", encoded.data, "png", "labels", result.attrs).array()
    assert picture[10, 60].tolist() == [255, 255, 255] != picture[10, 10].tolist()


@pytest.mark.parametrize(
    ("answer", "sharpness"),
    [
        (lambda point: [(area(0, 0, 8, 8), 0.79)], 10.0),
        (lambda point: [(area(0, 0, 8, 8), 0.9)], 0.5),
        (lambda point: [(area(0, 0, 1, 1), 0.9)], 10.0),
        (lambda point: [(area(0, 0, 0, 0), 0.9)], 10.0),
    ],
    ids=["not trusted", "not stable", "small", "empty"],
)
def test_nothing_worth_keeping_is_skipped(answer: Answer, sharpness: float) -> None:
    annotator = Sam2(points_per_side=2, min_region_area=0.005)
    assert annotated(annotator, answering(answer, sharpness), photo(64, 64)) == [Skip("no_segments")]


def test_the_best_255_regions_are_kept() -> None:
    """Guards against label 256, which is 0 in a byte; the worst are left out, and attrs say how many."""

    def dot(point: list[float]) -> list[tuple[NDArray[np.bool_], float]]:
        column, row = (int(side * 20 / 64) for side in point)
        return [(area(column * 4, row * 4, column * 4 + 4, row * 4 + 4, side=80), 0.85 + row / 200)]

    [result] = annotated(Sam2(points_per_side=20), model := answering(dot), photo(100, 80))
    labels = labels_of(result)
    assert isinstance(result, Derived) and result.attrs is not None and result.attrs["dropped"] == 400 - 255
    assert labels.max() == 255 and len(result.attrs["palette"]) == 256
    assert not labels[:24].any() and labels[40:].all(), "the rows further down have the better scores"
    assert model.network.batches == [64] * 6 + [16]


def test_masks_of_boxes_lie_in_their_boxes() -> None:
    """Guards against swapped axes and against boxes in the wrong coordinates, in a picture that is not square."""

    def inside(box: list[float]) -> list[tuple[NDArray[np.bool_], float]]:
        left, top, right, bottom = (round(side / 4) for side in box)
        return [(area(left, top, right, bottom), 0.1)]

    model = answering(inside)
    boxes = [[0, 0, 100, 40], [150, 20, 200, 80], [50.0, 60.0, 75.0, 80.0]]
    masks = masks_from_boxes(model, photo(200, 80), boxes * 30)
    assert masks.shape == (90, 80, 200) and masks.dtype == bool and model.network.batches == [64, 26]
    for mask, (left, top, right, bottom) in zip(masks, boxes * 30, strict=True):
        rows, columns = np.nonzero(mask)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(found) - (left, top, right, bottom)).max() <= 1
    assert masks_from_boxes(model, photo(200, 80), []).shape == (0, 80, 200)
