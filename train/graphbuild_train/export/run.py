"""What a finished run leaves for its users: the LoRA with its recipe, and a model card."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphbuild.store.graph import Graph
from graphbuild_train.export.card import write_card
from graphbuild_train.export.lora_file import Lora, recipe_of, save_diffusers
from graphbuild_train.lora import adapter_config

if TYPE_CHECKING:
    from graphbuild_train.trainer import Trainer


def export_run(trainer: Trainer) -> Path:
    """Write `pytorch_lora_weights.safetensors` and `README.md` into the run's folder."""
    config = replace(trainer.config, model=trainer.model_name)
    recipe = recipe_of(
        config, model=trainer.model_name, snapshot=trainer.graph.digest, hole_fill=config.cells.hole_fill,
        steps=trainer.step,
    )  # fmt: skip
    made = Lora(
        part="unet" if trainer.base.denoiser == "unet" else "transformer",
        state=trainer.lora,
        adapter=adapter_config(trainer.base.bare),
        recipe=recipe,
    )
    file = save_diffusers(made, trainer.out)
    write_card(trainer.out, recipe, licences=licences(trainer.graph))
    return file


def licences(graph: Graph) -> dict[str, int]:
    """Licence -> number of a graph's items under it; "" is an item without one."""
    return dict(Counter(licence or "" for licence in graph.items()["licence"].to_pylist()))
