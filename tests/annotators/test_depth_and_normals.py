"""Depth and normals: near is bright, and surfaces have the colours of what they face."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from graphbuild.annotators.depth_anything import DepthAnything, DepthNetwork, near_is_bright
from graphbuild.annotators.marigold_normals import MarigoldNormals, normal_colours
from tests.annotators.test_dense import bright_left, made, photo, request
from tests.support.tiny_checkpoints_dense import tiny_depth_anything, tiny_marigold_normals, tiny_segformer

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE, FIGURE, STREET, VASE = (
    f"data-{name}"
    for name in ("00004-of-00022-7170", "00005-of-00022-4396", "00017-of-00022-8377", "00018-of-00022-4948")
)


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


def test_metric_depth_is_refused(tmp_path: Path) -> None:
    """Guards against a graph of inverted depth maps from a checkpoint fine-tuned to metres, and against other networks
    whose depth means something else."""
    metric = Path(tiny_depth_anything(tmp_path)["model"])
    config = json.loads((metric / "config.json").read_text())
    (metric / "config.json").write_text(json.dumps({**config, "depth_estimation_type": "metric", "max_depth": 20}))
    (line,) = DepthAnything(model=str(metric)).missing()
    assert "metric" in line and str(metric) in line
    with pytest.raises(ValueError, match="metric depth"):
        DepthAnything(model=str(metric)).load("cpu")
    (line,) = DepthAnything(**tiny_segformer(tmp_path / "other")).missing()
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
def test_noise_is_the_seed_s(tmp_path: Path) -> None:
    """Guards against noise that depends on the place in a batch: each picture's is its own request's."""
    annotator: Any = MarigoldNormals(**tiny_marigold_normals(tmp_path))
    picture = photo(64, 64)
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
