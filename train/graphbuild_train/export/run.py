"""What a finished run leaves for its users: the LoRA with its recipe, and a model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from graphbuild.store.graph import Graph
from graphbuild.tasks.paths import document_of
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig
from graphbuild_train.export.card import write_card
from graphbuild_train.export.lora_file import Lora, header_of, recipe_of, save_diffusers
from graphbuild_train.lora import adapter_config
from graphbuild_train.task_list import lists_of


def export_run(
    out: Path,
    config: TrainConfig,
    base: Base,
    *,
    graphs: Sequence[Graph],
    model: str,
    state: Mapping[str, Tensor],
    steps: int,
) -> Path:
    """Write `pytorch_lora_weights.safetensors` and `README.md` into the folder of a run.

    Args:
        graphs: that were trained on.
        model: the checkpoint behind `base`.
        state: the LoRA, as `lora_state` gives it.
        steps: optimiser steps done.
    """
    recipe = _recipe(config, graphs, model, steps)
    file = save_diffusers(Lora(part=base.denoiser, state=state, adapter=adapter_config(base.bare), recipe=recipe), out)
    write_card(out, recipe, licences=licences(graphs))
    return file


def header_of_run(
    config: TrainConfig, base: Base, *, graphs: Sequence[Graph], model: str, steps: int
) -> dict[str, str]:
    """The header of the file that `export_run` would write."""
    return header_of(base.denoiser, adapter_config(base.bare), _recipe(config, graphs, model, steps))


def _recipe(config: TrainConfig, graphs: Sequence[Graph], model: str, steps: int) -> dict[str, Any]:
    fill = config.cells.hole_fill
    snapshot = "+".join(graph.digest for graph in graphs)
    recipe = recipe_of(replace(config, model=model), model=model, snapshot=snapshot, hole_fill=fill, steps=steps)
    return recipe | {"tasks": [{"name": listed.name, **document_of(listed)} for listed in lists_of(config)]}


def licences(graphs: Sequence[Graph]) -> dict[str, int]:
    """Licence -> number of the graphs' items under it; "" is an item without one."""
    each = {graph.digest: graph for graph in graphs}.values()
    return dict(Counter(licence or "" for graph in each for licence in graph.items()["licence"].to_pylist()))
