"""`oneformer`: labels at the right place, in the names and colours of the checkpoint's classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.annotators.oneformer import ADE20K, Oneformer, SemanticNetwork
from tests.annotators.test_dense import bright_left, made, photo, request
from tests.support.tiny_checkpoints_dense import CLASSES, tiny_oneformer, tiny_segformer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The annotator with tiny random checkpoints of two families."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {"oneformer": Oneformer(**tiny_oneformer(folder)), "segformer": Oneformer(**tiny_segformer(folder))}


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
