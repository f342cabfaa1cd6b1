"""Whether what was generated from an annotation has that annotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Derived, Each, Request, Score, each, scored
from graphbuild.images import agreement
from graphbuild.images.node import Node

Kind = Literal["depth", "canny", "hed", "lineart", "lines", "scribble", "normal", "pose", "foreground_mask", "semantic"]
_REACH = 0.01  # of the longer side


@dataclass(frozen=True, kw_only=True)
class Cycle(Score):
    """Agreement of a map of the picture with the same map of what was made from it, such as of `depth` with
    `style_semantic.depth`: a styled picture of another scene has a low one. The score is called after the kind:
    `cycle_depth`.

    Depths and soft edges: their correlation. Binary edges: F1 within 1 % of the longer side. Normals: 1 - angle / 90
    degrees. Masks and classes: intersection over union. Poses: the share of correct keypoints.

    Args:
        kind: the map. The graph needs it of both pictures: `depth_anything`, and again with `of: style_semantic`.
    """

    of: str = "style_semantic"
    kind: Kind = "depth"

    def reads(self) -> tuple[str | Each, ...]:
        return self.kind, each(f"{self.of}.{self.kind}")

    @property
    def called(self) -> str:
        return f"cycle_{self.kind}"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        again = f"{self.of}.{self.kind}"
        return [scored(_MEASURES[self.kind](r.inputs[again], r.inputs[self.kind])) for r in batch]


def _correlated(found: Node, wanted: Node) -> float:
    values: NDArray[np.uint8] = wanted.values()
    return agreement.correlation(_at_size(found.values(), values), values)


def _edges(found: Node, wanted: Node) -> float:
    values: NDArray[np.uint8] = wanted.values()
    reach = max(1.0, _REACH * max(values.shape))
    return agreement.near_f1(_at_size(found.values(), values, exact=True), values, reach)


def _normals(found: Node, wanted: Node) -> float:
    picture = wanted.array()
    return 1 - agreement.angular_error(_at_size(found.array(), picture), picture) / 90


def _masks(found: Node, wanted: Node) -> float:
    values: NDArray[np.uint8] = wanted.values()
    return agreement.iou(_at_size(found.values(), values, exact=True), values)


def _classes(found: Node, wanted: Node) -> float:
    """Of the colours, as numbers of classes are those of a palette."""
    picture = wanted.array()
    return agreement.mean_iou(*(_packed(each) for each in (_at_size(found.array(), picture, exact=True), picture)))


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return found


def _poses(found: Node, wanted: Node) -> float:
    there, asked = found.values(), wanted.values()
    scale = asked["width"] / there["width"], asked["height"] / there["height"]
    people = [
        {"keypoints": [at and [at[0] * scale[0], at[1] * scale[1]] for at in person["keypoints"]]}
        for person in there["people"]
    ]
    value = agreement.pck({"people": people}, asked)
    return float(not people) if value is None else value


def _at_size(found: Any, like: Any, *, exact: bool = False) -> Any:
    import cv2

    if found.shape[:2] == like.shape[:2]:
        return found
    how = cv2.INTER_NEAREST if exact else cv2.INTER_AREA
    return cv2.resize(found, like.shape[1::-1], interpolation=how)


_MEASURES: Mapping[str, Callable[[Node, Node], float]] = {
    **dict.fromkeys(("depth", "hed", "lineart"), _correlated),
    **dict.fromkeys(("canny", "lines", "scribble"), _edges),
    "normal": _normals,
    "pose": _poses,
    "foreground_mask": _masks,
    "semantic": _classes,
}
assert set(_MEASURES) == set(get_args(Kind))
