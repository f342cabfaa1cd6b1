"""Pictures enlarged with the model that made them; bases that cannot say so before one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from graphbuild.tasks.pictures import PictureRows
from graphbuild_train.bases import base_class, load_base
from graphbuild_train.config import config_from
from graphbuild_train.objective import OBJECTIVES
from graphbuild_train.sampling import LoraSampler
from graphbuild_train.task_list import lists_of
from tests.support.tiny_models import save_flux_dev, save_flux_fill
from tests.support.tiny_models_other import save_flux2_klein, save_sdxl

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "flux_fill": (save_flux_fill, "visualcloze_fill"), "flux_dev": (save_flux_dev, "visualcloze_dev"),
    "sdxl": (save_sdxl, "onepic"), "flux2_klein": (save_flux2_klein, "flux2_klein"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_is_enlarged_and_made_anew_in_part(name: str, tmp_path: Path) -> None:
    """Guards against a picture of another size or shape, a strength that is not heard, and noise of another seed."""
    save, objective = MODELS[name]
    base = load_base(name, str(save(tmp_path / "m")), OBJECTIVES[objective], dtype=torch.float32)
    picture = Image.fromarray(data.astronaut()).resize((96, 48))
    task = PictureRows([[np.zeros((64, 64, 3), np.uint8), None]], ["canny", "image"]).task(64)
    base.sample([task], steps=2, guidance=2.0, seed=0)  # as a user does before; some change the sampler

    def enlarged(strength: float, *, seed: int = 0, of: Image.Image = picture) -> np.ndarray:
        options = {"steps": 10, "guidance": 2.0, "seed": seed}
        made = base.upscaled(of, "an astronaut", side=96, strength=strength, **options)  # type: ignore[arg-type]
        assert made.size == (128, 64)
        return np.asarray(made.convert("RGB")).astype(float)

    little, again, much = enlarged(0.2), enlarged(0.2), enlarged(0.9)
    assert np.array_equal(little, again) and not np.array_equal(little, enlarged(0.2, seed=1))
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    kept = [np.abs(found - enlarged(strength, of=other)).mean() for found, strength in ((little, 0.2), (much, 0.9))]
    assert kept[0] > 2 * kept[1]


@pytest.mark.parametrize("name", ["flex2", "qwen_edit"])
def test_a_base_that_cannot_says_so_before_it_is_loaded(name: str, tmp_path: Path) -> None:
    """Guards against minutes of sampling before a refusal."""
    cls = base_class(name)
    config = config_from({"base": name, "objective": cls.objectives[0], "model": "no/such", "paths": "coco"})
    sampler = LoraSampler(tmp_path, config, tasks=lists_of(config))
    black = np.zeros((40, 40, 3), np.uint8)
    task = sampler.from_rows([[black, None]], sampler.path_of(["canny", "image"]))
    with pytest.raises(ValueError, match=rf"upscale: 64; allowed for {cls.__name__}: 0, as diffusers has no pipeline"):
        sampler.make(task, upscale=64)
