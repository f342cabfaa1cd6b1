"""Skeletons and boxes look as documents say, whatever the size, and documents that cannot be drawn are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.images.rendering import (
    KEYPOINTS,
    LIMBS,
    check_boxes,
    check_pose,
    distinct_colours,
    draw_boxes,
    draw_pose,
    drawn_colours,
)
from graphbuild.models.people import openpose
from graphbuild.tasks.labels import COLOURS, colour_name


def pose(width: int, height: int, *people: dict[str, list[float]]) -> dict[str, Any]:
    """A document from keypoints by name."""
    found = [{"keypoints": [person.get(name) for name in KEYPOINTS]} for person in people]
    return {"width": width, "height": height, "people": found}


def boxes(width: int, height: int, *found: tuple[list[float], list[int]]) -> dict[str, Any]:
    every = [{"label": "thing", "box": box, "colour": colour, "score": 0.5} for box, colour in found]
    return {"width": width, "height": height, "boxes": every}


ARM = {"right_shoulder": [100.0, 256.0, 1.0], "right_elbow": [400.0, 256.0, 1.0]}


# ---- pose --------------------------------------------------------------------------------------------------------


def test_limbs_and_joints_have_openposes_colours() -> None:
    """Guards against BGR, and against limbs that start at other keypoints: pose ControlNets know these colours."""
    picture = draw_pose(pose(512, 512, ARM))
    assert picture.shape == (512, 512, 3) and picture.dtype == np.uint8
    assert picture[256, 100].tolist() == [255, 170, 0] and picture[256, 400].tolist() == [255, 255, 0]
    assert picture[256, 250].tolist() == [153, 102, 0], "the upper right arm is orange at 60 %"
    assert len(LIMBS) == 17 and {joint for limb in LIMBS for joint in limb} == set(range(18))


def test_limbs_blend_where_they_cross() -> None:
    crossing = {**ARM, "left_shoulder": [250.0, 100.0, 1.0], "left_elbow": [250.0, 400.0, 1.0]}
    picture = draw_pose(pose(512, 512, crossing))
    assert picture[200, 250].tolist() == [102, 153, 0]
    assert picture[256, 250].tolist() == [163, 194, 0], "0.6 of the left arm above 0.4 of the right one"


@pytest.mark.parametrize(("side", "thickness"), [(512, 8), (1024, 16), (128, 2)])
def test_thickness_grows_with_the_picture(side: int, thickness: int) -> None:
    """Guards against threads in large pictures, which vanish in a cell of 384 pixels."""
    scale = side / 512
    arm = {name: [x * scale, y * scale, score] for name, (x, y, score) in ARM.items()}
    column = draw_pose(pose(side, side, arm))[:, round(250 * scale)].any(axis=1).sum()
    assert abs(int(column) - thickness) <= 1


@pytest.mark.parametrize(("width", "height"), [(16, 16), (101, 67), (1, 1)])
def test_small_pictures_and_points_outside_are_drawn(width: int, height: int) -> None:
    far = {"nose": [-1e6, 1e6, 1.0], "neck": [width / 2, height / 2, 1.0], "right_shoulder": [2.0 * width, 0.0, 1.0]}
    picture = draw_pose(pose(width, height, far, {"neck": [0.0, 0.0, 1.0], "nose": [0.0, 0.0, 1.0]}))
    assert picture.shape == (height, width, 3) and picture.any()


def test_nobody_is_black_and_equal_documents_are_equal_pictures() -> None:
    assert not draw_pose(pose(32, 16)).any() and not draw_boxes(boxes(32, 16)).any()
    assert np.array_equal(draw_pose(pose(64, 64, ARM)), draw_pose(pose(64, 64, ARM)))


def test_coco_keypoints_lie_on_their_person(data_folder: Callable[[str], Path]) -> None:
    """Guards against swapped sides and orders: true keypoints of a skier, drawn, stay on the skier."""
    case = data_folder("reference") / "coco_785"
    found = json.loads((case / "keypoints.json").read_text())
    size, [person] = found["images"][0], found["annotations"]
    coco = np.array(person["keypoints"], float).reshape(17, 3)
    points = openpose(coco, size["width"], size["height"], 0.5)
    document = {"width": size["width"], "height": size["height"], "people": [{"keypoints": points}]}
    check_pose(document)
    picture = draw_pose(document)
    named = dict(zip(KEYPOINTS, points, strict=True))
    assert all(named.values()), "everything is visible in this photo"
    assert named["nose"][:2] == coco[0, :2].tolist() and named["left_ankle"][:2] == coco[15, :2].tolist()
    assert named["neck"][:2] == ((coco[5, :2] + coco[6, :2]) / 2).tolist()
    drawn = np.argwhere(picture.any(axis=2))[:, ::-1]
    left, top, width, height = person["bbox"]
    assert (drawn >= (left - 4, top - 4)).all() and (drawn <= (left + width + 4, top + height + 4)).all()
    for name, colour in {"right_wrist": (170, 255, 0), "left_wrist": (0, 255, 85), "left_ankle": (85, 0, 255)}.items():
        x, y = (round(side) for side in named[name][:2])
        assert tuple(picture[y, x].tolist()) == colour


def hand(x: float, y: float, reach: float) -> list[list[float]]:
    """A wrist and five fingers that point up."""
    fingers = [(x + reach * (finger - 2), y - reach * joint, 1.0) for finger in range(5) for joint in range(1, 5)]
    return [[x, y, 1.0], *(list(point) for point in fingers)]


def test_hands_and_faces_are_drawn_as_dwpose_draws_them() -> None:
    """Fingers in the colours of the hue circle with blue knuckles, faces as white dots; other documents as before."""
    document = pose(512, 512, ARM)
    before = draw_pose(document)
    person = document["people"][0]
    person |= {"left_hand": hand(300, 400, 20), "face": [None] * 67 + [[100.0, 100.0, 0.9]]}
    check_pose(document)
    picture = draw_pose(document)
    assert picture[400, 300].tolist() == [0, 0, 255] and picture[100, 102].tolist() == [255, 255, 255]
    assert picture[390, 280].tolist() == [255, 0, 0] and picture[370, 260].tolist() == [255, 77, 0], "two bones"
    assert not picture[100, 104].any() and np.array_equal(picture[:300, 150:], before[:300, 150:])
    person["left_hand"][0] = None
    assert draw_pose(document)[400, 300].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"people\[0\]\.face: 3 entries; allowed: 68"):
        check_pose({**document, "people": [{**person, "face": [None] * 3}]})


# ---- boxes -------------------------------------------------------------------------------------------------------


def test_a_box_is_an_outline_in_its_colour() -> None:
    picture = draw_boxes(boxes(256, 128, ([10, 20, 100, 90], [255, 0, 10])))
    assert np.argwhere(picture.any(axis=2)).min(0).tolist() == [20, 10]
    assert np.argwhere(picture.any(axis=2)).max(0).tolist() == [89, 99]
    assert picture[21, 50].tolist() == [255, 0, 10] and not picture[22:88, 12:98].any()


def test_small_boxes_lie_above_large_ones() -> None:
    """In any order, and without wiping out what is inside a large one."""
    found = [([10, 10, 200, 100], [255, 0, 0]), ([10, 10, 60, 50], [0, 255, 0])]
    picture = draw_boxes(boxes(256, 128, *found))
    assert np.array_equal(picture, draw_boxes(boxes(256, 128, *found[::-1])))
    assert picture[10, 20].tolist() == [0, 255, 0] and picture[10, 100].tolist() == [255, 0, 0]
    assert picture[49, 30].tolist() == [0, 255, 0]


def test_lines_grow_with_the_picture_and_boxes_may_reach_outside() -> None:
    picture = draw_boxes(boxes(1024, 1024, ([-50.5, -3, 2000, 512.2], [9, 9, 9])))
    assert picture[:, 500].any(axis=1).sum() == 16 and picture[100, 4].any() and not picture[100, 8].any()
    for width, height in ((1, 1), (3, 16)):
        drawn = draw_boxes(boxes(width, height, ([0, 0, width, height], [9, 9, 9])))
        assert drawn.shape == (height, width, 3) and drawn.any()
    assert not draw_boxes(boxes(64, 64, ([70, 70, 90, 90], [9, 9, 9]))).any()


# ---- checks ------------------------------------------------------------------------------------------------------

_POINT = ["people", 0, "keypoints", 3]
WRONG_POSES = [
    ([], [], "width: missing"),
    (["width"], 12.5, r"width: 12\.5; allowed: a whole number"),
    (["height"], 0, "height: 0; allowed"),
    (["height"], 10**9, "allowed: at most .* pixels"),
    (["people"], None, "people: None; allowed: a list"),
    (["people", 0], 7, r"people\[0\]\.keypoints: missing"),
    (["people", 0, "keypoints"], [None] * 17, r"people\[0\]\.keypoints: 17 entries; allowed: 18"),
    (_POINT, [1, 2], r"people\[0\]\.keypoints\[3\]: \[1, 2\]; allowed: \[x, y, score\]"),
    (_POINT, [1, float("nan"), 1], r"keypoints\[3\]: .*nan"),
    (_POINT, [1e9, 1, 1], r"keypoints\[3\]: \[1000000000"),
    (_POINT, [1, "2", 1], r"keypoints\[3\]: .*'2'"),
]
WRONG_BOXES = [
    (["boxes"], {}, "boxes: {}; allowed: a list"),
    (["boxes", 0], {}, r"boxes\[0\]\.label: missing"),
    (["boxes", 0, "label"], "", r"boxes\[0\]\.label: ''; allowed: text"),
    (["boxes", 0, "box"], [1, 2, 3], r"boxes\[0\]\.box: \[1, 2, 3\]; allowed: \[left"),
    (["boxes", 0, "box"], [9, 2, 3, 4], r"boxes\[0\]\.box: \[9, 2, 3, 4\]; .* left < right"),
    (["boxes", 0, "colour"], [256, 0, 0], r"boxes\[0\]\.colour: \[256, 0, 0\]; allowed: three integers"),
    (["boxes", 0, "colour"], "#ff0000", r"boxes\[0\]\.colour: '#ff0000'"),
]


def changed(document: Any, where: list[Any], value: Any) -> Any:
    if not where:
        return value
    copied = copy.deepcopy(document)
    inner = copied
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return copied


@pytest.mark.parametrize(("where", "value", "message"), WRONG_POSES)
def test_a_pose_that_is_none_is_refused_by_name(where: list[Any], value: Any, message: str) -> None:
    good = pose(512, 512, ARM)
    check_pose(good)
    with pytest.raises(ValueError, match=message):
        check_pose(changed(good, where, value))


@pytest.mark.parametrize(("where", "value", "message"), WRONG_BOXES)
def test_boxes_that_are_none_are_refused_by_name(where: list[Any], value: Any, message: str) -> None:
    good = boxes(64, 64, ([1, 2, 30.5, 40], [1, 2, 3]))
    check_boxes(good)
    with pytest.raises(ValueError, match=message):
        check_boxes(changed(good, where, value))


# ---- colours -----------------------------------------------------------------------------------------------------


def test_colours_differ_and_stay() -> None:
    """Guards against regions that melt into each other, or into black and white, and against colours that depend on how
    many there are."""
    every = distinct_colours(255)
    known = np.array([*every, COLOURS["black"], COLOURS["white"]])
    distances = np.abs(known[:, None] - known[None]).max(axis=2) + 999 * np.eye(len(known), dtype=int)
    assert distances.min() >= 42 and distances[:, :16][:16].min() >= 85
    assert every[:5] == distinct_colours(5) and distinct_colours(0) == []


def test_colours_say_nothing_about_rank() -> None:
    """Guards against a largest object of one colour in every picture, which a model learns instead of the shape, and
    against two objects of one colour."""
    first = [tuple(drawn_colours(3, seed)[0]) for seed in range(200)]
    assert set(first) == {tuple(colour) for colour in distinct_colours(11)} and drawn_colours(0, 1) == []
    assert max(first.count(colour) for colour in set(first)) < 40
    assert len({colour_name(colour) for colour in drawn_colours(11, 0)}) == 11, "dog in blue, ball in another blue"
    for count in (3, 16, 255):
        colours = drawn_colours(count, 7)
        assert colours == drawn_colours(count, 7) and len({tuple(colour) for colour in colours}) == count
