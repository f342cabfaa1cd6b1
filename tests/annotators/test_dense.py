"""Annotators that give every pixel a value: depth, normals, classes, foreground."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Skip, params_of
from graphbuild.annotators.birefnet import Birefnet
from graphbuild.annotators.depth_anything import DepthAnything, DepthNetwork, near_is_bright
from graphbuild.annotators.marigold_normals import MarigoldNormals, normal_colours
from graphbuild.annotators.oneformer import ADE20K, Oneformer, SemanticNetwork
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.models.resizing import in_stacks, map_at, picture_at, working_size
from graphbuild.store.graph import Graph
from graphbuild.tasks.labels import labels_of
from tests.support.annotators import Styles, build, complete
from tests.support.tiny_checkpoints_dense import (
    CLASSES,
    tiny_birefnet,
    tiny_depth_anything,
    tiny_marigold_normals,
    tiny_oneformer,
    tiny_segformer,
)

KINDS = {
    "depth_anything": "depth",
    "marigold_normals": "normal",
    "oneformer": "semantic",
    "birefnet": "foreground_mask",
}
TABLE, FIGURE, STREET, VASE = (
    f"data-{name}"
    for name in ("00004-of-00022-7170", "00005-of-00022-4396", "00017-of-00022-8377", "00018-of-00022-4948")
)
CUT_OUTS = [
    *(f"rembg_{name}" for name in ("animal-1", "car-1", "car-2", "car-3", "girl-2", "plants-1")),
    *(f"carvekit_{number}" for number in (1, 2, 3)),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The annotators with tiny random checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "depth_anything": DepthAnything(**tiny_depth_anything(folder)),
        "marigold_normals": MarigoldNormals(**tiny_marigold_normals(folder)),
        "oneformer": Oneformer(**tiny_oneformer(folder)),
        "segformer": Oneformer(**tiny_segformer(folder)),
        "birefnet": Birefnet(**tiny_birefnet(folder)),
    }


def photo(height: int, width: int) -> Pixels:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[60 : 60 + height, 150 : 150 + width])


def request(picture: Pixels, seed: int = 7) -> Request:
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    return Request(item, {"image": Node.computed(0, "image", picture)}, 0, seed)


def made(annotator: Condition, model: Any, *pictures: Pixels) -> list[Any]:
    """What it makes of each picture, all in one batch: an array, or the reason of a skip."""
    results = annotator.annotate([request(picture) for picture in pictures], model)
    return [one.reason if isinstance(one, Skip) else next(iter(one.nodes.values())) for one in results]


def bright_left(height: int, width: int) -> Pixels:
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[:, : width // 2] = 220
    return picture


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "segformer"])
def test_keeps_the_contract(name: str, tiny: dict[str, Any]) -> None:
    """Guards against a map of another size than the picture's, a picture whose result depends on the batch it is in,
    and randomness that is not the seed's; on grey, odd and tiny pictures."""
    check_annotator(tiny[name], tolerance=1)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_one_pixel_high(name: str, tiny: dict[str, Any]) -> None:
    """Guards against a working size of 0, which the libraries' own resizing arrives at and refuses."""
    line = np.random.default_rng(0).integers(0, 256, (1, 2000, 3), np.uint8)
    (made_of_line,) = made(tiny[name], tiny[name].load("cpu"), line)
    assert made_of_line.shape[:2] == (1, 2000)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_that_has_the_size_already(name: str, tiny: dict[str, Any]) -> None:
    """Guards against torch's warning about read-only memory, which the pictures of a graph are."""
    side = tiny[name].resolution
    picture = photo(side, side)
    picture.flags.writeable = False
    (result,) = made(tiny[name], tiny[name].load("cpu"), picture)
    assert result.shape[:2] == (side, side)


@pytest.mark.numeric
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_about_the_same(name: str, tiny: dict[str, Any]) -> None:
    """Guards against inputs left in float32, and against a dtype that is stored but not used."""
    whole = tiny[name]
    half = replace(whole, dtype="bfloat16")
    one, other = (made(each, each.load("cpu"), photo(96, 128))[0].astype(int) for each in (whole, half))
    assert (one != other).any() or name in ("oneformer", "birefnet")  # which have few values
    assert np.mean(np.abs(one - other) > 0.1 * one.max()) < 0.1


@pytest.mark.parametrize("name", KINDS)
def test_version(name: str, tiny: dict[str, Any]) -> None:
    """Guards against a rebuilt graph after a change of batch size, and against one that is not rebuilt after a change
    of what changes pixels."""
    annotator = tiny[name]
    same = replace(annotator, resources=Resources(batch_size=2), model="elsewhere")
    same = replace(same, compile=True) if name == "depth_anything" else same
    same = replace(same, trust_remote_code=False) if name == "birefnet" else same
    assert params_of(same) == params_of(annotator)
    changes: dict[str, Any] = {"dtype": "bfloat16", "resolution": 128, "of": "edit_local"}
    changes |= {"marigold_normals": {"steps": 3}, "birefnet": {"threshold": 0.4}}.get(name, {})
    for field, value in changes.items():
        assert params_of(replace(annotator, **{field: value})) != params_of(annotator), field


@pytest.mark.parametrize(
    ("annotator", "words"),
    [
        (DepthAnything(), "depth-anything/Depth-Anything-V2-Large-hf (1.3 GB, cc-by-nc-4.0): graphbuild models fetch"),
        (MarigoldNormals(), "prs-eth/marigold-normals-v1-1 (5.2 GB, openrail++): graphbuild models fetch"),
        (Oneformer(), "shi-labs/oneformer_ade20k_swin_large@"),
        (Birefnet(), "ZhengPeng7/BiRefNet (0.4 GB, mit): graphbuild models fetch"),
    ],
)
def test_missing_weights(annotator: Condition, words: str) -> None:
    """Guards against an annotator that finds out on its worker that its weights are not there."""
    assert any(line.startswith(words) for line in annotator.missing()), annotator.missing()


def test_in_a_graph(tiny: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """Guards against values that their codecs refuse, label maps without a palette for every label, and conditions of
    another kind (`of`) that describe the wrong picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("p00.jpg", "p01.png", "p04.jpg"):
        shutil.copy(photos / name, folder)
    dense = [tiny[name] for name in KINDS]
    of_styles = replace(tiny["depth_anything"], of="style_content")
    complete(build(folder, tmp_path / "graph", [*dense, Styles(), of_styles]))
    graph = Graph.open(str(tmp_path / "graph"))
    for kind in KINDS.values():
        for item in range(3):
            node, picture = graph.read(item, kind), graph.read(item, "image").array()
            assert node.array().shape == picture.shape, kind
    semantic = graph.read(0, "semantic")
    legend = labels_of(semantic)
    shown = {tuple(colour) for colour in semantic.array().reshape(-1, 3).tolist()}
    assert shown == {colour for _, colour in legend}
    assert {name for name, _ in legend} <= {"wall", "building", "sky", "floor", "tree", "person"}
    depths = [graph.read(0, "style_content.depth", variant).values() for variant in range(3)]
    alone = made(tiny["depth_anything"], tiny["depth_anything"].load("cpu"), graph.read(0, "style_content", 2).array())
    assert np.abs(depths[2].astype(int) - alone[0]).max() <= 1 and not np.array_equal(depths[0], depths[2])


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "size"),
    [((512, 512), (518, 518)), ((1080, 1920), (518, 924)), ((16, 16), (518, 518)), ((1, 20_000), (14, 2072))],
)
def test_working_size(picture: tuple[int, int], size: tuple[int, int]) -> None:
    """Guards against swapped sides, and against panoramas whose long side no GPU can hold."""
    for turned in (slice(None), slice(None, None, -1)):
        flat = np.empty(picture[turned], np.uint8)
        assert working_size(flat, short=518, long=2072, multiple=14) == size[turned]


def test_stacks_keep_the_order() -> None:
    """Guards against results that change places where pictures of two shapes alternate."""
    inputs = [torch.full((2 + number % 2, 3), float(number)) for number in range(5)]
    calls: list[list[int]] = []

    def run(stack: torch.Tensor, places: list[int]) -> Sequence[float]:
        calls.append(places)
        return [float(one.mean()) for one in stack]

    assert in_stacks(inputs, run) == [0, 1, 2, 3, 4] and calls == [[0, 2, 4], [1, 3]]


def test_not_finite_is_an_error() -> None:
    """Guards against a grey or torn map stored where float16 overflowed."""
    values = np.ones((4, 4), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        map_at(values, (8, 8))


# ---- depth_anything --------------------------------------------------------------------------------------------------


def test_near_is_bright_by_true_depth() -> None:
    """Guards against an inverted depth: on a stereo pair with measured disparity, brighter is nearer."""
    from skimage.data import stereo_motorcycle

    disparity = stereo_motorcycle()[2]
    seen = np.isfinite(disparity)
    grey = near_is_bright(np.where(seen, disparity, disparity[seen].min()).astype(np.float32))[seen]
    metres = 0.193001 * 994.978 / (disparity[seen] + 31.086)  # baseline, focal length and offset of the pair
    in_order = grey[np.argsort(metres, kind="stable")].astype(int)
    assert (np.diff(in_order) <= 0).all() and (in_order[0], in_order[-1]) == (255, 0)
    assert len(np.unique(grey)) == 256


@pytest.mark.data
@pytest.mark.parametrize("case", [TABLE, STREET, VASE])
def test_depth_is_the_convention_of_graph200k(case: str, data_folder: Callable[[str], Path]) -> None:
    """Guards against another polarity than the dataset's: on a floor or table the picture's bottom is nearest."""
    file = data_folder("reference") / f"vc_{case}" / f"{case}_depth-anything-v2_Large.jpg"
    theirs = np.asarray(Image.open(file).convert("L"))[320:].astype(float)
    inverse_depth = np.repeat(np.linspace(0.2, 1, 192, dtype=np.float32)[:, None], 512, 1)  # of a plane below the eye
    assert np.corrcoef(near_is_bright(inverse_depth).mean(1), theirs.mean(1))[0, 1] > 0.95


def depth_of_brightness() -> DepthNetwork:
    """Sees bright as near: 3 and 1 where the test's pictures are bright and dark."""

    def network(pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(predicted_depth=1.0 + 2.0 * (pixel_values.mean(1) > 0))

    from transformers import DPTImageProcessor

    return DepthNetwork(network, DPTImageProcessor(), 14, "cpu")


@pytest.mark.parametrize("size", [(101, 67), (600, 900), (16, 16)])
def test_depth_lies_where_it_belongs(size: tuple[int, int]) -> None:
    """Guards against height and width swapped on the way back, an inverted map and attrs that do not undo it."""
    annotator = DepthAnything(model="unused", resolution=56)
    (result,) = annotator.annotate([request(bright_left(*size))], depth_of_brightness())
    depth, half = result.nodes["depth"], size[1] // 2
    assert (depth[:, : half - size[1] // 20 - 1] == 255).all() and (depth[:, half + size[1] // 20 + 1 :] == 0).all()
    assert result.attrs == pytest.approx({"minimum": 1.0, "maximum": 3.0})


def test_constant_depth_is_black() -> None:
    """Guards against a division by zero, and against rounding errors stretched to a picture."""
    flat = np.full((8, 8), 7, np.float32)
    assert not near_is_bright(flat).any()
    flat[3, 3] = np.nextafter(np.float32(7), np.float32(8))
    assert not near_is_bright(flat).any() and not near_is_bright(np.zeros((2, 2), np.float32)).any()


def test_metric_depth_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Guards against a graph of inverted depth maps from a checkpoint fine-tuned to metres, and against other networks
    whose depth means something else."""
    metric = Path(shutil.copytree(tiny["depth_anything"].model, tmp_path / "metric"))
    config = json.loads((metric / "config.json").read_text())
    (metric / "config.json").write_text(json.dumps({**config, "depth_estimation_type": "metric", "max_depth": 20}))
    (line,) = DepthAnything(model=str(metric)).missing()
    assert "metric" in line and str(metric) in line
    with pytest.raises(ValueError, match="metric depth"):
        DepthAnything(model=str(metric)).load("cpu")
    (line,) = DepthAnything(model=tiny["segformer"].model).missing()
    assert "is of type segformer" in line and "depth_anything" in line


# ---- marigold_normals ------------------------------------------------------------------------------------------------

AXES = {"viewer": (0, 0, 1), "up": (0, 1, 0), "down": (0, -1, 0), "left": (-1, 0, 0), "right": (1, 0, 0)}
"""Directions that surfaces face: x right, y up, z to the viewer."""


def colour_of(normal: Sequence[float]) -> NDArray[np.int_]:
    return normal_colours(np.array([[normal]], np.float64))[0, 0].astype(int)


@pytest.mark.data
@pytest.mark.parametrize(
    ("case", "region", "faces"),
    [
        (TABLE, (slice(420, 500), slice(60, 400)), "up"),
        (STREET, (slice(440, 500), slice(20, 480)), "up"),
        (FIGURE, (slice(100, 300), slice(400, 500)), "viewer"),
        (STREET, (slice(60, 120), slice(480, 505)), "left"),
        (VASE, (slice(283, 288), slice(234, 242)), "left"),
        (VASE, (slice(283, 288), slice(296, 306)), "right"),
    ],
    ids=["table", "street", "background", "house on the right", "left side of a vase", "right side of a vase"],
)
def test_normals_are_coloured_as_in_graph200k(
    case: str, region: tuple[slice, slice], faces: str, data_folder: Callable[[str], Path]
) -> None:
    """Guards against swapped or flipped axes: what faces up, left, right and the viewer has the dataset's colours."""
    file = data_folder("reference") / f"vc_{case}" / f"{case}_dsine-normal-map.jpg"
    theirs = np.asarray(Image.open(file).convert("RGB"))[region].reshape(-1, 3).mean(0)
    distance = {name: float(np.linalg.norm(colour_of(axis) - theirs)) for name, axis in AXES.items()}
    nearest, second = sorted(distance, key=distance.__getitem__)[:2]
    assert nearest == faces and distance[nearest] < 0.7 * distance[second]


def test_colours_of_known_geometry() -> None:
    """Guards against a rounding that moves flat surfaces, and axes mixed up on a sphere, in a room of five sides."""
    colours = {name: colour_of(axis).tolist() for name, axis in AXES.items()}
    assert colours == {
        "viewer": [255, 128, 128],
        "up": [128, 255, 128],
        "down": [128, 0, 128],
        "left": [128, 128, 255],
        "right": [128, 128, 0],
    }
    y, x = np.mgrid[0.95:-0.95:39j, -0.95:0.95:39j]  # the picture's first row is the top of the sphere
    inside = x**2 + y**2 < 0.9
    z = np.sqrt(np.where(inside, 1 - x**2 - y**2, 0))
    red, green, blue = np.moveaxis(normal_colours(np.stack([x, y, z], 2)).astype(int), 2, 0)
    assert red[19, 19] == 255 and red[19, 2] < 200 and red[2, 19] < 200
    assert green[2, 19] > 230 and green[36, 19] < 25 and blue[19, 2] > 230 and blue[19, 36] < 25


def test_normals_of_any_length() -> None:
    """Guards against washed-out colours where interpolation shortened normals, and a division by zero."""
    normals = np.array([[[0, 0.2, 0], [0, 3, 0], [0, 0, 0]]], np.float32)
    assert normal_colours(normals)[0].tolist() == [[128, 255, 128], [128, 255, 128], [128, 128, 128]]


def test_the_library_gives_normals_in_that_frame() -> None:
    """Guards against a release of diffusers with another frame than x right, y up, z to the viewer."""
    from diffusers.pipelines.marigold import MarigoldImageProcessor

    normals = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    documented = MarigoldImageProcessor.visualize_normals.__doc__ or ""
    assert [word in documented for word in ("direction is right", "direction is top", "facing the observer")] == [
        True
    ] * 3
    x, y, z = np.moveaxis(np.asarray(MarigoldImageProcessor.visualize_normals(normals)[0]).astype(int), 2, 0)
    assert np.abs(np.stack([z, y, 255 - x], 2) - normal_colours(normals)).max() <= 1


@pytest.mark.numeric
def test_noise_is_the_seed_s(tiny: dict[str, Any]) -> None:
    """Guards against noise that depends on the place in a batch: each picture's is its own request's."""
    annotator, picture = tiny["marigold_normals"], photo(64, 64)
    pipeline = annotator.load("cpu")
    batch = [request(picture, seed) for seed in (5, 6, 5)]
    five, six, again = (one.nodes["normal"] for one in annotator.annotate(batch, pipeline))
    assert np.abs(five.astype(int) - again).max() <= 1 and (np.abs(five.astype(int) - six) > 20).mean() > 0.1
    (alone,) = annotator.annotate(batch[1:2], pipeline)
    assert np.abs(alone.nodes["normal"].astype(int) - six).max() <= 1


def test_normals_lie_where_they_belong() -> None:
    """Guards against height and width swapped on the way to the pipeline or back, and pictures of another range."""
    seen: list[tuple[float, float]] = []

    def pipeline(pixels: torch.Tensor, **options: Any) -> SimpleNamespace:
        seen.append((float(pixels.min()), float(pixels.max())))
        bright = (pixels.mean(1) > 0.5).numpy()[..., None]
        return SimpleNamespace(prediction=np.where(bright, [0, 1, 0], [1, 0, 0]).astype(np.float32))

    pipeline.vae_scale_factor = 8
    (normal,) = made(MarigoldNormals(model="unused", resolution=64), pipeline, bright_left(101, 67))
    assert (normal[:, :28] == (128, 255, 128)).all() and (normal[:, 40:] == (128, 128, 0)).all()
    assert seen == [(pytest.approx(40 / 255, abs=0.02), pytest.approx(220 / 255, abs=0.02))]


# ---- oneformer -------------------------------------------------------------------------------------------------------


def class_of_brightness(names: Sequence[str], palette: Sequence[Sequence[int]]) -> SemanticNetwork:
    """Gives bright pixels the class 3 and dark ones 1."""
    from transformers import SegformerImageProcessor

    def network(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        brightness = pixel_values.mean(1)
        never = torch.full_like(brightness, -99)
        return Answer(logits=torch.stack([never, -brightness, never, brightness], 1))

    class Answer(dict[str, torch.Tensor]):
        def __getattr__(self, name: str) -> torch.Tensor:
            return self[name]

    return SemanticNetwork(network, SegformerImageProcessor(), {}, names, palette, "cpu")


@pytest.mark.parametrize("size", [(101, 67), (300, 500), (16, 16)])
def test_labels_lie_where_they_belong(size: tuple[int, int]) -> None:
    """Guards against shifted or blended labels (a pixel between classes 1 and 3 is not of class 2), and attrs that do
    not list exactly what is shown."""
    annotator = Oneformer(model="unused", resolution=64)
    model = class_of_brightness(
        ["a", "dark", "c", "bright", "e"], [[9, 9, 9], [1, 2, 3], [9, 9, 9], [4, 5, 6], [7, 7, 7]]
    )
    (result,) = annotator.annotate([request(bright_left(*size))], model)
    labels, half, blur = result.nodes["semantic"], size[1] // 2, size[1] // 20 + 1
    assert labels.shape == size and set(np.unique(labels)) == {1, 3}
    assert (labels[:, : half - blur] == 3).all() and (labels[:, half + blur :] == 1).all()
    assert result.attrs == {
        "labels": ["", "dark", "", "bright"],
        "palette": [[0, 0, 0], [1, 2, 3], [0, 0, 0], [4, 5, 6]],
    }


def test_large_pictures_need_no_more_memory(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against 150 scores for each of a hundred million pixels: scores stay at the working size."""
    model = tiny["segformer"].load("cpu")
    asked: list[Any] = []
    process = model.processor.post_process_semantic_segmentation

    def spy(output: Any, target_sizes: Any) -> Any:
        asked.extend(target_sizes)
        return process(output, target_sizes=target_sizes)

    monkeypatch.setattr(type(model.processor), "post_process_semantic_segmentation", lambda self, *a, **k: spy(*a, **k))
    shapes = [one.shape for one in made(tiny["segformer"], model, photo(300, 360), photo(20, 24))]
    assert asked == [(64, 64), (20, 24)]
    assert shapes == [(300, 360), (20, 24)]


def test_classes_are_the_checkpoint_s(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Guards against names shifted by one, all synonyms in an instruction, ADE20K's colours on other classes, and more
    classes than a label can hold."""
    own, ade = tiny["oneformer"].load("cpu"), tiny["segformer"].load("cpu")
    assert own.names == ["wall", "building", "sky", "floor", "tree", "person"] and len(CLASSES) == len(own.palette)
    assert ade.palette[:3] == [[120, 120, 120], [180, 120, 120], [6, 230, 230]] and own.palette[0] != ade.palette[0]
    many = Path(shutil.copytree(tiny["segformer"].model, tmp_path / "many"))
    config = json.loads((many / "config.json").read_text())
    config["id2label"] = {str(number): f"c{number}" for number in range(300)}
    (many / "config.json").write_text(json.dumps({**config, "label2id": {}}))
    with pytest.raises(ValueError, match="300 classes"):
        Oneformer(model=str(many)).load("cpu")


def test_ade20k_colours() -> None:
    """Guards against a mistyped table: 150 colours, one shared by road and skyscraper as everywhere."""
    colours = [tuple(ADE20K[start : start + 3]) for start in range(0, len(ADE20K), 3)]
    assert len(colours) == 150 and len(set(colours)) == 149 and colours[6] == colours[48]
    assert colours[12] == (150, 5, 61) and colours[149] == (92, 0, 255)  # person, flag


# ---- birefnet --------------------------------------------------------------------------------------------------------


def answering(logits: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A network like BiRefNet: a list of maps, of which only the last counts."""
    return SimpleNamespace(network=lambda pixels: [torch.full((1, 1), 9.0), logits(pixels)], device="cpu")


@pytest.mark.data
@pytest.mark.parametrize("case", CUT_OUTS)
def test_masks_match_cut_outs(case: str, data_folder: Callable[[str], Path]) -> None:
    """Guards against an inverted, shifted or stretched mask: what others cut out, brought to the network's square and
    back, is white."""
    (file,) = (path for path in (data_folder("reference") / case).glob("*.png") if path.stem[-4:] in (".out", "oved"))
    cut_out = np.asarray(Image.open(file).convert("RGBA"))
    opaque = cut_out[:, :, 3]
    square = picture_at(np.repeat(opaque[:, :, None], 3, 2), (1024, 1024))[:, :, 0] / 255
    logits = torch.logit(torch.tensor(square, dtype=torch.float32), eps=1e-4)[None, None]
    (result,) = Birefnet(model="unused").annotate([request(cut_out[:, :, :3])], answering(lambda pixels: logits))
    assert isinstance(result, Derived)
    mask, truth = result.nodes["foreground_mask"], opaque >= 128
    assert mask.shape == truth.shape and result.score == pytest.approx(mask.mean())
    assert (mask & truth).sum() / (mask | truth).sum() > (0.98 if truth.mean() > 0.02 else 0.9)


def test_threshold_and_no_foreground() -> None:
    """Guards against a threshold that is not used, and an empty mask offered as a condition."""
    model = answering(lambda pixels: torch.full((len(pixels), 1, 32, 32), 0.3))  # probability 0.57
    for threshold, expected in ((0.5, 1.0), (0.6, "no_foreground")):
        (mask,) = made(Birefnet(model="unused", resolution=32, threshold=threshold), model, photo(40, 50))
        assert (mask if isinstance(mask, str) else mask.mean()) == expected


def test_pixels_are_normalised() -> None:
    """Guards against other colours than the network was trained on: ImageNet's mean grey is 0."""
    seen: list[torch.Tensor] = []
    model = answering(lambda pixels: seen.append(pixels) or pixels[:, :1])
    grey = np.tile(np.array([124, 116, 104], np.uint8), (40, 50, 1))
    made(Birefnet(model="unused", resolution=32), model, grey)
    assert seen[0].shape == (1, 3, 32, 32) and seen[0].abs().max() < 0.02


def test_code_runs_only_when_asked(tiny: dict[str, Any]) -> None:
    """Guards against code of a checkpoint that runs unasked, and a refusal that comes on the workers."""
    distrusted = replace(tiny["birefnet"], trust_remote_code=False)
    (line,) = distrusted.missing()
    assert distrusted.model in line and "trust_remote_code: true" in line
    with pytest.raises(ValueError, match="trust_remote_code: true"):
        distrusted.load("cpu")
    assert tiny["birefnet"].missing() == []
    assert type(tiny["birefnet"].load("cpu").network).__name__ == "BiRefNet"
    assert len(Birefnet().missing()) == 2 and len(Birefnet(trust_remote_code=True).missing()) == 1


def test_weights_of_other_code_are_an_error(tmp_path: Path) -> None:
    """Guards against masks from weights that were never loaded, because the code names them otherwise."""
    annotator = Birefnet(**tiny_birefnet(tmp_path))
    code = Path(annotator.model, "birefnet.py")
    code.write_text(code.read_text().replace("self.last", "self.end"))
    with pytest.raises(RuntimeError, match=r"end\.weight"):
        annotator.load("cpu")


def test_code_is_part_of_the_identity(tmp_path: Path) -> None:
    """Guards against a graph that does not notice that the code of its network changed."""
    annotator = Birefnet(**tiny_birefnet(tmp_path))
    before = annotator.identity()
    code = Path(annotator.model, "birefnet.py")
    code.write_text(code.read_text() + "\n# changed\n")
    assert annotator.identity() != before


@pytest.mark.parametrize(
    ("found", "changed", "words"),
    [
        ("birefnet.py", "import torch\nimport kornia_of_another_world\n", "pip install kornia_of_another_world"),
        (
            "config.json",
            '{"auto_map": {"AutoModelForImageSegmentation": "someone/else--net.Net"}}',
            "in another repository, someone/else",
        ),
        ("config.json", "{}", "names no AutoModelForImageSegmentation"),
        (
            "config.json",
            '{"auto_map": {"AutoModelForImageSegmentation": "lost.Net"}}',
            "lost.py is not here: graphbuild models fetch --pipeline",
        ),
    ],
)
def test_code_that_cannot_run(found: str, changed: str, words: str, tmp_path: Path) -> None:
    """Guards against an import error on every worker, and against code that no identity pins."""
    annotator = Birefnet(**tiny_birefnet(tmp_path))
    Path(annotator.model, found).write_text(changed)
    (line,) = annotator.missing()
    assert words in line
