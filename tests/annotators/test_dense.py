"""What all annotators that give every pixel a value keep to, and the sizes they work at."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators.base import Condition, Request, Resources, Skip, params_of
from graphbuild.annotators.birefnet import Birefnet
from graphbuild.annotators.depth_anything import DepthAnything
from graphbuild.annotators.marigold_normals import MarigoldNormals
from graphbuild.annotators.oneformer import Oneformer
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.models.resizing import in_stacks, map_at, working_size
from graphbuild.store.graph import Graph
from graphbuild.tasks.labels import labels_of
from tests.support.annotators import Styles, build, complete
from tests.support.tiny_checkpoints_dense import (
    tiny_birefnet,
    tiny_depth_anything,
    tiny_marigold_normals,
    tiny_oneformer,
    tiny_segformer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "depth_anything": "depth",
    "marigold_normals": "normal",
    "oneformer": "semantic",
    "birefnet": "foreground_mask",
}


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
