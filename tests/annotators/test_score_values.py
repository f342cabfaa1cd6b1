"""What each score asks for and gives, a request at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Derived, Each, Request, Skip, makes_of, needs_of
from graphbuild.annotators.caption_match import CaptionMatch
from graphbuild.annotators.cycle import Cycle
from graphbuild.annotators.likeness import Likeness
from graphbuild.annotators.marigold_normals import normal_colours
from graphbuild.annotators.normal_depth import NormalDepth
from graphbuild.annotators.pair_quality import PairQuality
from graphbuild.annotators.picture_classes import Aesthetic, Safe
from graphbuild.contracts import Item
from graphbuild.errors import GraphError
from graphbuild.images.node import Node
from tests.annotators.test_scores import SIDE, Picture, scene
from tests.support.tiny_networks import save_classifier, save_clip, save_dino


def asked(inputs: Mapping[str, Any], **facts: Any) -> Request:
    item = Item(0, "0" * 32, "", *(facts.get(name) for name in Item._fields[3:]))
    nodes = {
        name: value if isinstance(value, Node) else Node.computed(0, name, value) for name, value in inputs.items()
    }
    return Request(item, nodes, 0, 0)


def value(annotator: Any, request: Request, model: Any = None) -> float:
    (made,) = annotator.annotate([request], model)
    assert isinstance(made, Derived) and made.score is not None
    assert made.nodes["score"]["value"] == pytest.approx(made.score, abs=1e-6)  # type: ignore[index, call-overload]
    return made.score


def test_names_of_scores_say_what_they_are_of() -> None:
    assert makes_of(Cycle(of="edit_global", kind="canny"))["score"].name == "edit_global.score.cycle_canny"
    assert needs_of(Cycle(of="edit_global", kind="canny")) == {
        "canny": "canny", "edit_global.canny": Each("edit_global.canny"), "judged": Each("edit_global"),
    }  # fmt: skip
    assert needs_of(CaptionMatch(of="edit_local", text="edit_text"))["edit_text"] == Each("edit_text")
    assert needs_of(Likeness(of="style_content", to="style_reference"))["style_reference"] == Each("style_reference")
    assert isinstance(resolve("cycle", {"kind": "pose"}), Cycle)


@pytest.mark.parametrize(
    ("normal", "near"), [((0, 1, 0.3), "bottom"), ((0, -1, 0.3), "top"), ((-1, 0, 0.3), "right"), ((1, 0, 0.3), "left")]
)
def test_a_floor_faces_up_and_a_wall_on_the_right_to_the_left(normal: tuple[float, float, float], near: str) -> None:
    """Guards against a sign that agrees with itself alone: x is right, y up, z to the viewer."""
    ramp = np.repeat(np.linspace(0, 255, SIDE)[:, None], SIDE, 1)
    turned = {"bottom": ramp, "top": ramp[::-1], "right": ramp.T, "left": ramp.T[:, ::-1]}
    facing = normal_colours(np.broadcast_to(np.array(normal), (SIDE, SIDE, 3)))
    found = {
        side: value(NormalDepth(), asked({"judged": facing, "depth": _png8(depth.astype(np.uint8))}))
        for side, depth in turned.items()
    }
    assert found.pop(near) > 0.99 and max(found.values()) < 0.6
    flat = asked({"judged": facing, "depth": _png8(np.full((SIDE, SIDE), 7, np.uint8))})
    assert NormalDepth().annotate([flat], None) == [Skip("flat")]


def _png8(values: Picture) -> Node:
    return Node(0, "depth", 0, "v0", cv2.imencode(".png", values)[1].tobytes(), "png", "png8")


def test_the_quality_of_pairs_is_the_lowest_grade() -> None:
    grades = {"compositeStructure": 5, "objectConsistency": 3, "imageQuality": 4}
    assert value(PairQuality(), asked({}, meta=json.dumps({"quality_assessment": grades}))) == pytest.approx(0.6)
    nothing = [asked({}, meta=meta) for meta in (None, "{}", json.dumps({"quality_assessment": {"imageQuality": 5}}))]
    assert PairQuality().annotate(nothing, None) == [Skip("no_assessment")] * 3


def test_words_and_pictures_are_compared_by_clip(tmp_path: Path) -> None:
    annotator = CaptionMatch(model=str(save_clip(tmp_path / "clip")))
    assert annotator.missing() == []
    clip = annotator.load("cpu")
    text = Node(0, "caption", 0, "v0", b"a disc", "text", "text")
    found = value(annotator, asked({"judged": scene(0)[0], "caption": text}), clip)
    wanted = 2.5 * float(clip.picture(scene(0)[0]) @ clip.words("a disc"))
    assert found == pytest.approx(min(1, max(0, wanted)))


def test_pictures_are_compared_by_dino(tmp_path: Path) -> None:
    annotator = Likeness(model=str(save_dino(tmp_path / "dino")))
    dino = annotator.load("cpu")
    one, other = scene(0)[0], 255 - scene(1)[0]
    assert value(annotator, asked({"judged": one, "image": one}), dino) == pytest.approx(1)
    assert value(annotator, asked({"judged": other, "image": one}), dino) < 0.9999


def test_classifiers_give_the_probability_of_their_class(tmp_path: Path) -> None:
    model = str(save_classifier(tmp_path / "classes", ("normal", "nsfw")))
    (safe, unsafe) = Safe(model=model), Safe(model=model, label="nsfw")
    request = asked({"judged": scene(0)[0]})
    found = value(safe, request, safe.load("cpu")), value(unsafe, request, unsafe.load("cpu"))
    assert sum(found) == pytest.approx(1, abs=1e-5) and 0 < found[0] < 1
    with pytest.raises(GraphError, match=r"label: 'aesthetic'; allowed for .*: normal, nsfw"):
        Aesthetic(model=model).load("cpu")
    assert "graphbuild models fetch cafeai/cafe_aesthetic" in Aesthetic().missing()[0]
    assert Aesthetic().checkpoints()["model"].licence == "agpl-3.0" != Safe(model=model).checkpoints()["model"].licence


@pytest.mark.parametrize("kind", ["canny", "hed", "normal", "foreground_mask", "semantic", "pose"])
def test_equal_maps_agree_and_others_do_not(kind: str) -> None:
    annotator = Cycle(kind=kind)  # type: ignore[arg-type]
    one, other = (_map(kind, number) for number in (0, 1))
    again = f"style_semantic.{kind}"
    assert value(annotator, asked({kind: one, again: one})) == pytest.approx(1)
    assert value(annotator, asked({kind: one, again: other})) < 0.8


def _map(kind: str, number: int) -> Node:
    from graphbuild.images.codecs import codec_of
    from graphbuild.kinds.registry import KINDS

    picture, disc, square = scene(number)
    values: dict[str, Any] = {
        "canny": cv2.Canny(picture, 100, 200),
        "hed": picture[:, :, 0],
        "normal": picture,
        "foreground_mask": np.where(disc, 255, 0).astype(np.uint8),
        "semantic": np.where(disc, 1, np.where(square, 2, 0)).astype(np.uint8),
        "pose": {
            "width": SIDE,
            "height": SIDE,
            "people": [{"keypoints": [[10 + 60 * number, 9, 1], [20, 30, 1]] + [None] * 16}],
        },
    }
    codec = str(KINDS[kind].codec)
    encoded = codec_of(codec).encode(values[kind])
    attrs = {"palette": [[0, 0, 0], [255, 0, 0], [0, 255, 0]]}
    return Node(0, kind, 0, "v0", encoded.data, encoded.format, codec, attrs)
