"""LoRA files: diffusers' form with all that a reader must know, kohya's for ComfyUI, and VisualCloze's own to read."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import graphbuild
from graphbuild_train.config import TrainConfig
from graphbuild_train.export.bfl_names import SWAPPED, bfl_name, diffusers_names
from graphbuild_train.objective import objective_of

RECIPE_KEY = "graphbuild"
"""Entry of a file's header with the recipe as JSON; readers of LoRA files pass over it."""

_ENTRY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.(?P<what>weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a LoRA file holds. Layer W of the base becomes W + scale (B A), and its bias b becomes b + scale c."""

    part: str
    """The pipeline's module that it belongs to: transformer or unet."""
    state: Mapping[str, Tensor]
    """`<layer>.lora_A.weight` A, rank x in; `<layer>.lora_B.weight` B, out x rank; `<layer>.lora_B.bias` c, out."""
    adapter: Mapping[str, Any]
    """Ranks, alphas and layers under the names of peft's `LoraConfig`; empty means scale 1."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, as JSON values."""

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers, as diffusers calls them."""
        return [name.removesuffix(".lora_A.weight") for name in self.state if name.endswith(".lora_A.weight")]

    def scale(self, layer: str) -> float:
        """alpha / rank of a layer, or alpha / sqrt(rank) if the adapter is rank-stabilised (arXiv 2312.03732)."""
        if not self.adapter:
            return 1.0
        rank = self.state[f"{layer}.lora_A.weight"].shape[0]
        alphas: Mapping[str, float] = self.adapter.get("alpha_pattern", {})
        alpha: float = alphas.get(get_pattern_key(list(alphas), layer), self.adapter["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.adapter.get("use_rslora") else rank)


def recipe_of(
    config: TrainConfig, *, model: str, snapshot: str, hole_fill: str, steps: int, revision: str | None = None
) -> dict[str, Any]:
    """What a file says of its training: the whole config, its shift filled in, and facts.

    Args:
        model: hub id or folder of the base.
        snapshot: digest of the graph's state that was trained on.
        hole_fill: what the base was shown in holes; sampling has to show it the same.
        steps: optimiser steps done.
        revision: of the recipe's source, if it is under version control.
    """
    facts = {
        "version": graphbuild.__version__,
        "base_model": model,
        "shift": objective_of(config.objective, config.shift).shift,
        "hole_fill": hole_fill,
        "snapshot": snapshot,
        "steps_done": steps,
    }
    return asdict(config) | facts | ({"source_revision": revision} if revision else {})


def save_diffusers(lora: Lora, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` of the base's pipelines reads unchanged.

    The same as the pipeline's `save_lora_weights` writes, and the recipe in the header besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter = json.dumps({f"{lora.part}.{name}": value for name, value in lora.adapter.items()}, sort_keys=True)
    header = {LORA_ADAPTER_METADATA_KEY: adapter} if lora.adapter else {}
    state = {f"{lora.part}.{name}": tensor for name, tensor in lora.state.items()}
    return _write(folder / LORA_WEIGHT_NAME_SAFE, state, lora.recipe, header)


def read_diffusers(path: Path) -> Lora:
    """Read a LoRA of one module in diffusers' form: the file, or the folder that `save_diffusers` wrote it into.

    Raises:
        ValueError: other entries, or those of two modules.
    """
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata() or {}
        named = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
    parts = {name.partition(".")[0] for name in named}
    odd = [name for name in named if not _ENTRY.fullmatch(name)]
    if odd or len(parts) != 1 or not parts <= {"transformer", "unet"}:
        raise ValueError(f"{file}: {(odd or sorted(parts))[:3]}; allowed: lora_A and lora_B of a transformer or a unet")
    (part,) = parts
    cut = len(part) + 1
    adapter = json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    return Lora(
        part=part,
        state={name[cut:]: tensor for name, tensor in named.items()},
        adapter={name[cut:]: value for name, value in adapter.items() if name.startswith(f"{part}.")},
        recipe=json.loads(header.get(RECIPE_KEY, "{}")),
    )


def save_kohya(lora: Lora, file: Path) -> Path:
    """Write the form of kohya's sd-scripts, which ComfyUI reads: `lora_down`, `lora_up` and `alpha` of every layer.

    For FLUX the names are those of Black Forest Labs, whose model fuses query, key and value into one layer: the
    updates of the three become one block-diagonal update of three times the rank, with exactly their effect.

    Raises:
        ValueError: the LoRA has biases, or layers that have no name there.
    """
    if biased := [name for name in lora.state if name.endswith(".bias")]:
        raise ValueError(f"{biased[0]}: the kohya form has no biases ({len(biased)} here); export the diffusers form")
    flat = ((layer, 0, 1) if lora.part == "unet" else bfl_name(layer) for layer in lora.layers)
    fused: dict[tuple[str, int], dict[int, str]] = {}
    for layer, (name, slot, slots) in zip(lora.layers, flat, strict=True):
        fused.setdefault((name, slots), {})[slot] = layer
    state: dict[str, Tensor] = {}
    for (name, slots), layers in fused.items():
        down, up, alpha = _fuse(lora, layers, slots)
        key = "lora_unet_" + name.replace(".", "_")
        state[f"{key}.lora_down.weight"] = down
        state[f"{key}.lora_up.weight"] = _halves_swapped(up) if name == SWAPPED else up
        state[f"{key}.alpha"] = torch.tensor(alpha)
    file.parent.mkdir(parents=True, exist_ok=True)
    return _write(file, state, lora.recipe, {})


def read_visualcloze(file: Path) -> Lora:
    """Read a LoRA for FLUX.1 as VisualCloze's code saves it: a `.pth` with the names of Black Forest Labs, scale 1.

    The update of a fused layer becomes one of each of its parts: all keep A, and share out the rows of B.

    Raises:
        ValueError: an entry that is not of a LoRA for FLUX.1.
    """
    saved: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    state: dict[str, Tensor] = {}
    for key, tensor in saved.items():
        entry = _ENTRY.fullmatch(key)
        if not entry:
            raise ValueError(f"{file}: {key}; allowed: lora_A and lora_B of the linear layers of FLUX.1")
        name, side = entry["layer"], entry["side"]
        layers = diffusers_names(name)
        rows = _halves_swapped(tensor) if name == SWAPPED and side == "B" else tensor
        if side == "B" and len(layers) > 1:
            widths = _widths(saved[f"{name}.lora_A.weight"].shape[1], len(rows))
            parts = torch.split(rows, widths)
        else:
            parts = (rows,) * len(layers)
        for layer, part in zip(layers, parts, strict=True):
            state[f"{layer}.lora_{side}.{entry['what']}"] = part.clone()  # a file cannot hold one tensor twice
    return Lora(part="transformer", state=state, adapter=_adapter_of(state), recipe={"imported_from": "VisualCloze"})


def _adapter_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    ends = ".lora_A.weight"
    ranks = {name.removesuffix(ends): tensor.shape[0] for name, tensor in state.items() if name.endswith(ends)}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{layer}": rank for layer, rank in ranks.items() if rank != usual}
    patterns = {"rank_pattern": others, "alpha_pattern": others} if others else {}
    bias = {"lora_bias": True} if any(name.endswith(".bias") for name in state) else {}
    return {"r": usual, "lora_alpha": usual, "target_modules": sorted(ranks), **patterns, **bias}


def _fuse(lora: Lora, layers: Mapping[int, str], slots: int) -> tuple[Tensor, Tensor, float]:
    """Down R x in, up out x R and alpha of the layer made of some parts; a part that is not there is not changed."""
    present = sorted(layers)
    downs, ups = ([lora.state[f"{layers[slot]}.lora_{side}.weight"] for slot in present] for side in "AB")
    scales = [lora.scale(layers[slot]) for slot in present]
    rank, hidden = sum(map(len, downs)), downs[0].shape[1]
    if slots == 1:
        return downs[0], ups[0], scales[0] * rank
    widths = _widths(hidden, (3 if slots == 3 else 7) * hidden)  # the MLP is four times as wide in all of FLUX.1
    blocks = torch.split(ups[0].new_zeros(sum(widths), rank), widths)
    column = 0
    for slot, up, scale in zip(present, ups, scales, strict=True):
        blocks[slot][:, column : column + up.shape[1]] = up * (scale / scales[0])
        column += up.shape[1]
    return torch.cat(downs), torch.cat(blocks), scales[0] * rank


def _widths(hidden: int, rows: int) -> list[int]:
    """Rows of query, key and value, and of what may come after them in a fused layer."""
    rest = rows - 3 * hidden
    return [hidden] * 3 + [rest] * (rest > 0)


def _halves_swapped(rows: Tensor) -> Tensor:
    """The last modulation gives shift, then scale at Black Forest Labs, and scale, then shift in diffusers."""
    return torch.cat(rows.chunk(2)[::-1])


def _write(file: Path, state: Mapping[str, Tensor], recipe: Mapping[str, Any], header: Mapping[str, str]) -> Path:
    said = {RECIPE_KEY: json.dumps(recipe, sort_keys=True)} if recipe else {}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, temporary, {"format": "pt", **header, **said}
    )
    os.replace(temporary, file)
    return file
