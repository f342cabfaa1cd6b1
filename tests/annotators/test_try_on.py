"""Clothes as label maps, garments cut out, and people without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Skip
from graphbuild.annotators.oneformer import SegformerClothes
from graphbuild.annotators.testing import check_annotator
from graphbuild.annotators.try_on import TryOn
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from graphbuild.tasks.paths import load
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_dense import ATR, tiny_clothes

HAIR, UPPER, PANTS, FACE, ARM = (ATR.index(name) for name in ("Hair", "Upper-clothes", "Pants", "Face", "Left-arm"))


def dressed(height: int, width: int) -> NDArray[np.uint8]:
    """A person: face with hair over a shirt, an arm beside it, trousers below."""
    labels = np.zeros((height, width), np.uint8)
    rows, columns = (lambda share: round(share * height)), (lambda share: round(share * width))
    for number, top, bottom, left, right in (
        (UPPER, 0.3, 0.6, 0.3, 0.7), (ARM, 0.3, 0.6, 0.7, 0.8), (PANTS, 0.6, 0.9, 0.35, 0.65),
        (FACE, 0.1, 0.3, 0.4, 0.6), (HAIR, 0.1, 0.4, 0.35, 0.4),
    ):  # fmt: skip
        labels[rows(top) : rows(bottom), columns(left) : columns(right)] = number
    return labels


def tried_on(picture: Pixels, labels: NDArray[np.uint8], **parameters: Any) -> Derived | Skip:
    encoded = CODECS["labels"].encode(labels)
    clothes = Node(0, "clothes", 0, "v", encoded.data, "png", "labels", {"labels": list(ATR)})
    inputs = {"image": Node.computed(0, "image", picture), "clothes": clothes}
    item = Item(0, "id", "key", None, None, None, None, None)
    [result] = TryOn(**parameters).annotate([Request(item, inputs, 0, 1)], None)
    return result


def noise(height: int = 200, width: int = 160) -> Pixels:
    return np.random.default_rng(0).integers(1, 128, (height, width, 3), np.uint8)


def test_the_garment_is_gone_and_the_rest_is_untouched() -> None:
    """Guards against a sleeve that an arm gives away, a face greyed out, and a picture changed elsewhere."""
    picture, labels = noise(), dressed(200, 160)
    result = tried_on(picture, labels)
    assert isinstance(result, Derived) and result.attrs == {"garment": "upper"}
    assert result.score == pytest.approx((labels == UPPER).mean())
    agnostic: Any = result.nodes["agnostic"]
    grey = (agnostic == 128).all(axis=2)
    assert agnostic.shape == picture.shape and grey[(labels == UPPER) | (labels == ARM)].all()
    assert not grey[np.isin(labels, (FACE, HAIR, PANTS))].any(), "what belongs to the person stays"
    assert grey[58, 80] == False and grey[80, 130], "the background next to the arm is grey, too"  # noqa: E712
    assert np.array_equal(agnostic[~grey], picture[~grey]) and not grey[:, :40].any()


def test_the_garment_is_cut_out_on_white() -> None:
    picture, labels = noise(), dressed(200, 160)
    result = tried_on(picture, labels, garment="lower")
    assert isinstance(result, Derived) and result.attrs == {"garment": "lower"}
    garment: Any = result.nodes["garment"]
    rows, columns = np.nonzero(labels == PANTS)
    margin = round(0.1 * max(np.ptp(rows) + 1, np.ptp(columns) + 1))
    inside = garment[margin:-margin, margin:-margin]
    assert np.array_equal(inside, picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    assert (garment[:margin] == 255).all() and (garment[:, -margin:] == 255).all()


def test_nobody_in_clothes_is_a_skip() -> None:
    assert tried_on(noise(), np.zeros((200, 160), np.uint8)) == Skip("no_garment")
    assert tried_on(noise(), dressed(200, 160), garment="dress") == Skip("no_garment")
    assert tried_on(noise(), dressed(200, 160), min_share=0.2) == Skip("no_garment")


@dataclass(frozen=True, kw_only=True)
class Dressed(Condition):
    """A person in every picture."""

    makes: ClassVar[tuple[str, ...]] = ("clothes",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        sizes = [request.inputs["image"].array().shape[:2] for request in batch]
        attrs = {"labels": list(ATR), "palette": [[number, number, number] for number in range(len(ATR))]}
        return [Derived({"clothes": dressed(*size)}, attrs=attrs) for size in sizes]


def test_the_tasks_of_viton_hd_draw_from_it(photos: Path, tmp_path: Path) -> None:
    """From photographs to a try-on task without a published set."""
    complete(build(photos, tmp_path / "g", [Dressed(), TryOn()], limit=3))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds()["garment"] == graph.kinds()["agnostic"] == 3
    sampler = PathSampler(graph, load("viton_hd"), on_missing="drop")
    names = {path.name for path in sampler.paths}
    assert names == {"garment+agnostic-to-image", "image-to-garment"}
    task = sampler.task(sampler.walk(0, path="garment+agnostic-to-image"), 64)
    assert "cloth" in task.prompt and all(cell.shape == (64, 64, 3) for row in task.cells() for cell in row)


def test_segformer_keeps_the_contract(tmp_path: Path) -> None:
    """Guards against a label map under another name than its kind, and classes without theirs."""
    annotator = SegformerClothes(**tiny_clothes(tmp_path))
    check_annotator(annotator, tolerance=2.0)
    request = Request(
        Item(0, "id", "key", None, None, None, None, None), {"image": Node.computed(0, "image", noise())}, 0, 1
    )
    [result] = annotator.annotate([request], annotator.load("cpu"))
    assert result.attrs is not None and {*result.attrs["labels"]} <= {*ATR, ""}
    assert list(result.nodes) == ["clothes"] and "mit" in SegformerClothes().missing()[0]
