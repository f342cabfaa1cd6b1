"""The format of kohya's sd-scripts, which ComfyUI reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graphbuild_train.export.bfl_names import SWAPPED, bfl_name, halves_swapped, of_flux2, widths
from graphbuild_train.export.lora_file import Lora, write

_NAMELESS = ("qwen_edit",)
"""Bases whose layers are called as FLUX's in diffusers, but not elsewhere."""


def save_kohya(lora: Lora, file: Path) -> Path:
    """Write `lora_down`, `lora_up` and `alpha` of every layer, and `diff_b` of those whose LoRA has a bias: what
    ComfyUI adds to the layer's own. Other readers pass over those; a warning says so.

    For FLUX the names are those of Black Forest Labs, whose model fuses query, key and value into one layer: the
    updates of the three become one block-diagonal update of three times the rank, with exactly their effect. Layers
    outside the blocks (embedders, the last projection) are read by ComfyUI, but not by diffusers' importer of this
    format: a warning names them.

    Raises:
        ValueError: layers that have no name in this format, or a bias for a layer of a model that has none.
    """
    if (base := lora.recipe.get("base")) in _NAMELESS:
        raise ValueError(f"{base}: the kohya format has no names for its layers here; use --format diffusers")
    biased = [layer for layer in lora.layers if f"{layer}.lora_B.bias" in lora.state]
    if bare := [layer for layer in biased if not _has_bias(lora, layer)]:
        raise ValueError(
            f"{bare[0]}.lora_B.bias: this layer of the base has no bias that a reader of the kohya format could change "
            f"({len(bare)} such layers); use --format diffusers, or train with lora.bias: false"
        )
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
        if any(layer in biased for layer in layers.values()):
            bias = _bias(lora, layers, slots)
            state[f"{key}.diff_b"] = halves_swapped(bias) if name == SWAPPED else bias
    if biased:
        warnings.warn(
            f"ComfyUI reads the biases of {len(biased)} layers (diff_b), diffusers and kohya's tools leave them out; "
            "for diffusers use --format diffusers",
            stacklevel=2,
        )
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
    parts = _parts(hidden, slots)
    blocks = torch.split(ups[0].new_zeros(sum(parts), rank), parts)
    column = 0
    for slot, up, scale in zip(present, ups, scales, strict=True):
        blocks[slot][:, column : column + up.shape[1]] = up * (scale / scales[0])
        column += up.shape[1]
    return torch.cat(downs), torch.cat(blocks), scales[0] * rank


def _bias(lora: Lora, layers: Mapping[int, str], slots: int) -> Tensor:
    """What is added to the bias of the layer made of some parts: scaled, and zero where a part has none."""
    first = next(iter(layers.values()))
    hidden, rows = lora.state[f"{first}.lora_A.weight"].shape[1], lora.state[f"{first}.lora_B.weight"].shape[0]
    parts = _parts(hidden, slots) if slots > 1 else [rows]
    like = lora.state[f"{first}.lora_B.weight"]
    found = {
        slot: lora.scale(layer) * bias
        for slot, layer in layers.items()
        if (bias := lora.state.get(f"{layer}.lora_B.bias")) is not None
    }
    return torch.cat([found.get(slot, like.new_zeros(size)) for slot, size in enumerate(parts)])


def _parts(hidden: int, slots: int) -> list[int]:
    """Rows of the parts of a fused layer; the MLP is four times as wide in all of FLUX.1."""
    return widths(hidden, (3 if slots == 3 else 7) * hidden)


def _has_bias(lora: Lora, layer: str) -> bool:
    """Whether a layer of the base has a bias: not queries, keys and values of SDXL, and no layer of FLUX.2."""
    if lora.part == "unet":
        return not layer.endswith((".to_q", ".to_k", ".to_v"))
    return not (str(lora.recipe.get("objective")) == "flux2_klein" or any(map(of_flux2, lora.layers)))
