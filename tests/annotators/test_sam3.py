"""`sam3`: boxes and masks of what is named, from a network that answers what it is told, and with a tiny random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators.base import Derived, Request, Skip
from graphbuild.annotators.sam3 import Sam3, Sam3Network
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from tests.support.tiny_checkpoints_words import bert_tokenizer, tiny_sam3

Answer = tuple[float, tuple[float, float, float, float]]
"""A score, and a box (left, top, right, bottom, as shares of the picture), all of whose pixels are in the mask."""


class Answering:
    """Gives these objects for every picture, by the first word of a name."""

    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=8))

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        vocabulary = bert_tokenizer().get_vocab()
        self.answers = {vocabulary[word]: told for word, told in answers.items()}
        self.looks = 0

    def get_vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.looks += 1
        return pixels

    def __call__(self, *, vision_embeds: torch.Tensor, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        told = self.answers.get(int(input_ids[0, 1]), [])
        masks = torch.full((1, len(told), 16, 16), -9.0)
        for at, (_, (left, top, right, bottom)) in enumerate(told):
            masks[0, at, round(16 * top) : round(16 * bottom), round(16 * left) : round(16 * right)] = 9.0
        boxes = torch.tensor([box for _, box in told]).reshape(1, -1, 4)
        scores = torch.tensor([score for score, _ in told]).reshape(1, -1).logit()
        return SimpleNamespace(pred_logits=scores, presence_logits=torch.full((1, 1), 20.0), pred_boxes=boxes,
                               pred_masks=masks)  # fmt: skip


def request(picture: Pixels) -> Request:
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    return Request(item, {"image": Node.computed(0, "image", picture)}, 0, 7)


def asked(annotator: Sam3, answers: dict[str, list[Answer]], size: tuple[int, int] = (96, 192)) -> tuple[Any, int]:
    from transformers import Sam3ImageProcessor

    network = Answering(answers)
    small = Sam3ImageProcessor(size={"height": 64, "width": 64})
    [result] = annotator.annotate(
        [request(np.zeros((*size, 3), np.uint8))], Sam3Network(network, small, bert_tokenizer(), "cpu")
    )
    return result, network.looks


def test_boxes_and_masks_of_names() -> None:
    """Guards against sides in a wrong order, small things under large ones, and a look at the picture for each name."""
    answers = {
        "dog": [(0.6, (0.0, 0.0, 1.0, 0.5)), (0.4, (0.0, 0.0, 0.5, 0.5))],
        "red": [(0.9, (0.25, 0.25, 0.5, 0.5))],
    }
    result, looks = asked(Sam3(names=("dog", "Red light", "cat")), answers)
    assert isinstance(result, Derived) and result.score == pytest.approx(0.9) and looks == 1
    document, labels = result.nodes["boxes"], np.asarray(result.nodes["mask"])
    assert [(each["label"], each["box"]) for each in document["boxes"]] == [  # type: ignore[index, call-overload]
        ("Red light", [48, 24, 96, 48]), ("dog", [0, 0, 192, 48])
    ]  # fmt: skip
    assert result.attrs is not None and result.attrs["labels"] == ["", "Red light", "dog"]
    assert labels.shape == (96, 192) and labels[30, 70] == 1 and labels[10, 10] == 2 and labels[80, 10] == 0
    assert result.attrs["palette"][1:] == [each["colour"] for each in document["boxes"]]  # type: ignore[index, call-overload]
    CODECS["boxes"].encode(document)


def test_nothing_sure_enough_is_a_skip() -> None:
    assert asked(Sam3(names=("dog",)), {"dog": [(0.4, (0.0, 0.0, 1.0, 1.0))]})[0] == Skip("no_objects")
    many = [(0.9 - at / 100, (0.1 * at, 0.0, 0.1 * at + 0.2, 0.5)) for at in range(6)]
    assert len(asked(Sam3(names=("dog",), max_objects=3), {"dog": many})[0].nodes["boxes"]["boxes"]) == 3


def test_the_contract_and_the_weights(tmp_path: Path) -> None:
    """With a real network: the same alone and in a batch, whatever the size; what is missing is named."""
    from skimage.data import astronaut

    picture, sam3 = astronaut(), Sam3(**tiny_sam3(tmp_path))
    check_annotator(sam3, [np.ascontiguousarray(picture[:h, :w]) for h, w in ((64, 64), (33, 90))], tolerance=1)
    half = replace(sam3, dtype="bfloat16")
    [result] = half.annotate([request(np.ascontiguousarray(picture[:64, :80]))], half.load("cpu"))
    assert isinstance(result, Derived)
    weights, names = Sam3().missing()
    assert "graphbuild models fetch facebook/sam3" in weights and names.startswith("names: none; say what")
    with pytest.raises(ValueError, match=r"names: .*allowed: short noun phrases"):
        Sam3(names=("dog", " "))
