"""Poses and bounding boxes drawn as pictures, and lists of distinct colours.

Two JSON documents, both with `width` and `height`, the size in pixels of the picture they describe. Coordinates are in
its pixels, x to the right and y down, and may lie outside, up to a million.

- pose: `{"width", "height", "people": [{"keypoints": [[x, y, score] or null] x 18}]}`, keypoints in the order of
  `KEYPOINTS`, null where none was found. A person may also have `left_hand` and `right_hand` (21 each) and `face` (68),
  in the order of COCO-WholeBody, where they were looked for.
- boxes: `{"width", "height", "boxes": [{"label": text, "box": [left, top, right, bottom], "colour": [r, g, b],
  "score"}]}`, colours 0..255. A detector that gives no score leaves it out.

Scores are 0..1. Further fields are kept and not read.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import MAX_PIXELS

Picture = NDArray[np.uint8]

KEYPOINTS = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
"""The COCO model of OpenPose (Z. Cao et al., arXiv 1812.08008); right and left are the person's."""

LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Pairs of keypoints, in the order of their colours."""

PARTS = {"left_hand": 21, "right_hand": 21, "face": 68}
"""What a person of a pose document may have beside the body, and of how many keypoints."""

_FINGERS = [(0 if at % 4 == 1 else at - 1, at) for at in range(1, 21)]
"""Pairs of a hand's keypoints: from the wrist, 0, along each of the five fingers."""
_FINGER_HUES = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(step / 20, 1, 1)) for step in range(20)]
_KNUCKLE, _FACE = (0, 0, 255), (255, 255, 255)

_HUES = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(step / 18, 1, 1)) for step in range(18)]
_LIMB_OPACITY = 0.6
_RADIUS_AT_512 = 4.0
_ELLIPSE_CORNERS = 48
_SUBPIXEL_BITS = 4
_FARTHEST = 1e6
_FEWEST_TO_DRAW_FROM = 11  # as many as have different names in an instruction


def draw_pose(document: Mapping[str, Any]) -> Picture:
    """The skeletons of a pose document on black as OpenPose draws them, hands and faces as DWPose: height x width x 3
    RGB uint8.

    Limbs are ellipses at 60 % opacity, keypoints discs above them. Both have a radius of 4 pixels where the short side
    has 512, and in proportion elsewhere. Fingers are lines of 2 pixels with blue discs of 4, faces white discs of 3.
    """
    width, height = document["width"], document["height"]
    canvas = np.zeros((height, width, 3), np.uint8)
    radius = max(1.0, _RADIUS_AT_512 * min(width, height) / 512)
    for person in document["people"]:
        found = [None if point is None else np.array(point[:2], float) for point in person["keypoints"]]
        for (start, end), colour in zip(LIMBS, _HUES, strict=False):
            if (a := found[start]) is not None and (b := found[end]) is not None:
                _blend(canvas, _ellipse((a + b) / 2, (b - a) / 2, radius), colour, _LIMB_OPACITY)
    for person in document["people"]:
        for point, colour in zip(person["keypoints"], _HUES, strict=True):
            if point is not None:
                _disc(canvas, point, radius, colour)
    for person in document["people"]:
        for hand in ("left_hand", "right_hand"):
            _draw_hand(canvas, person.get(hand, ()), radius)
        for point in filter(None, person.get("face", ())):
            _disc(canvas, point, 0.75 * radius, _FACE)
    return canvas


def _draw_hand(canvas: Picture, hand: Sequence[Any], radius: float) -> None:
    if not hand:
        return
    for (start, end), colour in zip(_FINGERS, _FINGER_HUES, strict=True):
        if hand[start] is not None and hand[end] is not None:
            a, b = (np.array(hand[at][:2], float) for at in (start, end))
            _blend(canvas, _bar(a, b, radius / 4), colour, 1.0)
    for point in filter(None, hand):
        _disc(canvas, point, radius, _KNUCKLE)


def draw_boxes(document: Mapping[str, Any]) -> Picture:
    """The outlines of a boxes document on black, each in its colour, small ones above: height x width x 3 RGB uint8.

    Lines lie inside their box and are 1/128 of the short side thick, at least 2 pixels.
    """
    width, height = document["width"], document["height"]
    canvas = np.zeros((height, width, 3), np.uint8)
    line = max(2, round(min(width, height) / 128))
    for each in sorted(document["boxes"], key=lambda each: -_area(each["box"])):
        sides = zip(each["box"], (width, height) * 2, strict=True)
        left, top, right, bottom = (round(min(max(side, 0), most)) for side, most in sides)
        inside = canvas[top + line : bottom - line, left + line : right - line].copy()
        canvas[top:bottom, left:right] = each["colour"]
        canvas[top + line : bottom - line, left + line : right - line] = inside
    return canvas


def check_pose(document: Any) -> None:
    """Refuse what is not a pose document.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    _check_size(document)
    for at, person in enumerate(_list(document, "people")):
        _check_points(person, "keypoints", len(KEYPOINTS), at)
        for part, count in PARTS.items():
            if part in person:
                _check_points(person, part, count, at)


def _check_points(person: Any, part: str, count: int, at: int) -> None:
    where = f"people[{at}].{part}"
    points = _list(person, part, where)
    if len(points) != count:
        raise ValueError(f"{where}: {len(points)} entries; allowed: {count}, null where none was found")
    for number, point in enumerate(points):
        if point is not None:
            _check_numbers(point, 3, f"{where}[{number}]", "[x, y, score] or null")


def check_boxes(document: Any) -> None:
    """Refuse what is not a boxes document.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    _check_size(document)
    for at, each in enumerate(_list(document, "boxes")):
        where = f"boxes[{at}]"
        label = _field(each, "label", f"{where}.label")
        if not isinstance(label, str) or not label:
            raise ValueError(f"{where}.label: {label!r}; allowed: text that is not empty")
        allowed = "[left, top, right, bottom] with left < right and top < bottom"
        box = _check_numbers(_field(each, "box", f"{where}.box"), 4, f"{where}.box", allowed)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"{where}.box: {list(box)!r}; allowed: {allowed}")
        colour = _check_numbers(_field(each, "colour", f"{where}.colour"), 3, f"{where}.colour", "[r, g, b] in 0..255")
        if not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
            raise ValueError(f"{where}.colour: {list(colour)!r}; allowed: three integers in 0..255")


def distinct_colours(count: int) -> list[list[int]]:
    """The first `count` (0..341) of a fixed list of RGB colours (0..255), in which each is as far as possible from
    black, white and all before it."""
    levels = np.linspace(0, 255, 7).round().astype(int)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    chosen = [0, len(grid) - 1]
    nearest = _distances(grid, 0)
    while len(chosen) < count + 2:
        nearest = np.minimum(nearest, _distances(grid, chosen[-1]))
        chosen.append(int(nearest.argmax()))
    return [[int(part) for part in colour] for colour in grid[chosen[2:]]]


def drawn_colours(count: int, seed: int) -> list[list[int]]:
    """`count` (0..341) different RGB colours (0..255) in random order, so that a colour says nothing about size or
    rank. They are among the first 11 of `distinct_colours`, or the first `count` if that is more. Equal seeds give
    equal colours."""
    colours = distinct_colours(max(count, _FEWEST_TO_DRAW_FROM))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(colours))
    return [colours[at] for at in order[:count]]


def _distances(colours: NDArray[np.int64], at: int) -> NDArray[np.int64]:
    """Squared distances to one of the colours; green counts most and red least, as to the eye."""
    distances: NDArray[np.int64] = ((colours - colours[at]) ** 2 * (2, 4, 3)).sum(1)
    return distances


def _ellipse(centre: NDArray[Any], half_length: NDArray[Any], radius: float) -> NDArray[np.float64]:
    """Corners of an ellipse: `half_length` is the vector of one half axis, `radius` the length of the other."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)
    long = math.hypot(*half_length)
    across = np.array([-half_length[1], half_length[0]]) * (radius / long if long else 0.0)
    corners: NDArray[np.float64] = centre + np.outer(np.cos(angles), half_length) + np.outer(np.sin(angles), across)
    return corners


def _bar(start: NDArray[Any], end: NDArray[Any], half: float) -> NDArray[np.float64]:
    """Corners of a line of twice `half` thickness."""
    along = end - start
    length = math.hypot(*along)
    across = np.array([-along[1], along[0]]) * (half / length) if length else np.array([0.0, half])
    return np.array([start + across, end + across, end - across, start - across], np.float64)


def _disc(canvas: Picture, point: Sequence[float], radius: float, colour: Sequence[int]) -> None:
    _blend(canvas, _ellipse(np.array(point[:2], float), np.array([radius, 0]), radius), colour, 1.0)


def _blend(canvas: Picture, corners: NDArray[np.float64], colour: Sequence[int], opacity: float) -> None:
    """Paint a convex polygon over the canvas, touching only the pixels around it."""
    import cv2

    most = np.array(canvas.shape[1::-1])
    left, top = np.clip(np.floor(corners.min(0)), 0, most).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)) + 1, 0, most).astype(int)
    part = canvas[top:bottom, left:right]
    if not part.size:
        return
    inside = np.zeros(part.shape[:2], np.uint8)
    fixed = np.round((corners - (left, top)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillConvexPoly(inside, fixed, 1, shift=_SUBPIXEL_BITS)
    covered = inside.astype(bool)
    part[covered] = np.round((1 - opacity) * part[covered] + opacity * np.array(colour))


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _check_size(document: Any) -> None:
    width, height = (_field(document, name, name) for name in ("width", "height"))
    for name, side in (("width", width), ("height", height)):
        if type(side) is not int or side < 1:
            raise ValueError(f"{name}: {side!r}; allowed: a whole number of pixels from 1")
    if width * height > MAX_PIXELS:
        raise ValueError(f"width x height: {width} x {height}; allowed: at most {MAX_PIXELS} pixels")


def _field(document: Any, name: str, where: str) -> Any:
    if not isinstance(document, Mapping) or name not in document:
        raise ValueError(f"{where}: missing")
    return document[name]


def _list(document: Any, name: str, where: str = "") -> list[Any]:
    found = _field(document, name, where or name)
    if not isinstance(found, list | tuple):
        raise ValueError(f"{where or name}: {found!r}; allowed: a list")
    return list(found)


def _check_numbers(found: Any, count: int, where: str, allowed: str) -> Sequence[float]:
    sequence = isinstance(found, list | tuple) and len(found) == count
    if not sequence or not all(type(part) in (int, float) and abs(part) <= _FARTHEST for part in found):
        raise ValueError(f"{where}: {found!r}; allowed: {allowed}")
    return list(found)


def layered(masks: Sequence[NDArray[np.bool_]]) -> Picture:
    """Masks of one size as a label map, H x W uint8: mask n is n + 1, smaller ones lie above larger ones."""
    labels = np.zeros(masks[0].shape, np.uint8)
    for at in sorted(range(len(masks)), key=lambda at: -int(masks[at].sum())):
        labels[masks[at]] = at + 1
    return labels
