"""`vitpose` and `sam2`: right places in the picture with networks that answer what they are told, and whole runs with
tiny random ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, params_of
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.dwpose import Dwpose
from graphbuild.annotators.sam2 import Sam2
from graphbuild.annotators.testing import check_annotator
from graphbuild.annotators.vitpose import PoseNetworks, Vitpose
from graphbuild.contracts import Item
from graphbuild.data import GridTasks
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.images.rendering import KEYPOINTS, draw_pose
from graphbuild.models.people import PeopleDetector, openpose, person_of
from graphbuild.models.sam2 import Sam2Network, masks_from_boxes
from graphbuild.store.graph import Graph
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_regions import tiny_dwpose, tiny_sam2, tiny_vitpose

SIZES = [(101, 67), (16, 16), (64, 120)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Condition]:
    """The annotators with tiny random checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {"vitpose": Vitpose(**tiny_vitpose(folder)), "sam2": Sam2(**tiny_sam2(folder))}


@pytest.fixture(scope="module")
def loaded(tiny: dict[str, Condition]) -> dict[str, Any]:
    return {name: annotator.load("cpu") for name, annotator in tiny.items()}


def photo(width: int, height: int, *, grey: bool = False) -> Pixels:
    from skimage.data import astronaut

    cut: Pixels = np.ascontiguousarray(astronaut()[60 : 60 + height, 180 : 180 + width])
    return np.repeat(cut[:, :, 1:2], 3, axis=2) if grey else cut


def request(picture: Pixels, seed: int = 7) -> Request:
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    return Request(item, {"image": Node.computed(0, "image", picture)}, 0, seed)


def annotated(annotator: Condition, model: Any, *pictures: Pixels) -> list[Derived | Skip]:
    return list(annotator.annotate([request(picture) for picture in pictures], model))  # type: ignore[arg-type]


# ---- sam2: masks at the right place --------------------------------------------------------------------------------

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


# ---- vitpose: keypoints at the right place -------------------------------------------------------------------------


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


# ---- both, with tiny networks --------------------------------------------------------------------------------------


def test_a_crowd_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a picture of 300 people that takes all memory, and against parts in another order."""
    people = [(1, 0.9, (0.1 + 0.12 * number, 0.5, 0.1, 0.4)) for number in range(7)]
    crowd = lit(640, 400, *((64 + 77 * number, 200) for number in range(7)))
    [whole] = annotated(Vitpose(), seeing(*people), crowd)
    monkeypatch.setattr("graphbuild.annotators.vitpose._AT_ONCE", 3)
    [parts] = annotated(Vitpose(), seeing(*people), crowd)
    assert isinstance(whole, Derived) and whole == parts
    assert len(whole.nodes["pose"]["people"]) == 7  # type: ignore[call-overload,index]


KIND = {"vitpose": "pose", "sam2": "segments"}


@pytest.mark.parametrize("name", KIND)
def test_a_batch_gives_the_same_as_single_pictures(
    name: str, tiny: dict[str, Condition], loaded: dict[str, Any]
) -> None:
    """Grey, tiny and odd-sized pictures; each result has the size of its picture, whatever the network works at."""
    pictures = [photo(*size) for size in SIZES] + [photo(*SIZES[0], grey=True)]
    together = annotated(tiny[name], loaded[name], *pictures)
    alone = [annotated(tiny[name], loaded[name], picture)[0] for picture in pictures]
    kind = KIND[name]
    for one, other, picture in zip(together, alone, pictures, strict=True):
        assert isinstance(one, Derived) and isinstance(other, Derived)
        first, second = (CODECS["labels" if name == "sam2" else "pose"].encode(x.nodes[kind]) for x in (one, other))
        assert (first.height, first.width) == picture.shape[:2]
        if name == "sam2":
            assert (np.asarray(one.nodes[kind]) == np.asarray(other.nodes[kind])).mean() > 0.999
        else:
            assert first.data == second.data
    for one, again in zip(together, annotated(tiny[name], loaded[name], *pictures), strict=True):
        assert isinstance(one, Derived) and isinstance(again, Derived)
        np.testing.assert_equal(one.nodes, again.nodes)


def test_the_published_form_loads_silently(
    tiny: dict[str, Condition], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """SAM 2 is published as its video model; loading a part of it must not warn every worker's user, nor draw bars."""
    from transformers.utils.logging import enable_progress_bar

    library = logging.getLogger("transformers")  # it keeps its messages from the root logger
    library.addHandler(caplog.handler)
    for annotator in tiny.values():
        enable_progress_bar()  # type: ignore[no-untyped-call]
        annotator.load("cpu")
    library.removeHandler(caplog.handler)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_works(tiny: dict[str, Condition], dtype: Any) -> None:
    """Guards against half-precision tensors that numpy cannot hold, and coordinates rounded to eight bits."""
    for annotator in tiny.values():
        changed = replace(annotator, dtype=dtype)
        [result] = annotated(changed, changed.load("cpu"), photo(101, 67))
        assert isinstance(result, Derived)


@pytest.mark.numeric
def test_masks_of_boxes_with_a_network(tiny: dict[str, Condition], loaded: dict[str, Any]) -> None:
    picture, boxes = photo(101, 67), [[5.0, 5.0, 60.0, 50.0], [0.0, 0.0, 101.0, 67.0]]
    masks = masks_from_boxes(loaded["sam2"], picture, boxes)
    assert masks.shape == (2, 67, 101) and masks.any()
    assert (masks[1:] != masks_from_boxes(loaded["sam2"], picture, boxes[1:])).mean() < 0.001


def test_the_version_is_of_what_changes_pixels(tiny: dict[str, Condition]) -> None:
    for annotator in tiny.values():
        base = params_of(annotator)
        assert params_of(replace(annotator, compile=True, resources=Resources(batch_size=2))) == base
        assert params_of(replace(annotator, dtype="bfloat16")) != base
    assert params_of(Sam2(points_per_side=16)) != params_of(Sam2(min_region_area=0.1)) != params_of(Sam2())
    assert params_of(Vitpose(person_threshold=0.4)) != params_of(Vitpose(keypoint_threshold=0.4))


def test_missing_weights_are_named_with_the_command() -> None:
    assert [line.split(":")[0] for line in Vitpose().missing()] == [
        "usyd-community/vitpose-base-simple (0.34 GB, apache-2.0)",
        "PekingU/rtdetr_r50vd_coco_o365 (0.17 GB, apache-2.0)",
    ]
    assert "graphbuild models fetch facebook/sam2.1-hiera-large" in Sam2().missing()[0]
    assert Sam2(model="someone/else").checkpoints()["model"].licence == "unknown"


def test_checkpoints_for_something_else_are_refused(tiny: dict[str, Condition], tmp_path: Path) -> None:
    from transformers import VitPoseConfig, VitPoseForPoseEstimation

    vitpose = tiny["vitpose"]
    assert isinstance(vitpose, Vitpose)
    config = VitPoseConfig.from_pretrained(vitpose.model)
    config.num_labels = 21
    VitPoseForPoseEstimation(config).save_pretrained(tmp_path / "hand")
    with pytest.raises(ValueError, match=r"model: .*hand finds 21 keypoints; allowed: COCO's 17, or the 133"):
        replace(vitpose, model=str(tmp_path / "hand")).load("cpu")


def test_a_graph_of_regions(tiny: dict[str, Condition], photos: Path, tmp_path: Path) -> None:
    """Poses are read back as numbers and as pictures, at the size of what they describe, of derived pictures too."""
    of = [replace(annotator, of="canny") for annotator in tiny.values()]
    complete(build(photos, tmp_path / "g", [Canny(), *tiny.values(), *of], limit=2))
    graph = Graph.open(tmp_path / "g")
    for kind in ("pose", "segments", "canny.pose", "canny.segments"):
        assert graph.kinds()[kind] == 2
        for item in range(2):
            node, image = graph.read(item, kind), graph.read(item, "image").array()
            assert node.array().shape == image.shape and (node.edge["height"], node.edge["width"]) == image.shape[:2]
    assert graph.read(0, "pose").values()["people"] and graph.read(0, "pose").array().any()


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


def test_vitpose_of_the_whole_body(tiny: dict[str, Condition], tmp_path: Path) -> None:
    """A checkpoint with 133 keypoints gives hands and faces, too."""
    from transformers import VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    vitpose = tiny["vitpose"]
    assert isinstance(vitpose, Vitpose)
    config = VitPoseConfig.from_pretrained(vitpose.model)
    config.num_labels = 133
    VitPoseForPoseEstimation(config).save_pretrained(tmp_path)
    VitPoseImageProcessor.from_pretrained(vitpose.model).save_pretrained(tmp_path)
    whole = replace(vitpose, model=str(tmp_path))
    [result] = annotated(whole, whole.load("cpu"), photo(101, 67))
    assert isinstance(result, Derived)
    [first, *_] = result.nodes["pose"]["people"]  # type: ignore[call-overload,index]
    assert {"keypoints", "face", "left_hand", "right_hand"} <= set(first)
    CODECS["pose"].encode(result.nodes["pose"])


def test_poses_are_cells_like_any_other(tiny: dict[str, Condition], photos: Path, tmp_path: Path) -> None:
    """Guards against a kind that is stored as numbers and cannot be drawn, cached or given to a trainer."""
    complete(build(photos, tmp_path / "g", list(tiny.values()), limit=4))
    sampler = PathSampler(Graph.open(tmp_path / "g"), on_missing="drop")
    assert {"pose-to-image", "image-to-pose", "segments-to-image"} <= {path.name for path in sampler.paths}
    samples = list(GridTasks(sampler, resolution=48, stop=40, cache_bytes=1 << 20))
    posed = [sample for sample in samples if "pose" in sample.walk.kinds]
    assert posed
    for sample in posed:
        column = sample.walk.kinds.index("pose")
        task = sampler.task(sample.walk, 48)
        node = task.rows[-1][column]
        assert node.codec == "pose" and np.array_equal(node.array(), draw_pose(node.values()))
        assert np.array_equal(sample.cell(-1, column), task.cell(-1, column))
        assert len({key for row in sample.cell_keys for key in row}) == sample.shape[0] * sample.shape[1]
