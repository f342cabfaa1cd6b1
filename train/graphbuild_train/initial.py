"""A run that goes on from a LoRA: one of diffusers, of kohya's tools or ComfyUI, or of VisualCloze's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from graphbuild_train.bases.base import Base
from graphbuild_train.export.lora_file import Lora, read_diffusers, reading
from graphbuild_train.export.visualcloze import read_visualcloze
from graphbuild_train.lora import adapter_config, load_lora, lora_state


def go_on_from(file: Path, base: Base) -> None:
    """Overwrite the update of a base with that of a file, whatever its alpha; layers that the file lacks stay as new.

    Raises:
        ValueError: layers, ranks or biases that the run's LoRA does not have; the message names the file.
        FileNotFoundError: there is no such file.
    """
    theirs, state = _read(file, base), lora_state(base.bare)
    ours = Lora(part=base.denoiser, state=state, adapter=adapter_config(base.bare))
    wrong = [name for name in theirs.state if name not in state or state[name].shape != theirs.state[name].shape]
    if wrong:
        there = tuple(theirs.state[wrong[0]].shape)
        here = tuple(state[wrong[0]].shape) if wrong[0] in state else "missing"
        raise ValueError(
            f"init: {file}: {wrong[0]} is {there}, here {here} ({len(wrong)} such entries); "
            "allowed: a file of the same base, with lora.rank, lora.layers and lora.bias of this run"
        )
    load_lora(base.bare, {**state, **{name: _as(name, theirs, ours) for name in theirs.state}})


def _as(name: str, theirs: Lora, ours: Lora) -> Tensor:
    """An entry at our scale."""
    layer, _, end = name.rpartition(".lora_")
    factor = theirs.scale(layer) / ours.scale(layer) if end.startswith("B") else 1.0
    return theirs.state[name].to(ours.state[name]) * factor


def _read(file: Path, base: Base) -> Lora:
    if file.suffix == ".pth":
        return read_visualcloze(file)
    if file.is_file():
        with reading(file), safe_open(file, framework="pt") as opened:
            kohya = any(name.startswith("lora_unet_") for name in opened.keys())  # noqa: SIM118  not a mapping
        if kohya:
            return _read_kohya(file, base)
    return read_diffusers(file)


def _read_kohya(file: Path, base: Base) -> Lora:
    """By diffusers' importer, which puts the scale into the weights."""
    with reading(file):
        read: Any = base.pipeline_class().lora_state_dict(str(file))
        state: Mapping[str, Tensor] = read[0] if isinstance(read, tuple) else read
        cut = len(base.denoiser) + 1
        own = {name[cut:]: tensor for name, tensor in state.items() if name.startswith(base.denoiser)}
        return Lora(
            part=base.denoiser, state={name: tensor.to(torch.float32) for name, tensor in own.items()}, adapter={}
        )
