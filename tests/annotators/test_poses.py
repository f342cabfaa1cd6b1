"""`vitpose` and `dwpose`: keypoints at the right place in the picture, with networks that see what they are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators.base import Derived, Skip
from graphbuild.annotators.dwpose import Dwpose
from graphbuild.annotators.testing import check_annotator
from graphbuild.annotators.vitpose import PoseNetworks, Vitpose
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import KEYPOINTS
from graphbuild.models.people import PeopleDetector, openpose, person_of
from tests.annotators.test_regions import annotated, photo
from tests.support.tiny_checkpoints_regions import tiny_dwpose

pytestmark = pytest.mark.usefixtures("one_thread")


class Detecting:
    """Finds the same in every picture: class number, score, and box as centre and size in shares of the picture."""

    def __init__(self, *found: tuple[int, float, tuple[float, float, float, float]]) -> None:
        self.found = found

    def __call__(self, pixels: torch.Tensor) -> SimpleNamespace:
        logits = torch.full((len(pixels), max(1, len(self.found)), 2), -20.0)
        boxes = torch.full((len(pixels), max(1, len(self.found)), 4), 0.5)
        for at, (number, score, box) in enumerate(self.found):
            logits[:, at, number] = torch.logit(torch.tensor(score))
            boxes[:, at] = torch.tensor(box)
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


class Brightest:
    """Heat maps of a quarter of the crop that are its brightness: every keypoint is where the picture is bright."""

    config = SimpleNamespace(backbone_config=SimpleNamespace(num_experts=1), num_labels=17)

    def __call__(self, pixels: torch.Tensor) -> SimpleNamespace:
        light = pixels.mean(1, keepdim=True)
        light = torch.nn.functional.interpolate(light, (64, 48), mode="bilinear", align_corners=True)
        low, high = light.amin((2, 3), keepdim=True), light.amax((2, 3), keepdim=True)
        return SimpleNamespace(heatmaps=((light - low) / (high - low) * 0.9).expand(-1, 17, -1, -1))


def seeing(*found: tuple[int, float, tuple[float, float, float, float]]) -> PoseNetworks:
    from transformers import RTDetrImageProcessor, VitPoseImageProcessor

    people = PeopleDetector(Detecting(*found), RTDetrImageProcessor(), 1, "cpu")
    return PoseNetworks(people, Brightest(), VitPoseImageProcessor(), "cpu")


def lit(width: int, height: int, *spots: tuple[int, int]) -> Pixels:
    """Black with soft bright spots."""
    rows, columns = np.mgrid[:height, :width]
    light = sum(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 72) for x, y in spots)
    return np.repeat(np.asarray(light).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def test_keypoints_come_back_to_where_they_are_in_the_picture() -> None:
    """Guards against boxes given as corners where sizes are meant, swapped axes, and one person's points on another."""
    left, right = (1, 0.9, (0.25, 0.4, 0.2, 0.5)), (1, 0.7, (0.75, 0.6, 0.3, 0.6))
    dog, unsure = (0, 0.95, (0.5, 0.5, 1.0, 1.0)), (1, 0.4, (0.5, 0.5, 1.0, 1.0))
    [result] = annotated(Vitpose(), seeing(left, right, dog, unsure), lit(640, 400, (150, 130), (500, 290)))
    assert isinstance(result, Derived)
    document: Any = result.nodes["pose"]
    assert (document["width"], document["height"], len(document["people"])) == (640, 400, 2)
    for person, spot in zip(document["people"], [(150, 130), (500, 290)], strict=True):
        points = np.array(person["keypoints"])
        assert points.shape == (18, 3) and np.abs(points[:, :2] - spot).max() < 1
        assert points[:, 2] == pytest.approx(0.9, abs=0.02)
    assert result.score == pytest.approx(0.9, abs=0.02)


def test_nobody_is_a_skip() -> None:
    picture = lit(64, 64, (30, 30))
    assert annotated(Vitpose(), seeing(), picture) == [Skip("no_person")]
    assert annotated(Vitpose(), seeing((0, 0.9, (0.5, 0.5, 1, 1))), picture) == [Skip("no_person")], "a dog"
    somebody = seeing((1, 0.9, (0.5, 0.5, 1, 1)))
    assert annotated(Vitpose(keypoint_threshold=0.95), somebody, picture) == [Skip("no_person")]
    assert isinstance(annotated(Vitpose(), somebody, picture)[0], Derived)


def test_openpose_has_a_neck_only_between_two_shoulders() -> None:
    """Sides are the person's own: COCO's 6 is the right shoulder, OpenPose's 2."""
    coco = np.array([[number, 20.0 + number, 0.9] for number in range(17)])
    named = dict(zip(KEYPOINTS, openpose(coco, 100, 100, 0.5), strict=True))
    order = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"]
    order += ["right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee"]
    assert [named[name] for name in [*order, "left_ankle", "right_ankle"]] == coco.tolist()
    assert named["neck"] == [5.5, 25.5, 0.9]
    coco[5, 2], coco[0, :2], coco[1, 2] = 0.4, (-3, 20), 1.01
    named = dict(zip(KEYPOINTS, openpose(coco, 100, 100, 0.5), strict=True))
    assert named["neck"] is named["left_shoulder"] is named["nose"] is None and named["right_shoulder"] is not None
    assert named["left_eye"] == [1.0, 21.0, 1.0], "a heat map's peak may be a little above 1"


def test_a_crowd_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a picture of 300 people that takes all memory, and against parts in another order."""
    people = [(1, 0.9, (0.1 + 0.12 * number, 0.5, 0.1, 0.4)) for number in range(7)]
    crowd = lit(640, 400, *((64 + 77 * number, 200) for number in range(7)))
    [whole] = annotated(Vitpose(), seeing(*people), crowd)
    monkeypatch.setattr("graphbuild.annotators.vitpose._AT_ONCE", 3)
    [parts] = annotated(Vitpose(), seeing(*people), crowd)
    assert isinstance(whole, Derived) and whole == parts
    assert len(whole.nodes["pose"]["people"]) == 7  # type: ignore[call-overload,index]


# ---- hands and faces -------------------------------------------------------------------------------------------------


def test_a_person_has_hands_and_face_where_they_were_found() -> None:
    """Guards against parts cut from the wrong keypoints: COCO-WholeBody has feet, face, left hand, right hand."""
    points = np.array([[float(number), 50.0, 0.9] for number in range(133)])
    person = person_of(points, 200, 100, 0.3)
    assert {name: len(part) for name, part in person.items()} == {
        "keypoints": 18, "feet": 6, "face": 68, "left_hand": 21, "right_hand": 21
    }  # fmt: skip
    firsts = [person[name][0] for name in ("keypoints", "feet", "face", "left_hand", "right_hand")]
    assert [point and point[0] for point in firsts] == [0, 17, 23, 91, 112]
    points[112:, 2] = 0.1
    points[91, 2] = 0.1
    without = person_of(points, 200, 100, 0.3)
    assert "right_hand" not in without and without["left_hand"][0] is None
    assert set(person_of(points[:17], 200, 100, 0.3)) == {"keypoints"}


def test_dwpose_finds_points_where_they_are(tmp_path: Path) -> None:
    """The network marks the brightest place of its cut-out. Guards against swapped axes, half pixels taken for whole
    ones, a cut-out stretched to the network's shape, and one person's points on another."""
    dwpose = Dwpose(**tiny_dwpose(tmp_path))
    model = dwpose.load("cpu")
    left, right = (1, 0.9, (0.25, 0.4, 0.2, 0.5)), (1, 0.7, (0.75, 0.6, 0.3, 0.6))
    model = replace(model, people=seeing(left, right, (0, 0.95, (0.5, 0.5, 1.0, 1.0))).people)
    [result] = annotated(dwpose, model, lit(640, 400, (150, 130), (500, 290)))
    assert isinstance(result, Derived)
    document: Any = result.nodes["pose"]
    assert len(document["people"]) == 2
    for person, spot in zip(document["people"], [(150, 130), (500, 290)], strict=True):
        for part, count in {"keypoints": 18, "feet": 6, "face": 68, "left_hand": 21, "right_hand": 21}.items():
            points = np.array(person[part])
            assert points.shape == (count, 3) and np.abs(points[:, :2] - spot).max() < 1.5
    nobody = replace(model, people=seeing().people)
    assert annotated(dwpose, nobody, lit(64, 64, (30, 30))) == [Skip("no_person")]


def test_dwpose_is_a_checkpoint_like_others(tmp_path: Path) -> None:
    """Guards against an ONNX file that is not looked for, and one of another network that is taken."""
    dwpose = Dwpose(**tiny_dwpose(tmp_path))
    assert dwpose.missing() == [] and "files:" in str(dwpose.identity())
    assert "graphbuild models fetch yzd-v/DWPose" in Dwpose().missing()[0] and "apache-2.0" in Dwpose().missing()[0]
    Path(dwpose.model, "dw-ll_ucoco_384.onnx").rename(tmp_path / "other.onnx")
    assert "dw-ll_ucoco_384.onnx" in dwpose.missing()[0]
    check_annotator(replace(dwpose, model=str(tmp_path / "other.onnx")), [photo(96, 64), photo(67, 101)])
