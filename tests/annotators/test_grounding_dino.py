"""`grounding_dino`: boxes at the right place with the right words, from networks that answer what they are told, and
with a tiny random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators.base import Derived, Request, Skip, needs_of
from graphbuild.annotators.grounding_dino import GroundingDino, GroundingNetwork
from graphbuild.annotators.testing import check_annotator
from graphbuild.contracts import Item
from graphbuild.images.codecs import CODECS, Pixels
from graphbuild.images.node import Node
from tests.support.tiny_checkpoints_words import bert_tokenizer, tiny_grounding_dino

Answer = tuple[dict[int, float], tuple[float, float, float, float]]
"""Scores by the number of the token ([CLS] is 0), and a box: centre and size, as shares of the picture."""


class Answering:
    """Gives these boxes for every picture."""

    config = SimpleNamespace(max_text_len=32)

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers

    def __call__(self, *, input_ids: torch.Tensor, **others: torch.Tensor) -> SimpleNamespace:
        scores = torch.full((1, len(self.answers), 32), 1e-6)
        for at, (words, _) in enumerate(self.answers):
            for token, score in words.items():
                scores[0, at, token] = score
        return SimpleNamespace(logits=scores.logit(), pred_boxes=torch.tensor([[box for _, box in self.answers]]))


def asked(annotator: GroundingDino, *answers: Answer, caption: str = "", size: tuple[int, int] = (100, 200)) -> Any:
    from transformers import GroundingDinoImageProcessor

    model = GroundingNetwork(Answering(*answers), GroundingDinoImageProcessor(), bert_tokenizer(), "cpu")
    [result] = annotator.annotate([request(np.zeros((*size, 3), np.uint8), caption)], model)
    return result


def request(picture: Pixels, caption: str) -> Request:
    words = Node(0, "caption", 0, "v", caption.encode(), "text", "text")
    item = Item(0, "i0", "a.jpg", None, None, None, None, None)
    return Request(item, {"image": Node.computed(0, "image", picture), "caption": words}, 0, 7)


def test_boxes_of_names() -> None:
    """[CLS] dog . traffic light . [SEP]: guards against half a name, boxes as centres, and sides in a wrong order."""
    result = asked(
        GroundingDino(names=("Dog", "traffic light")),
        ({1: 0.5}, (0.25, 0.5, 0.5, 0.4)),
        ({4: 0.9, 3: 0.2}, (0.8, 0.5, 0.2, 1.0)),
        ({4: 0.6}, (0.81, 0.5, 0.2, 1.0)),
        ({1: 0.2}, (0.5, 0.5, 0.1, 0.1)),
    )
    assert isinstance(result, Derived) and result.score == pytest.approx(0.9)
    document: Any = result.nodes["boxes"]
    found = [(each["label"], each["box"], round(each["score"], 2)) for each in document["boxes"]]
    assert found == [("traffic light", [140, 0, 180, 100], 0.9), ("dog", [0, 30, 100, 70], 0.5)]
    assert document["boxes"][0]["colour"] != document["boxes"][1]["colour"]
    CODECS["boxes"].encode(document)


def test_boxes_of_a_caption() -> None:
    """[CLS] a red dog on the chair . [SEP]: the words around the best one, and no others."""
    dino = GroundingDino()
    assert set(needs_of(dino)) == {"image", "caption"} and set(needs_of(replace(dino, names=("dog",)))) == {"image"}
    dog = ({1: 0.1, 2: 0.4, 3: 0.8, 6: 0.5}, (0.5, 0.5, 0.5, 0.5))
    stop = ({7: 0.9}, (0.2, 0.2, 0.1, 0.1))
    result = asked(dino, dog, stop, caption="A red dog on the chair.")
    assert [each["label"] for each in result.nodes["boxes"]["boxes"]] == ["red dog"]


def test_nothing_sure_enough_is_a_skip() -> None:
    assert asked(GroundingDino(names=("dog",)), ({1: 0.29}, (0.5, 0.5, 0.5, 0.5))) == Skip("no_objects")
    assert asked(GroundingDino(names=("dog",)), ({1: 0.9}, (0.5, 0.5, 0.0, 0.5))) == Skip("no_objects"), "no area"
    many = [({1: 0.9 - at / 100}, (0.1 * at, 0.5, 0.05, 0.5)) for at in range(1, 9)]
    assert len(asked(GroundingDino(names=("dog",), max_objects=3), *many).nodes["boxes"]["boxes"]) == 3


def test_the_contract_and_the_weights(tmp_path: Path) -> None:
    """With a real network: the same boxes alone and in a batch, whatever the size; missing weights name the command."""
    from skimage.data import astronaut

    picture = astronaut()
    dino = GroundingDino(**tiny_grounding_dino(tmp_path))
    check_annotator(dino, [np.ascontiguousarray(picture[:h, :w]) for h, w in ((64, 64), (33, 90))], tolerance=1)
    half = replace(dino, dtype="bfloat16")
    [result] = half.annotate([request(np.ascontiguousarray(picture[:64, :80]), "")], half.load("cpu"))
    assert isinstance(result, Derived)
    [line] = GroundingDino(names=("dog",)).missing()
    assert "apache-2.0" in line and "graphbuild models fetch IDEA-Research/grounding-dino-tiny" in line
    with pytest.raises(ValueError, match=r"names: 'a\. b'; allowed: words without full stops"):
        GroundingDino(names=("a. b",))
