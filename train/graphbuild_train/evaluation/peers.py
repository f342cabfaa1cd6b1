"""Other models beside a LoRA, through diffusers' own pipelines: they get what is given, and are told what is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.walk import Walk
from graphbuild_train.evaluation.judge import caption_of
from graphbuild_train.objective import generator

OMNIGEN = Checkpoint("Shitao/OmniGen-v1-diffusers", ("*.json", "*.safetensors", "*.model"), "mit", 15.5)
STEPS = 50
"""Of a picture, as its pipeline has them."""
_SIDE = 16
"""Sides of its pictures are multiples of this."""


class OmniGen:
    """OmniGen (S. Xiao et al., arXiv 2409.11340): the given cells of the query row inside a sentence, no examples.

    Args:
        steps: of a picture; its guidance is that of its pipeline.
        seed: of the noise, which is drawn by walk.
    """

    def __init__(self, pipe: Any, steps: int, seed: int) -> None:
        self.pipe, self.steps, self.seed = pipe, steps, seed

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device, steps: int, seed: int) -> OmniGen:
        """In bfloat16, on a CPU in float32.

        Raises:
            MissingWeights: they are not on this machine.
        """
        from diffusers import OmniGenPipeline

        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        pipeline: Any = OmniGenPipeline
        pipe = pipeline.from_pretrained(checkpoint.folder(), dtype=dtype, use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe.to(device), steps, seed)

    def __call__(self, task: GridTask, walk: Walk) -> list[Pixels] | str:
        if len(task.holes) > 1:
            return "it makes one picture, not several"
        width, height = task.frames[-1].size
        given = [Image.fromarray(task.cell(-1, column)) for column in _given(task)]
        (made,) = self.pipe(
            sentence(task), input_images=given or None, height=_fitting(height), width=_fitting(width),
            num_inference_steps=self.steps, generator=generator(self.seed, walk.index, "sample"),
        ).images  # fmt: skip
        return [task.frames[-1].cell(np.asarray(made.convert("RGB")))]


def sentence(task: GridTask) -> str:
    """What is wanted, from which pictures, and the caption if there is one."""
    marked = [f"{_phrase(task, at)} <img><|image_{number}|></img>" for number, at in enumerate(_given(task), 1)]
    given = f" from {' and '.join(marked)}" if marked else ""
    return f"Make {_phrase(task, task.holes[0])}{given}. {caption_of(task)}".strip()


def _given(task: GridTask) -> list[int]:
    return [column for column in range(len(task.kinds)) if column not in task.holes]


def _phrase(task: GridTask, column: int) -> str:
    kind = task.kinds[column]
    return kind.phrases[0] if kind.phrases else kind.name.replace("_", " ")


def _fitting(side: int) -> int:
    return max(_SIDE, round(side / _SIDE) * _SIDE)
