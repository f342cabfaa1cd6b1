"""Pictures with another main object or another background: on tiny random weights, so what is checked is what reaches
the network, what comes back, and what stays as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Derived, Request, Skip, parameter, params_of
from graphbuild.annotators.depth_edit import DepthEdit
from graphbuild.annotators.fill_edit import FillEdit, fading, laid_over, region
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.kinds.registry import kind_of
from graphbuild.models.diffusion import drawing_size
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_diffusion import tiny_depth_edit, tiny_fill_edit

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


def node(kind: str, value: Any) -> Node:
    codec = kind_of(kind).codec
    assert codec is not None
    encoded = CODECS[codec].encode(value)
    return Node(0, kind, 0, "v0", encoded.data, encoded.format, codec, encoded.attrs)


def request(values: Mapping[str, Any], seed: int = 1, variant: int = 0) -> Request:
    item = Item(0, "id", "key", None, None, None, None, None)
    return Request(item, {kind: node(kind, value) for kind, value in values.items()}, variant, seed)


def photo(photos: Path, number: int, shape: tuple[int, int] = (101, 67)) -> Pixels:
    picture = cv2.imread(str(sorted(photos.iterdir())[number]), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(picture, shape[::-1])  # type: ignore[return-value]


def disc(shape: tuple[int, int]) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    height, width = shape
    inside: NDArray[np.bool_] = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(shape) / 4) ** 2
    return inside


def to_fill(picture: Pixels, text: str = "A dog on a sofa.", mask: NDArray[Any] | None = None) -> dict[str, Any]:
    mask = disc(picture.shape[:2]) if mask is None else mask
    # As losslessly as the file it stands for: another JPEG would not have the same pixels.
    return {"image": cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes(), "foreground_mask": mask, "edit_text": text}


def to_redraw(picture: Pixels, text: str = "A cat at the sea.", depth: Pixels | None = None) -> dict[str, Any]:
    depth = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if depth is None else depth
    return {"image": picture, "depth": depth, "background_text": text}


def made(annotator: Annotator, model: Any, *requests: Request) -> list[Pixels]:
    results = annotator.annotate(requests, model)
    assert len(results) == len(requests) and all(isinstance(result, Derived) for result in results)
    return [np.asarray(next(iter(result.nodes.values()))) for result in results]  # type: ignore[union-attr]


def differ(one: Pixels, other: Pixels) -> bool:
    return not np.array_equal(one, other)


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> tuple[FillEdit, Any]:
    annotator = FillEdit(**tiny_fill_edit(tmp_path_factory.mktemp("fill")))
    return annotator, annotator.load("cpu")


@pytest.fixture(scope="module")
def redraw(tmp_path_factory: pytest.TempPathFactory) -> tuple[DepthEdit, Any]:
    annotator = DepthEdit(**tiny_depth_edit(tmp_path_factory.mktemp("redraw")))
    return annotator, annotator.load("cpu")


# ---- another main object ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(101, 67), (16, 16), (60, 300), (700, 500)])
@pytest.mark.parametrize("grow", [0, 4])
def test_outside_the_mask_nothing_changes(
    fill: tuple[FillEdit, Any], photos: Path, shape: tuple[int, int], grow: int
) -> None:
    """Guards against a background that went through the network, or was resized, or faded."""
    annotator, model = replace(fill[0], grow=grow), fill[1]
    picture, mask = photo(photos, 0, shape), disc(shape)
    (result,) = annotator.annotate([request(to_fill(picture))], model)
    assert isinstance(result, Derived) and result.attrs
    edited = node("edit_local", result.nodes["edit_local"]).array()
    reach = grow * max(shape) / max(drawing_size(picture, annotator.resolution))
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = distance >= reach + 1
    assert outside.any() and np.array_equal(edited[outside], picture[outside])
    assert (edited[mask] != picture[mask]).mean() > 0.8
    assert result.attrs == {"share": pytest.approx(1 - outside.mean())}


def cross() -> NDArray[np.bool_]:
    mask = np.zeros((120, 160), bool)
    mask[20:80, 70:90] = mask[40:50, 50:110] = True
    return mask


@pytest.mark.parametrize("shape", ["hull", "box"])
def test_a_wider_shape_is_filled(fill: tuple[FillEdit, Any], photos: Path, shape: Any) -> None:
    """Guards against an edit that must keep the old object's outline, and against one that takes the whole picture."""
    picture, mask = photo(photos, 0, (120, 160)), cross()
    (edited,) = made(replace(fill[0], shape=shape, grow=0), fill[1], request(to_fill(picture, mask=mask)))
    changed = (edited != picture).any(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 79, 50, 109)
    assert region(mask, shape, 0)[changed].all() and changed[mask].mean() > 0.9
    corner, beside = changed[20:30, 50:55].mean(), changed[33:40, 64:70].mean()  # outside of the hull, and inside
    assert beside > 0.9 and (corner > 0.9 if shape == "box" else corner == 0)


def test_shadows_go_with_their_object() -> None:
    """Guards against the shadow of a thing that is gone: what is around the foot is filled, the head stays tight."""
    mask = cross()
    wide = region(mask, "mask", 0.5)
    assert wide[mask].all() and np.array_equal(wide[:45], mask[:45])
    assert wide[75, 70 - 28] and wide[75, 90 + 28] and wide[79 + 13, 80] and not wide[79 + 17, 80]
    assert not wide[75, 70 - 34] and np.array_equal(region(mask, "mask", 0), mask)
    dot = np.arange(3200).reshape(40, 80) == 1000
    assert all(region(dot, shape, shadow)[dot].all() for shape in ("mask", "hull", "box") for shadow in (0.1, 2.0))


def test_the_first_shape_is_no_new_version() -> None:
    """Guards against edits that are paid for again because there are more shapes now."""
    assert not {"shape", "shadow"} & set(params_of(FillEdit()))
    assert {"shape", "shadow"} <= set(params_of(FillEdit(shape="box", shadow=0.3)))


def test_a_filling_follows_text_seed_mask_and_surroundings(fill: tuple[FillEdit, Any], photos: Path) -> None:
    """Guards against an input that does not reach the network, noise that depends on what ran before, and a batch that
    differs from single requests."""
    annotator, model = fill
    picture, mask = photo(photos, 0), disc((101, 67))
    dimmed = np.where(mask[:, :, None], picture, picture // 2)
    (expected,) = made(annotator, model, request(to_fill(picture)))
    torch.rand(3)
    changed = [
        request(to_fill(picture, "A red car.")),
        request(to_fill(picture), seed=2),
        request(to_fill(dimmed)),
        request(to_fill(picture, mask=np.roll(mask, 9, 0))),
    ]
    *others, again = made(annotator, model, *changed, request(to_fill(picture)))
    assert not differ(again, expected)
    assert all(differ(other[mask], expected[mask]) for other in others)
    assert not differ(made(annotator, model, changed[2])[0], others[2])


def test_what_was_there_does_not_show_through(fill: tuple[FillEdit, Any], photos: Path) -> None:
    """Guards against a hole the network sees the old object through: pixels under the mask must not matter."""
    annotator, model = fill
    picture, mask = photo(photos, 0, (64, 64)), disc((64, 64))
    emptied = np.where(mask[:, :, None], np.uint8(0), picture)
    seen: list[Any] = []
    transformer = model.transformer.forward
    model.transformer.forward = lambda **inputs: seen.append(inputs["hidden_states"]) or transformer(**inputs)
    try:
        made(annotator, model, request(to_fill(picture)), request(to_fill(emptied)))
    finally:
        del model.transformer.forward
    assert len(seen) == 4 and torch.equal(seen[0], seen[2])  # two steps each: the first starts from noise alone


def test_nothing_to_fill_and_nothing_to_keep(fill: tuple[FillEdit, Any], photos: Path) -> None:
    """Guards against an edit that is the picture itself, or has no background."""
    annotator, model = fill
    picture = photo(photos, 0, (40, 40))
    almost = np.ones((40, 40), bool)
    almost[0, :3] = False
    masks = [np.zeros((40, 40), bool), np.ones((40, 40), bool), almost, disc((40, 40))]
    results = annotator.annotate([request(to_fill(picture, mask=mask)) for mask in masks], model)
    empty, full = Skip("no_foreground"), Skip("all_foreground")
    assert results[:3] == [empty, full, full] and isinstance(results[3], Derived)


def test_a_filling_fades_into_its_surroundings() -> None:
    """Guards against a hard rim, and against the old object seen through the new one."""
    mask = np.zeros((9, 21), bool)
    mask[:, :5] = True
    row = fading(mask, 3.0)[4]
    assert row[:9] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]) and not row[9:].any()
    assert set(np.unique(fading(mask, 0.0))) == {0, 1}
    picture, filled = np.full((9, 21, 3), 40, np.uint8), np.full((9, 21, 3), 240, np.uint8)
    assert laid_over(picture, filled, fading(mask, 3.0))[4, :9, 0].tolist() == [240] * 5 + [190, 140, 90, 40]
    assert picture.max() == 40


@dataclass(frozen=True, kw_only=True)
class Subjects(Annotator):
    """Texts that put something else into the picture."""

    makes: ClassVar[tuple[str, ...]] = ("edit_text",)
    variants: int = parameter(2, output=False)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"edit_text": ["A red car.", "Two white mice."][one.variant]}) for one in batch]


@dataclass(frozen=True, kw_only=True)
class Middle(Annotator):
    """A disc for a main object, half as wide as the picture is."""

    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"foreground_mask": disc(one.inputs["image"].array().shape[:2])}) for one in batch]


def test_local_edits_in_a_graph(photos: Path, tmp_path: Path, fill: tuple[FillEdit, Any]) -> None:
    """Guards against a lossy codec, and against one edit for all texts."""
    folder = tmp_path / "two"
    folder.mkdir()
    for file in sorted(photos.iterdir())[:2]:
        (folder / file.name).write_bytes(file.read_bytes())
    complete(build(folder, tmp_path / "g", [Middle(), Subjects(), fill[0]]))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds()["edit_local"] == 4
    for edge in graph.edges(kind="edit_local").to_pylist():
        assert edge["format"] == "png"
        assert {p["kind"]: p["variant"] for p in edge["parents"]}["edit_text"] == edge["variant"]
        image, mask = graph.read(edge["item_ix"], "image").array(), graph.read(edge["item_ix"], "foreground_mask")
        edited = graph.read(edge["item_ix"], "edit_local", variant=edge["variant"]).array()
        reach = fill[0].grow * max(image.shape[:2]) / max(drawing_size(image, fill[0].resolution))
        outside = fading(mask.values() > 0, reach) == 0
        assert np.array_equal(edited[outside], image[outside]) and differ(edited, image)
    assert differ(*(graph.read(0, "edit_local", variant=variant).array() for variant in (0, 1)))


# ---- another background -------------------------------------------------------------------------------------------


def test_a_redrawing_follows_text_look_depth_and_seed(redraw: tuple[DepthEdit, Any], photos: Path) -> None:
    """Guards against an input that does not reach the network, noise that depends on what ran before, and a batch that
    differs from single requests."""
    annotator, model = redraw
    picture = photo(photos, 0)
    depth = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    (expected,) = made(annotator, model, request(to_redraw(picture)))
    assert expected.shape == picture.shape and expected.std() > 5
    torch.rand(3)
    changed = [
        request(to_redraw(picture, "A cat on the moon.")),
        request(to_redraw(photo(photos, 2), depth=depth)),
        request(to_redraw(picture, depth=255 - depth)),
        request(to_redraw(picture), seed=2),
    ]
    *others, again = made(annotator, model, *changed, request(to_redraw(picture)))
    assert not differ(again, expected) and all(differ(other, expected) for other in others)
    assert not differ(made(annotator, model, changed[1])[0], others[1])


@pytest.mark.parametrize("shape", [(16, 16), (5, 300), (700, 500)])
def test_any_size_and_precision(redraw: tuple[DepthEdit, Any], photos: Path, shape: tuple[int, int]) -> None:
    """Guards against sides that latents cannot have, results at the size of the network, and parts of the pipelines
    that stay behind in another precision."""
    annotator = replace(redraw[0], dtype="bfloat16")
    grey = np.repeat(photo(photos, 4, shape)[:, :, :1], 3, axis=2)
    assert made(annotator, annotator.load("cpu"), request(to_redraw(grey)))[0].shape == (*shape, 3)


def test_words_and_look_are_joined_as_diffusers_joins_them(redraw: tuple[DepthEdit, Any], photos: Path) -> None:
    """Guards against embeddings the transformer was not made for."""
    from diffusers import FluxPriorReduxPipeline
    from PIL import Image

    model, look = replace(redraw[1], tokens=4), photo(photos, 1)
    encoders = {name: model.control.components[name] for name in ("text_encoder", "text_encoder_2")}
    tokenizers = {name: model.control.components[name] for name in ("tokenizer", "tokenizer_2")}
    given = {name: part for name, part in model.prior.components.items() if part is not None}
    expected = FluxPriorReduxPipeline(**given, **encoders, **tokenizers)(Image.fromarray(look), "A cat at the sea.")
    with torch.inference_mode():
        embedded, pooled = model.embedded(look, "A cat at the sea.")
        fewer, _ = redraw[1].embedded(look, "A cat at the sea.")
    assert torch.equal(embedded, expected.prompt_embeds) and torch.equal(pooled, expected.pooled_prompt_embeds)
    assert fewer.shape == (1, 512 + 4, 16)


# ---- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 512), (480, 640), (640, 480), (33, 1000), (1, 20_000), (3000, 2000)])
def test_the_size_to_draw_at(shape: tuple[int, int]) -> None:
    """Guards against sides that latents cannot have, stretched pictures, and memory that grows with the picture."""
    height, width = drawing_size(np.zeros((*shape, 3), np.uint8), 1024)
    assert height % 16 == width % 16 == 0 and height * width <= 1.05 * 1024**2 and max(height, width) <= 2048
    if max(shape) <= 4 * min(shape):
        assert height * width >= 0.95 * 1024**2
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.03)


def test_precision_and_models_of_the_version(fill: tuple[FillEdit, Any], redraw: tuple[DepthEdit, Any]) -> None:
    """Guards against a new version for another folder of the same weights, and none for other pixels."""
    own: list[tuple[Annotator, dict[str, Any]]] = [(fill[0], {"grow": 5}), (redraw[0], {"tokens": 3})]
    for annotator, change in own:
        assert not {"model", "redux"} & set(params_of(annotator))
        for changed in ({"dtype": "float16"}, {"steps": 3}, {"guidance": 1.0}, {"resolution": 128}, change):
            assert params_of(replace(annotator, **changed)) != params_of(annotator)
        assert annotator.missing() == []
        assert (annotator.identity() or "").count("files:") == len(annotator.checkpoints())
