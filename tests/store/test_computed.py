"""Computed kinds: pictures that are computed when they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from graphbuild.errors import GraphError, MissingNode
from graphbuild.images import degradations
from graphbuild.kinds.registry import KINDS
from graphbuild.store.graph import Graph
from tests.support.annotators import Halves, TwoKinds, build, complete

DEGRADATIONS = sorted(kind.name for kind in KINDS.values() if kind.family == "degradation")


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Two small photographs, one wider than 512 px, one turned by its EXIF tag, one with alpha."""
    import skimage
    from PIL import Image

    folder = tmp_path_factory.mktemp("computed") / "photos"
    folder.mkdir()
    for name in ("p00.jpg", "p01.png"):
        shutil.copy2(photos / name, folder)
    shutil.copy2(Path(skimage.__file__).parent / "data" / "coffee.png", folder / "q_wide.png")
    with Image.open(photos / "p02.jpg") as photo:
        exif = photo.getexif()
        exif[0x0112] = 6
        photo.save(folder / "r_turned.jpg", exif=exif)
        photo.convert("RGBA").save(folder / "s_alpha.png")
    complete(build(folder, folder.parent / "g", [Halves()]))
    return Graph.open(folder.parent / "g")


def test_foreground_and_background_make_up_the_image(graph: Graph) -> None:
    """A pixel in both or in neither would be lost or doubled."""
    seen = set()
    for item_ix in range(graph.num_items):
        image, mask = graph.read(item_ix, "image").array(), graph.read(item_ix, "foreground_mask").values() > 127
        front, back = (graph.read(item_ix, kind).array() for kind in ("foreground", "background"))
        assert front.shape == back.shape == image.shape
        assert np.array_equal(front.astype(int) + back, image)
        assert not front[~mask].any() and not back[mask].any()
        seen |= set(np.unique(mask).tolist())
    assert seen == {False, True}


def test_every_degradation_is_read_through_the_graph(graph: Graph) -> None:
    """Each is a function of the picture and the seed, acts on the fitted picture, and does something."""
    picture = graph.read(0, "image").array()
    for kind in DEGRADATIONS:
        node = graph.read(0, kind, seed=11)
        assert np.array_equal(node.array(), graph.read(0, kind, seed=11).array()), kind
        assert np.array_equal(node.array(), degradations.apply(kind, picture, 11)), kind
        quarter = kind in ("rotate_90", "rotate_270")
        height, width = picture.shape[:2]
        assert node.array().shape == ((width, height, 3) if quarter else (height, width, 3)), kind
        assert node.array().shape != picture.shape or not np.array_equal(node.array(), picture), kind
        assert (node.item_ix, node.kind, node.variant) == (0, kind, 0)


def test_the_seed_decides(graph: Graph) -> None:
    """Noise that is the same for every walk would be learnt by heart."""
    for kind in ("gaussian_noise", "salt_pepper_noise", "inpainting", "rain", "elastic"):
        pictures = {graph.read(1, kind, seed=seed).array().tobytes() for seed in range(4)}
        assert len(pictures) == 4, kind


def test_large_pictures_are_fitted_before_they_are_degraded(graph: Graph) -> None:
    """Fine damage on the full picture would vanish in a cell; smaller pictures are never enlarged."""
    assert graph.read(2, "image").array().shape == (400, 600, 3)
    fitted = degradations.fit(graph.read(2, "image").array())
    assert graph.read(2, "gray", seed=1).array().shape == fitted.shape == (341, 512, 3)
    assert graph.read(2, "rotate_90").array().shape == (512, 341, 3)
    assert np.array_equal(graph.read(2, "pixelate", seed=9).array(), degradations.apply("pixelate", fitted, 9))


def test_computed_kinds_see_the_upright_picture(graph: Graph) -> None:
    """A photograph turned by its EXIF tag is degraded and cut out as it is shown."""
    picture = graph.read(3, "image").array()
    assert graph.read(3, "gray").array().shape == graph.read(3, "foreground").array().shape == picture.shape
    assert np.array_equal(graph.read(3, "rotate_180").array(), picture[::-1, ::-1])


def test_a_computed_kind_needs_its_parents(photos: Path, tmp_path: Path) -> None:
    """Without a mask there is no foreground: an error that says so, never a black picture."""
    report = build(photos, tmp_path / "g", [TwoKinds()], limit=6)
    graph = Graph.open(tmp_path / "g")
    assert report.annotators["two_kinds"].skipped
    statuses = graph.edges("foreground_mask").select(["item_ix", "status"]).to_pylist()
    missing = [row["item_ix"] for row in statuses if row["status"] == "skipped"]
    assert 0 < len(missing) < 6
    for item_ix in missing:
        with pytest.raises(MissingNode, match=f"item {item_ix} has no foreground_mask: skipped"):
            graph.read(item_ix, "foreground")
        assert graph.read(item_ix, "blur", seed=1).array().any()
    with pytest.raises(MissingNode, match="no item 6"):
        graph.read(6, "blur")


def test_a_computed_kind_of_an_absent_kind_names_it(photos: Path, tmp_path: Path) -> None:
    """The user has to learn which annotator to run."""
    build(photos, tmp_path / "g", [], limit=2)
    graph = Graph.open(tmp_path / "g")
    with pytest.raises(GraphError, match="no kind 'foreground_mask'; it has: image"):
        graph.read(0, "foreground")
    with pytest.raises(GraphError, match="no kind 'nonsense'"):
        graph.read(0, "nonsense")
