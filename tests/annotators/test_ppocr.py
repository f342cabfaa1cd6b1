"""`ppocr`: lines of text at the right place, from networks that answer what they are told, and with tiny ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from graphbuild.annotators.base import Derived, Request, Skip
from graphbuild.annotators.ppocr import OcrNetworks, Ppocr
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from tests.support.tiny_checkpoints_words import tiny_ppocr

Place = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the picture."""


class Marking:
    """Says that there is text in these places."""

    def __init__(self, *places: Place, sure: float = 0.9) -> None:
        self.places, self.sure = places, sure

    def __call__(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        height, width = pixel_values.shape[2:]
        shares = torch.zeros(1, 1, height, width)
        for left, top, right, bottom in self.places:
            shares[:, :, round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = (
                self.sure
            )
        return SimpleNamespace(last_hidden_state=shares)


class Reading:
    """Reads `dark` or `light`, by the left half of a line."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.shapes += [tuple(line.shape[1:]) for line in pixel_values]
        told = torch.zeros(len(pixel_values), 5, len(CHARACTERS))
        for at, line in enumerate(pixel_values):
            left = line[:, :, : line.shape[2] // 4]
            for step, letter in enumerate("dark " if left.mean() < 0 else "light"):
                told[at, step, CHARACTERS.index(letter)] = 0.8
        return SimpleNamespace(last_hidden_state=told)


CHARACTERS = ["blank", *"darklight"[:4], "l", "i", "g", "h", "t", " "]


def told(*places: Place, sure: float = 0.9) -> OcrNetworks:
    from transformers import PPOCRV5ServerDetImageProcessor, PPOCRV5ServerRecImageProcessor

    reader = PPOCRV5ServerRecImageProcessor(character_list=CHARACTERS)
    return OcrNetworks(Marking(*places, sure=sure), PPOCRV5ServerDetImageProcessor(), Reading(), reader, "cpu")


def read(annotator: Ppocr, model: OcrNetworks, picture: Pixels) -> Any:
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    [result] = annotator.annotate([Request(item, {"image": Node.computed(0, "image", picture)}, 0, 7)], model)
    return result


def sign() -> Pixels:
    picture = np.full((200, 400, 3), 250, np.uint8)
    picture[:100] = 5
    return picture


def test_lines_are_read_where_they_are() -> None:
    """Guards against swapped sides, a size that is the network's, and what one line says told of another."""
    result = read(Ppocr(), told((0.5, 0.7, 0.9, 0.8), (0.1, 0.1, 0.4, 0.2)), sign())
    assert isinstance(result, Derived)
    document: Any = result.nodes["text_lines"]
    CODECS["boxes"].encode(document)
    first, second = document["boxes"]
    assert (first["label"], second["label"]) == ("dark", "light") and first["colour"] != second["colour"]
    for line, (left, top, right, bottom) in ((first, (40, 20, 160, 40)), (second, (200, 140, 360, 160))):
        assert np.abs(np.array(line["box"]) - (left, top, right, bottom)).max() < 20, "with a margin"
        assert line["box"][0] <= left and line["box"][3] >= bottom
    assert result.score == 0.8


def test_upright_lines_are_turned() -> None:
    model = told((0.1, 0.1, 0.15, 0.9))
    read(Ppocr(), model, sign())
    [(height, width)] = model.reader.shapes
    assert width > 2 * height


def test_nothing_sure_enough_is_a_skip() -> None:
    place = (0.1, 0.1, 0.4, 0.2)
    assert read(Ppocr(), told(), sign()) == Skip("no_text")
    assert read(Ppocr(), told(place, sure=0.5), sign()) == Skip("no_text")
    assert isinstance(read(Ppocr(box_threshold=0.4), told(place, sure=0.5), sign()), Derived)
    assert read(Ppocr(text_threshold=0.9), told(place), sign()) == Skip("no_text")


def test_the_contract_and_the_weights(tmp_path: Path) -> None:
    from skimage.data import page

    scan = np.repeat(page()[:, :, None], 3, 2)
    ppocr = Ppocr(**tiny_ppocr(tmp_path))
    pictures: Sequence[Pixels] = [np.ascontiguousarray(scan[:h, :w]) for h, w in ((64, 64), (33, 90))]
    check_annotator(ppocr, pictures, tolerance=1)
    lines = Ppocr().missing()
    assert "PP-OCRv5_mobile_det_safetensors (0.005 GB, apache-2.0)" in lines[0] and "mobile_rec" in lines[1]
    assert replace(ppocr, reader="someone/else").checkpoints()["reader"].licence == "unknown"
