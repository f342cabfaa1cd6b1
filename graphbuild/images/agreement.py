"""How well two maps of one scene agree: edges, masks, labels, depths, normals and poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels

Flags = NDArray[np.bool_]
Array = NDArray[Any]


def canny_edges(picture: Pixels, low: float = 100.0, high: float = 200.0) -> Flags:
    """Canny edges of an H x W x 3 RGB uint8 picture with the thresholds of Graph200K: H x W."""
    import cv2

    return np.asarray(cv2.Canny(np.ascontiguousarray(picture), low, high) > 0)


def f1(found: Array, wanted: Array, where: Array | None = None) -> float:
    """F1 of the pixels that are set: 2 TP / (2 TP + FP + FN), in [0, 1].

    Args:
        found, wanted: H x W, bool, or uint8 that is set above 127.
        where: H x W; only pixels where it is true count.

    Returns:
        1 if neither has a pixel.

    Raises:
        ValueError: the shapes differ.
    """
    one, other = _flags(found, wanted, where)
    together = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / together if together else 1.0


def near_f1(found: Array, wanted: Array, reach: float, where: Array | None = None) -> float:
    """F1 of edges of which each counts as right if there is one of the other map within `reach` pixels, in [0, 1].
    Other arguments as of `f1`."""
    import cv2

    one, other = _flags(found, wanted, where)
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    shares = []
    for edges, there in ((one, other), (other, one)):
        distance = cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        shares.append(float((distance[edges] <= reach).mean()))
    return 2 * shares[0] * shares[1] / sum(shares) if any(shares) else 0.0


def correlation(found: Array, wanted: Array) -> float:
    """Pearson's correlation of two maps of one shape, in [-1, 1]: scale and offset do not matter; 0 if one is flat.

    Raises:
        ValueError: the shapes differ.
    """
    _same(found, wanted)
    one, other = (each.astype(np.float64) - each.mean() for each in (found, wanted))
    length = np.sqrt(np.square(one).sum() * np.square(other).sum())
    return float((one * other).sum() / length) if length > 0 else 0.0


def iou(found: Array, wanted: Array, where: Array | None = None) -> float:
    """Intersection over union of two masks, in [0, 1]; 1 if both are empty. Arguments as of `f1`."""
    one, other = _flags(found, wanted, where)
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def mean_iou(found: Array, wanted: Array) -> float:
    """Mean of the intersections over unions of all labels that either map has, in [0, 1].

    Args:
        found, wanted: H x W of integers.

    Raises:
        ValueError: the shapes differ.
    """
    _same(found, wanted)
    labels = np.union1d(found, wanted)
    return float(np.mean([iou(found == label, wanted == label) for label in labels]))


def colour_labels(found: Pixels, wanted: Pixels) -> tuple[Array, Array]:
    """Two drawn label maps (H x W x 3 RGB uint8) as labels H x W: the colours of `wanted`, and for each pixel of
    `found` the nearest of them. A picture that is made has no colour exactly."""
    _same(found, wanted)
    colours, labels = np.unique(wanted.reshape(-1, 3), axis=0, return_inverse=True)
    pixels = found.reshape(-1, 3).astype(np.int32)
    distances = [np.square(pixels - colour.astype(np.int32)).sum(1) for colour in colours]
    return np.argmin(distances, 0).reshape(found.shape[:2]), labels.reshape(wanted.shape[:2])


def rmse(found: Array, wanted: Array) -> float:
    """Root mean squared difference of two uint8 maps or pictures of one shape, in their levels, 0..255.

    Raises:
        ValueError: the shapes differ.
    """
    _same(found, wanted)
    return float(np.sqrt(np.square(found.astype(np.float64) - wanted.astype(np.float64)).mean()))


def angular_error(found: Pixels, wanted: Pixels) -> float:
    """Mean angle between surface normals, in degrees, 0..180.

    Args:
        found, wanted: H x W x 3 uint8; a component of -1..1 is a colour of 0..255. Each is brought to length 1.

    Raises:
        ValueError: the shapes differ.
    """
    _same(found, wanted)
    cosines = np.clip((_normals(found) * _normals(wanted)).sum(-1), -1, 1)
    return float(np.degrees(np.arccos(cosines)).mean())


def _normals(colours: Pixels) -> NDArray[np.float64]:
    vectors = colours / 127.5 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9))


def pck(found: Mapping[str, Any], wanted: Mapping[str, Any], share: float = 0.2) -> float | None:
    """Percentage of correct keypoints of all people, in [0, 1]: those that lie within `share` of the longer side of the
    person's extent from where they are wanted (Y. Yang and D. Ramanan, PAMI 2013). A person that is wanted is compared
    with the found one that has most of its keypoints right.

    Args:
        found, wanted: pose documents of pictures of one size, see `graphbuild.images.rendering`.

    Returns:
        None if no keypoint is wanted.
    """
    people = [_points(person) for person in found["people"]]
    counts = [_correct(people, _points(person), share) for person in wanted["people"]]
    total = sum(of for _, of in counts)
    return sum(right for right, _ in counts) / total if total else None


def _points(person: Mapping[str, Any]) -> NDArray[np.float64]:
    """N x 2, NaN for keypoints that were not found."""
    points: Sequence[Any] = person["keypoints"]
    return np.array([point[:2] if point else (np.nan, np.nan) for point in points], np.float64).reshape(-1, 2)


def _correct(people: Sequence[NDArray[np.float64]], wanted: NDArray[np.float64], share: float) -> tuple[int, int]:
    """How many keypoints of a person the best of `people` has right, and how many there are."""
    there = ~np.isnan(wanted[:, 0])
    if not there.any():
        return 0, 0
    reach = share * float(np.ptp(wanted[there], axis=0).max())
    distances = [np.linalg.norm(person - wanted, axis=1)[there] for person in people]
    return max((int((distance <= reach).sum()) for distance in distances), default=0), int(there.sum())


def _flags(found: Array, wanted: Array, where: Array | None) -> tuple[Flags, Flags]:
    _same(found, wanted)
    one, other = (np.asarray(each if each.dtype == bool else each > 127) for each in (found, wanted))
    return (one, other) if where is None else (one & where, other & where)


def _same(found: Array, wanted: Array) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"shapes {found.shape} and {wanted.shape}; allowed: two of one shape")
