"""Boxes and masks of objects that a vision-language model names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators import open_world
from graphbuild.annotators.base import Derived, Request, Skip, params_of
from graphbuild.annotators.open_world import OpenWorld, objects_in
from graphbuild.annotators.vlm import UnreadableAnswer
from graphbuild.contracts import Item
from graphbuild.errors import GraphError
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from graphbuild.tasks.labels import labels_of
from tests.support.annotators import build, complete
from tests.support.openai_server import ChatServer, chat_server
from tests.support.tiny_checkpoints_vlm import tiny_open_world

torch.set_num_threads(1)
SIZE = (120, 200)


@pytest.fixture(scope="session")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_open_world(tmp_path_factory.mktemp("models"))["sam2"])


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


@pytest.fixture
def whole_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of SAM 2, the whole box is the mask, so that a test knows what has to come out."""

    def masks(model: Any, shown: Pixels, boxes: Any) -> Any:
        every = np.zeros((len(boxes), *shown.shape[:2]), bool)
        for mask, (left, top, right, bottom) in zip(every, boxes, strict=True):
            mask[top:bottom, left:right] = True
        return every

    monkeypatch.setattr(open_world, "masks_from_boxes", masks)


def picture(height: int = SIZE[0], width: int = SIZE[1]) -> Pixels:
    shown = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 90, width))[:, :, None] * np.array([1, 0.5, 0.2])
    shown[height // 4 : height // 2, width // 4 : width // 2] = (30, 200, 90)
    return shown.astype(np.uint8)


def annotator(server: ChatServer, sam2: str, *, coordinates: Any = "pixels", **options: Any) -> OpenWorld:
    use: dict[str, Any] = {"server": server.url, "server_version": "1", "model": server.model, **options}
    return OpenWorld(**use, sam2=sam2, coordinates=coordinates)


def run(annotator: OpenWorld, *pictures: Pixels) -> list[Any]:
    item = Item(0, "id", "key", None, None, None, None, None)
    requests = [Request(item, {"image": Node.computed(0, "image", shown)}, 0, 1) for shown in pictures]
    return list(annotator.annotate(requests, annotator.load("cpu")))


def said(server: ChatServer, *objects: Any) -> None:
    server.order("", f"say:{json.dumps(objects)}")


def boxes_of(result: Any) -> list[tuple[str, list[int]]]:
    assert isinstance(result, Derived), result
    document: Any = result.nodes["boxes"]
    return [(each["label"], each["box"]) for each in document["boxes"]]


# ---- coordinates -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole_boxes")
@pytest.mark.parametrize("coordinates", ["pixels", "thousandths"])
def test_boxes_are_in_pixels_of_the_picture(server: ChatServer, sam2: str, coordinates: Any) -> None:
    """Guards against boxes in pixels of what the model was shown, and swapped axes: the server's small box lies on the
    patch, whatever size it sees."""
    shown = [picture(), picture(1500, 700), picture(67, 101)]
    results = run(annotator(server, sam2, coordinates=coordinates, max_side=560), *shown)
    for result, (height, width) in zip(results, (each.shape[:2] for each in shown), strict=True):
        (_, large), (label, small) = boxes_of(result)
        assert label == "button" and small == pytest.approx([width / 4, height / 4, width / 2, height / 2], abs=3)
        assert large == pytest.approx([width / 8, height / 8, width * 7 / 8, height * 7 / 8], abs=3)
    assert all(("0 to 1000" in str(body)) == (coordinates == "thousandths") for body in server.asked)


FAMILIES = {
    "Qwen/Qwen2-VL-7B-Instruct": "thousandths",
    "Qwen/Qwen2.5-VL-7B-Instruct": "pixels",
    "qwen2.5vl:32b": "pixels",
    "Qwen/Qwen3-VL-8B-Instruct": "thousandths",
    "someone/qwen3-vl-30b-a3b-awq": "thousandths",
}


@pytest.mark.parametrize(("model", "counts"), FAMILIES.items())
def test_a_family_counts_as_it_was_taught(sam2: str, model: str, counts: str) -> None:
    """Guards against boxes at a tenth of their place because the next generation counts otherwise."""
    use = {"server": "http://a/v1", "server_version": "1", "sam2": sam2, "model": model}
    versions = {OpenWorld(**use, **said).identity() for said in ({}, {"coordinates": counts})}
    assert len(versions) == 1 and str(versions.pop()).endswith(f" coordinates:{counts}")
    other = "pixels" if counts == "thousandths" else "thousandths"
    assert OpenWorld(**use, coordinates=other).identity() not in versions


@pytest.mark.parametrize("model", ["tests/tiny-vlm", "OpenGVLab/InternVL3-8B", "Qwen/Qwen3.5-9B", "qwen2-vlm"])
def test_other_families_have_to_say_how_they_count(sam2: str, model: str) -> None:
    """Guards against boxes that lie anywhere."""
    with pytest.raises(
        ValueError, match=r"coordinates: nothing tells how '.*' counts .*; say pixels, .* or thousandths"
    ):
        OpenWorld(server="http://a/v1", server_version="1", sam2=sam2, model=model)


def test_weights_in_a_folder_say_their_family(tmp_path: Path) -> None:
    """Guards against a folder's name that is believed: a Qwen3-VL counts in thousandths wherever it lies."""
    use = tiny_open_world(tmp_path / "models")
    assert str(OpenWorld(**use).identity()).endswith(" coordinates:pixels")
    config = Path(use["model"]) / "config.json"
    for family, counts in (("qwen3_vl", "thousandths"), ("llava", None)):
        config.write_text(json.dumps({"model_type": family}))
        if counts is not None:
            assert str(OpenWorld(**use).identity()).endswith(f" coordinates:{counts}")
            continue
        with pytest.raises(GraphError, match="coordinates: nothing tells how"):
            OpenWorld(**use).identity()
        assert str(OpenWorld(**use, coordinates="pixels").identity()).endswith(" coordinates:pixels")


@pytest.mark.usefixtures("whole_boxes")
def test_whole_objects_of_an_answer_that_is_cut_off_count(server: ChatServer, sam2: str) -> None:
    """Guards against a picture of many objects that has none, and the beginning of one taken for no objects."""
    server.order(
        "", f"cut:[{json.dumps(GOOD)}, {json.dumps({**GOOD, 'label': 'dog'})}, {{'bbox", 'cut:[{"bbox_2d": [1, 2'
    )
    use = annotator(server, sam2)
    assert [label for label, _ in boxes_of(run(use, picture())[0])] == ["cat", "dog"]
    assert run(use, picture()) == [Skip("length")] and len(server.asked) == 2


@pytest.mark.usefixtures("whole_boxes")
def test_one_object_a_line(server: ChatServer, sam2: str) -> None:
    """Guards against all objects but one that are lost."""
    lines = "\n".join(json.dumps({**GOOD, "label": label}) for label in ("cat", "dog", "fox"))
    server.order("", f"say:<think>[]</think>{lines}")
    assert [label for label, _ in boxes_of(run(annotator(server, sam2), picture())[0])] == ["cat", "dog", "fox"]


@pytest.mark.usefixtures("whole_boxes")
def test_boxes_end_at_the_edge_of_the_picture(server: ChatServer, sam2: str) -> None:
    """Guards against boxes that SAM 2 or a drawing cannot take, and the same object many times, as models loop."""
    said(
        server,
        {"bbox_2d": [-50, 400, 1200.5, 2000], "label": " floor "},
        {"bbox_2d": [100, 100, 100, 500], "label": "thin"},
        {"bbox_2d": [600, 500, 300, 900], "label": "turned"},
        {"bbox_2d": [1100, 0, 1300, 900], "label": "outside"},
        *[{"bbox_2d": [0, 0, 500, 500], "label": "cat"}] * 3,
    )
    (result,) = run(annotator(server, sam2, coordinates="thousandths"), picture())
    assert boxes_of(result) == [("floor", [0, 48, 200, 120]), ("cat", [0, 0, 100, 60])]


@pytest.mark.usefixtures("whole_boxes")
def test_at_most_so_many_objects(server: ChatServer, sam2: str) -> None:
    said(server, *[{"bbox_2d": [at, at, 500 + at, 500 + at], "label": f"thing {at}"} for at in range(30)])
    (result,) = run(annotator(server, sam2, coordinates="thousandths", max_objects=4), picture())
    assert [label for label, _ in boxes_of(result)] == [f"thing {at}" for at in range(4)]
    assert server.tries("at most 4") == 1
    for wrong in (0, 256):
        with pytest.raises(ValueError, match="max_objects"):
            OpenWorld(max_objects=wrong)


# ---- forms of an answer ------------------------------------------------------------------------------------------

GOOD = {"bbox_2d": [1, 2, 30, 40], "label": "cat"}


@pytest.mark.parametrize(
    "answer",
    [
        [GOOD],
        {"objects": [GOOD]},
        GOOD,
        [{"bbox": [1, 2, 30, 40], "name": "cat"}],
        [{"box": ["1", 2.0, 30, 40], "label": "cat", "score": 0.5}],
    ],
)
def test_common_forms_are_read(answer: Any) -> None:
    (found,) = objects_in(answer)
    assert (found.label, found.box) == ("cat", (1, 2, 30, 40))


@pytest.mark.parametrize(
    "answer",
    [
        ["cat"],
        [{"label": "cat"}],
        [{**GOOD, "bbox_2d": [1, 2, 3]}],
        [{**GOOD, "bbox_2d": [1, 2, 3, None]}],
        [{**GOOD, "bbox_2d": [1, 2, 3, float("nan")]}],
        [{**GOOD, "label": " "}],
        [GOOD, {"label": "dog"}],
        "cat",
        {"error": "no"},
    ],
)
def test_other_forms_are_errors(answer: Any) -> None:
    """Guards against an object silently left out, after which the mask is wrong and nobody knows."""
    with pytest.raises(ValueError, match=r"^[\w. ]*: "):
        objects_in(answer)


def test_a_malformed_answer_costs_one_row(server: ChatServer, sam2: str) -> None:
    server.order("", 'say:[{"bbox_2d": [1, 2', "say:There is a cat.")
    results = run(annotator(server, sam2, in_flight=1), picture())
    assert isinstance(results[0], UnreadableAnswer) and len(server.asked) == 2


@pytest.mark.parametrize("answer", ["[]", '{"objects": []}', json.dumps([{**GOOD, "bbox_2d": [5, 5, 5, 5]}])])
def test_no_objects(server: ChatServer, sam2: str, answer: str) -> None:
    server.order("", f"say:{answer}")
    assert run(annotator(server, sam2), picture()) == [Skip("no_objects")] and len(server.asked) == 1


# ---- both nodes --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole_boxes")
def test_boxes_and_mask_show_the_same_objects(server: ChatServer, sam2: str) -> None:
    """Guards against colours that differ between the two, and a large object drawn over a small one."""
    said(server, {**GOOD, "bbox_2d": [250, 250, 500, 500]}, {"bbox_2d": [0, 0, 1000, 1000], "label": "wall"})
    (result,) = run(annotator(server, sam2, coordinates="thousandths"), picture())
    document: Any = result.nodes["boxes"]
    colours = {each["label"]: tuple(each["colour"]) for each in document["boxes"]}
    assert (document["width"], document["height"]) == SIZE[::-1] and len(set(colours.values())) == 2
    encoded = CODECS["labels"].encode(result.nodes["mask"])
    mask = Node(0, "mask", 0, "v0", encoded.data, encoded.format, "labels", result.attrs)
    assert dict(labels_of(mask)) == colours
    assert tuple(mask.array()[45, 75]) == colours["cat"] and tuple(mask.array()[10, 10]) == colours["wall"]
    assert result.score == 1.0


@pytest.mark.usefixtures("whole_boxes")
def test_an_object_without_a_mask_is_in_neither(server: ChatServer, sam2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from_boxes = open_world.masks_from_boxes
    monkeypatch.setattr(
        open_world, "masks_from_boxes", lambda *args: from_boxes(*args) & (np.arange(2) == 1)[:, None, None]
    )
    (result,) = run(annotator(server, sam2), picture())
    assert [label for label, _ in boxes_of(result)] == ["button"] == result.attrs["labels"][1:]
    assert result.attrs["palette"][0] == [0, 0, 0]


def test_a_picture_that_sam_2_fails_on_is_not_asked_about_again(
    server: ChatServer, sam2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a batch that is paid for again because a GPU was full for one of its pictures."""
    masks_from_boxes = open_world.masks_from_boxes

    def masks(model: Any, shown: Pixels, boxes: Any) -> Any:
        if shown.shape[0] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return masks_from_boxes(model, shown, boxes)

    monkeypatch.setattr(open_world, "masks_from_boxes", masks)
    good, bad = run(annotator(server, sam2), picture(), picture(64, 64))
    assert isinstance(good, Derived) and isinstance(bad, torch.OutOfMemoryError) and len(server.asked) == 2


def test_pictures_of_all_sizes(server: ChatServer, sam2: str) -> None:
    """Guards against a mask in the size of the network, with SAM 2 itself."""
    shapes = ((16, 16), (101, 67), (80, 300))
    results = run(annotator(server, sam2), *(picture(*shape) for shape in shapes))
    for result, shape in zip(results, shapes, strict=True):
        assert isinstance(result, Derived) and result.nodes["mask"].shape == shape  # type: ignore[union-attr]
        CODECS["boxes"].encode(result.nodes["boxes"])


def test_the_version_knows_both_models(sam2: str) -> None:
    """Guards against masks that are kept when SAM 2 was exchanged."""
    one = OpenWorld(server="http://a/v1", server_version="1", sam2=sam2, model="qwen2.5-vl")
    identity = one.identity()
    assert identity is not None and "@server:1 files:" in identity and set(one.checkpoints()) == {"sam2"}
    assert set(OpenWorld().checkpoints()) == {"model", "sam2"} and len(OpenWorld().missing()) == 2
    changes: list[dict[str, Any]] = [{"sam2_dtype": "float16"}, {"max_objects": 3}]
    assert all(params_of(OpenWorld(**change)) != params_of(OpenWorld()) for change in changes)
    assert 0 < one.resources.memory_gb < OpenWorld().resources.memory_gb


def test_a_graph_of_boxes_and_masks(tmp_path: Path, photos: Path, server: ChatServer, sam2: str) -> None:
    """Guards against what only the framework checks: codecs, attributes, and colours read back."""
    complete(build(photos, tmp_path / "g", [annotator(server, sam2)], limit=3))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds()["boxes"] == graph.kinds()["mask"] == 3
    for item_ix in range(3):
        boxes, mask, image = (graph.read(item_ix, kind) for kind in ("boxes", "mask", "image"))
        assert boxes.array().shape == mask.array().shape == image.array().shape
        assert set(labels_of(mask)) <= set(labels_of(boxes)) != set()


def test_both_models_in_this_process(tmp_path: Path, photos: Path) -> None:
    use = OpenWorld(**tiny_open_world(tmp_path / "models"))
    report = complete(build(photos, tmp_path / "g", [use], limit=4))
    assert report.annotators["open_world"].ok == 8
