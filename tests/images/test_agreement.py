"""Agreement of two maps: known answers, and those of scikit-image and torchmetrics on the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index, multiclass_jaccard_index

from graphbuild.images.agreement import angular_error, canny_edges, colour_labels, f1, iou, mean_iou, pck, rmse

RNG = np.random.default_rng(0)
ONE, OTHER = (RNG.random((40, 60)) < share for share in (0.3, 0.5))
EMPTY = np.zeros((40, 60), bool)


@pytest.mark.parametrize("measure", [f1, iou])
def test_masks_have_the_known_answers(measure: Any) -> None:
    assert measure(ONE, ONE) == measure(EMPTY, EMPTY) == 1
    assert measure(ONE, EMPTY) == measure(ONE, ~ONE) == 0
    assert measure(ONE, OTHER) == measure(OTHER, ONE)
    assert measure(np.uint8(255) * ONE, OTHER) == measure(ONE, OTHER)  # as they are stored
    assert measure(ONE, OTHER, where=EMPTY) == 1
    order = RNG.permutation(ONE.size)
    assert measure(ONE.ravel()[order], OTHER.ravel()[order]) == measure(ONE, OTHER)  # no place counts more
    with pytest.raises(ValueError, match=r"shapes \(40, 60\) and \(60, 40\)"):
        measure(ONE, ONE.T)


def test_a_shifted_square_has_a_third_and_a_half() -> None:
    square, shifted = EMPTY.copy(), EMPTY.copy()
    square[10:20, 10:20], shifted[10:20, 15:25] = True, True
    assert iou(square, shifted) == pytest.approx(1 / 3) and f1(square, shifted) == pytest.approx(1 / 2)


def test_masks_are_as_torchmetrics_has_them() -> None:
    found, wanted = torch.from_numpy(ONE).int(), torch.from_numpy(OTHER).int()
    assert f1(ONE, OTHER) == pytest.approx(float(binary_f1_score(found, wanted)), abs=1e-6)
    assert iou(ONE, OTHER) == pytest.approx(float(binary_jaccard_index(found, wanted)), abs=1e-6)
    labels = [RNG.integers(0, 5, (40, 60)) for _ in range(2)]
    theirs = multiclass_jaccard_index(*map(torch.from_numpy, labels), num_classes=5)
    assert mean_iou(*labels) == pytest.approx(float(theirs), abs=1e-6)


def test_a_drawn_label_map_is_read_by_its_nearest_colours() -> None:
    colours = np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200]], np.uint8)
    wanted = colours[RNG.integers(0, 3, (40, 60))]
    made = np.clip(wanted.astype(int) + RNG.integers(-20, 20, wanted.shape), 0, 255).astype(np.uint8)
    assert mean_iou(*colour_labels(made, wanted)) == 1
    assert mean_iou(*colour_labels(np.zeros_like(wanted), wanted)) == pytest.approx((wanted == 0).all(2).mean() / 3)


def test_differences_of_levels() -> None:
    picture = RNG.integers(0, 200, (40, 60, 3)).astype(np.uint8)
    assert rmse(picture, picture) == 0 and rmse(picture + 7, picture) == 7
    assert rmse(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)) == 255


def test_angles_between_normals() -> None:
    def facing(*direction: float) -> Any:
        return np.broadcast_to(np.rint((np.array(direction) + 1) * 127.5), (8, 8, 3)).astype(np.uint8)

    assert angular_error(facing(0, 0, 1), facing(0, 0, 1)) == 0
    assert angular_error(facing(0, 0, 1), facing(0, 0, -1)) == pytest.approx(180, abs=1)
    assert angular_error(facing(1, 0, 0), facing(0, 1, 0)) == pytest.approx(90, abs=1)
    assert angular_error(facing(0, 0.6, 0.8), facing(0, 0, 1)) == pytest.approx(36.87, abs=1)


def test_correct_keypoints() -> None:
    wanted = person((0, 0), (0, 100), (40, 50), None)
    assert pck(poses(wanted), poses(wanted)) == 1
    near, far = person((0, 19), (0, 100), (40, 50), (3, 3)), person((0, 21), (0, 100), None, None)
    assert pck(poses(near), poses(wanted)) == 1 and pck(poses(far), poses(wanted)) == pytest.approx(1 / 3)
    assert pck(poses(far, near), poses(wanted)) == 1  # the order of people says nothing
    assert pck(poses(), poses(wanted)) == 0 and pck(poses(wanted), poses()) is None


def poses(*people: Any) -> dict[str, Any]:
    return {"width": 200, "height": 200, "people": list(people)}


def person(*points: Any) -> dict[str, Any]:
    return {"keypoints": [point and [*point, 1.0] for point in points]}


def test_edges_are_the_annotator_s() -> None:
    from graphbuild.annotators.base import Request
    from graphbuild.annotators.canny import Canny
    from graphbuild.images.node import Node

    picture = RNG.integers(0, 255, (40, 60, 3)).astype(np.uint8)
    item: Any = None
    (made,) = Canny().annotate([Request(item, {"image": Node.computed(0, "image", picture)}, 0, 0)], None)
    assert f1(canny_edges(picture), made.nodes["canny"]) == 1 and canny_edges(picture).any()
