"""Every annotator of the mission in one graph: through Ray, killed in the middle, resumed, verified, drawn from.

Checkpoints are tiny and random, so pictures mean nothing here; that each annotator is right is tested beside it.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from graphbuild.annotators import BUILTIN, DEFAULT_FOR, load_class, resolve
from graphbuild.annotators.base import Annotator, Each, Score, makes_of, needs_of
from graphbuild.annotators.testing import check_annotator
from graphbuild.engine.plan import make_plan
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.decode import decode_image
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS
from graphbuild.sources import resolve as resolve_source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.status import status_of
from graphbuild.store.verify import verify
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import complete, published, tree
from tests.support.everything import OTHERS, TINY, annotate_pairs, start_pairs, tiny_annotators, write_pairs
from tests.support.tiny_checkpoints_dense import ATR

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PAIRS = 4
OF_EDITS = (
    *("edit_global.hed", "edit_global.lines", "edit_global.boxes", "edit_global.mask"),
    *("reference.hed", "reference.pose", "reference.boxes"),
)
OF_SOME = "edit_global.foreground_mask"
"""What `grabcut` finds in edits that are noise: something, or nothing and then it skips."""
PARTS_BEFORE_KILL = 30
"""Of about 120; more than the conditions of the first shard, less than the edits of the second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("everything")


@pytest.fixture(scope="module")
def annotators(folder: Path) -> list[Annotator]:
    return tiny_annotators(folder / "weights")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    return write_pairs(folder / "pairs", PAIRS)


@pytest.fixture(scope="module")
def graph(folder: Path, pairs: Path, annotators: list[Annotator], ray_address: str) -> Graph:
    """Built by Ray, killed in the middle, and finished by a second run."""
    out = folder / "killed"
    process = start_pairs(pairs, out, annotators, executor="ray", address=ray_address)
    while published(out) < PARTS_BEFORE_KILL and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive(), "the kill has to fall into the run"
    process.kill()
    process.join()
    assert len(list((out / "edges").rglob("*.parquet"))) < PAIRS // 2 * (len(annotators) + 1)
    complete(annotate_pairs(pairs, out, annotators, executor="ray", address=ray_address))
    return Graph.open(out)


def test_every_annotator_of_the_library_is_tried() -> None:
    """Guards against an annotator that ships and was never part of a graph."""
    scores = {name for name in BUILTIN if issubclass(load_class(name), Score)}  # tests/annotators/test_score*.py
    assert set(TINY) | set(OTHERS) | {"canny", "source_caption"} | scores == set(BUILTIN)
    assert set(DEFAULT_FOR.values()) <= set(TINY) | {"canny"}


@pytest.mark.ray
def test_every_kind_is_stored_for_every_item(graph: Graph) -> None:
    stored = {name: kind for name, kind in KINDS.items() if not kind.is_computed}
    variants = {"style_reference": 3, "style_content": 3, "style_semantic": 3, "edit_text": 5, "edit_local": 5}
    variants["edit_instruction"] = 5
    expected = {name: variants.get(name, 1) for name in stored} | dict.fromkeys(OF_EDITS, 1) | {"edit_local.canny": 5}
    kinds = graph.kinds()
    assert kinds.pop("garment", 0) == kinds.pop("agnostic", 0) <= PAIRS
    assert kinds.pop(OF_SOME, 0) <= PAIRS and status_of(graph).kinds[OF_SOME]["failed"] == 0
    assert kinds == {name: PAIRS * expected[name] for name in sorted(expected)}
    assert verify(graph.url, "full").problems == []


@pytest.mark.ray
def test_a_killed_graph_has_the_bytes_of_a_whole_one(
    folder: Path, pairs: Path, annotators: list[Annotator], graph: Graph
) -> None:
    """Models on Ray, killed and resumed, against one process that was left alone."""
    complete(annotate_pairs(pairs, folder / "whole", annotators, executor="inline"))
    assert tree(folder / "whole") == tree(folder / "killed")


@pytest.mark.ray
def test_nothing_is_left_to_do(pairs: Path, annotators: list[Annotator], graph: Graph) -> None:
    """Identities of weights have to come out the same every time."""
    source = resolve_source("subjects200k", path=str(pairs))
    assert make_plan(files_at(graph.url), source, annotators).units == ()


@pytest.mark.ray
def test_every_path_is_drawn_to_the_last_pixel(graph: Graph) -> None:
    """All 134 tasks from annotations as models make them, label maps, poses and boxes among them."""
    sampler = PathSampler(graph, "graph200k")
    assert len(sampler.paths) == 134
    for index, path in enumerate(sampler.paths):
        task = sampler.task(sampler.walk(index, path=path.name), 32)
        assert all(cell.shape == (32, 32, 3) for row in task.cells() for cell in row)
        assert task.prompt.isascii() and "{" not in task.prompt


@pytest.mark.ray
def test_annotations_have_the_size_of_their_picture(graph: Graph, annotators: list[Annotator]) -> None:
    kinds = [kind for annotator in annotators for kind in makes_of(annotator).values()]
    conditions = [kind.name for kind in kinds if kind.family == "condition"]
    for item in range(PAIRS):
        size = graph.read(item, "image").array().shape
        made = [kind for kind in conditions if kind != OF_SOME or graph.presence(kind)[item].any()]
        assert {kind: graph.read(item, kind).array().shape for kind in made} == dict.fromkeys(made, size)


@pytest.mark.ray
def test_a_local_edit_keeps_its_background(graph: Graph) -> None:
    """Outside the mask, grown by what the annotator fades over, every stored pixel is the image's own."""
    import cv2

    for item in range(PAIRS):
        image, mask = graph.read(item, "image").array(), graph.read(item, "foreground_mask").values() > 0
        outside = cv2.dilate(mask.astype(np.uint8), np.ones((33, 33), np.uint8)) == 0
        for variant in range(5):
            edit = graph.read(item, "edit_local", variant=variant).array()
            assert np.array_equal(edit[outside], image[outside]) and edit.shape == image.shape


def parsed(labels: Pixels) -> Node:
    data = CODECS["labels"].encode(labels).data
    return Node(0, "clothes", 0, "v", data, "png", "labels", {"labels": list(ATR)})


@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_every_annotator_keeps_the_contract(name: str, folder: Path, photos: Path) -> None:
    """Determinism, batch equals singles, sizes, skip reasons, untouched global random state: what authors are told."""
    shown = [decode_image(file.read_bytes(), file.suffix.lstrip(".")) for file in sorted(photos.iterdir())[:2]]
    pictures = [np.ascontiguousarray(picture[:64, : 64 + 16 * number]) for number, picture in enumerate(shown)]
    grey = [picture[:, :, 0].copy() for picture in pictures]
    values = {
        "caption": "A cat on a chair.", "edit_text": "A dog on a chair.", "background_text": "A cat in the snow.",
        "reference": [np.roll(picture, 6, 1) for picture in pictures], "depth": grey, "hed": grey,
        "clothes": [parsed(each // 16) for each in grey], "style_reference": pictures,
        "foreground_mask": [np.eye(*g.shape, dtype=bool) for g in grey],
    }  # fmt: skip
    annotator = resolve(name, {**TINY, **OTHERS}[name](folder / "checked" / name))
    needs = {need.kind if isinstance(need, Each) else need for need in needs_of(annotator).values()} - {"image"}
    check_annotator(annotator, pictures, inputs={kind: values[kind] for kind in needs}, tolerance=2.0)
