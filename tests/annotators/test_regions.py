"""`vitpose` and `sam2` with tiny random networks: batches, precision, versions, checkpoints and whole graphs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, params_of
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.sam2 import Sam2
from graphbuild.annotators.vitpose import Vitpose
from graphbuild.contracts import Item
from graphbuild.data import GridTasks
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.images.rendering import draw_pose
from graphbuild.models.sam2 import masks_from_boxes
from graphbuild.store.graph import Graph
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_regions import tiny_sam2, tiny_vitpose

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(101, 67), (16, 16), (64, 120)]


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
