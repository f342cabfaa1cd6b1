"""Reads the LoRA files of VisualCloze's own training code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphbuild_train.export.bfl_names import SWAPPED, diffusers_names, halves_swapped, widths
from graphbuild_train.export.lora_file import ENTRY, Lora, reading


def read_visualcloze(file: Path) -> Lora:
    """Read a LoRA for FLUX.1 as VisualCloze's code saves it: a `.pth` with the names of Black Forest Labs, scale 1.

    The update of a fused layer becomes one of each of its parts: all keep A, and share out the rows of B.

    Raises:
        ValueError: an entry that is not of a LoRA for FLUX.1; the message names the file.
        FileNotFoundError: there is no such file.
    """
    with reading(file):
        state = _split(torch.load(file, weights_only=True, map_location="cpu"))
        recipe = {"imported_from": "VisualCloze"}
        return Lora(part="transformer", state=state, adapter=_adapter_of(state), recipe=recipe)


def _split(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of the file under the names of diffusers."""
    state: dict[str, Tensor] = {}
    for key, tensor in saved.items():
        entry = ENTRY.fullmatch(key)
        if not entry:
            raise ValueError(f"{key}; allowed: lora_A and lora_B of the linear layers of FLUX.1")
        name, side = entry["layer"], entry["side"]
        layers = diffusers_names(name)
        rows = halves_swapped(tensor) if name == SWAPPED and side == "B" else tensor
        if side == "B" and len(layers) > 1:
            parts = torch.split(rows, widths(saved[f"{name}.lora_A.weight"].shape[1], len(rows)))
        else:
            parts = (rows,) * len(layers)
        for layer, part in zip(layers, parts, strict=True):
            state[f"{layer}.lora_{side}.{entry['what']}"] = part.clone()  # a file cannot hold one tensor twice
    return state


def _adapter_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    ends = ".lora_A.weight"
    ranks = {name.removesuffix(ends): tensor.shape[0] for name, tensor in state.items() if name.endswith(ends)}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{layer}": rank for layer, rank in ranks.items() if rank != usual}
    patterns = {"rank_pattern": others, "alpha_pattern": others} if others else {}
    bias = {"lora_bias": True} if any(name.endswith(".bias") for name in state) else {}
    return {"r": usual, "lora_alpha": usual, "target_modules": sorted(ranks), **patterns, **bias}
