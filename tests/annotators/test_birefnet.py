"""`birefnet`: masks that match cut-outs, and a network whose code comes with its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from graphbuild.annotators.base import Derived
from graphbuild.annotators.birefnet import Birefnet
from graphbuild.models.resizing import picture_at
from tests.annotators.test_dense import made, photo, request
from tests.support.tiny_checkpoints_dense import tiny_birefnet

pytestmark = pytest.mark.usefixtures("one_thread")

CUT_OUTS = [
    *(f"rembg_{name}" for name in ("animal-1", "car-1", "car-2", "car-3", "girl-2", "plants-1")),
    *(f"carvekit_{number}" for number in (1, 2, 3)),
]


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


def test_code_runs_only_when_asked(tmp_path: Path) -> None:
    """Guards against code of a checkpoint that runs unasked, and a refusal that comes on the workers."""
    trusted = Birefnet(**tiny_birefnet(tmp_path))
    distrusted = replace(trusted, trust_remote_code=False)
    (line,) = distrusted.missing()
    assert distrusted.model in line and "trust_remote_code: true" in line
    with pytest.raises(ValueError, match="trust_remote_code: true"):
        distrusted.load("cpu")
    assert trusted.missing() == []
    assert type(trusted.load("cpu").network).__name__ == "BiRefNet"
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
