"""The format of kohya's sd-scripts, which ComfyUI reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graphbuild_train.export.bfl_names import SWAPPED, bfl_name, halves_swapped, widths
from graphbuild_train.export.lora_file import Lora, write

_NAMELESS = ("qwen_edit",)
"""Bases whose layers are called as FLUX's in diffusers, but not elsewhere."""


def save_kohya(lora: Lora, file: Path) -> Path:
    """Write `lora_down`, `lora_up` and `alpha` of every layer.

    For FLUX the names are those of Black Forest Labs, whose model fuses query, key and value into one layer: the
    updates of the three become one block-diagonal update of three times the rank, with exactly their effect. Layers
    outside the blocks (embedders, the last projection) are read by ComfyUI, but not by diffusers' importer of this
    format: a warning names them.

    Raises:
        ValueError: the LoRA has biases, or layers that have no name in this format.
    """
    if (base := lora.recipe.get("base")) in _NAMELESS:
        raise ValueError(f"{base}: the kohya format has no names for its layers here; use --format diffusers")
    if biased := [name for name in lora.state if name.endswith(".bias")]:
        raise ValueError(f"{biased[0]}: the kohya format has no biases ({len(biased)} here); use --format diffusers")
    flat = ((layer, 0, 1) if lora.part == "unet" else bfl_name(layer) for layer in lora.layers)
    fused: dict[tuple[str, int], dict[int, str]] = {}
    for layer, (name, slot, slots) in zip(lora.layers, flat, strict=True):
        fused.setdefault((name, slots), {})[slot] = layer
    state: dict[str, Tensor] = {}
    for (name, slots), layers in fused.items():
        down, up, alpha = _fuse(lora, layers, slots)
        key = "lora_unet_" + name.replace(".", "_")
        state[f"{key}.lora_down.weight"] = down
        state[f"{key}.lora_up.weight"] = halves_swapped(up) if name == SWAPPED else up
        state[f"{key}.alpha"] = torch.tensor(alpha)
    outside = [layer for layer in lora.layers if lora.part == "transformer" and "blocks." not in layer]
    if outside:
        warnings.warn(
            f"diffusers reads this format without {len(outside)} layers of {len(lora.layers)}: {', '.join(outside)}; "
            "ComfyUI reads them all; for diffusers use --format diffusers",
            stacklevel=2,
        )
    return write(file, state, lora.recipe, {})


def _fuse(lora: Lora, layers: Mapping[int, str], slots: int) -> tuple[Tensor, Tensor, float]:
    """Down R x in, up out x R and alpha of the layer made of some parts; a part that is not there is not changed."""
    present = sorted(layers)
    downs, ups = ([lora.state[f"{layers[slot]}.lora_{side}.weight"] for slot in present] for side in "AB")
    scales = [lora.scale(layers[slot]) for slot in present]
    rank, hidden = sum(map(len, downs)), downs[0].shape[1]
    if slots == 1:
        return downs[0], ups[0], scales[0] * rank
    parts = widths(hidden, (3 if slots == 3 else 7) * hidden)  # the MLP is four times as wide in all of FLUX.1
    blocks = torch.split(ups[0].new_zeros(sum(parts), rank), parts)
    column = 0
    for slot, up, scale in zip(present, ups, scales, strict=True):
        blocks[slot][:, column : column + up.shape[1]] = up * (scale / scales[0])
        column += up.shape[1]
    return torch.cat(downs), torch.cat(blocks), scales[0] * rank
