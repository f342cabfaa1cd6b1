"""Names of FLUX's linear layers: those of Black Forest Labs, and those of diffusers.

`*` stands for a block's number. One of their layers may be several of diffusers': then the rows of its weight are
theirs, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
}
_DOUBLE_1 = {
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_DOUBLE_2 = {
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE_1 = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_SINGLE_2 = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_AROUND = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_MODULATIONS_2 = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")

SWAPPED = "final_layer.adaLN_modulation.1"
"""The layer whose rows are shift, then scale at Black Forest Labs, and scale, then shift in diffusers."""


def bfl_name(layer: str) -> tuple[str, int, int]:
    """Their name for a layer of diffusers' FLUX.1 or FLUX.2, which part of theirs it is, and how many parts that has.

    Raises:
        ValueError: no such layer.
    """
    pattern, number = _numbered(layer)
    if pattern not in _THEIRS:
        raise ValueError(f"{layer}: no linear layer of FLUX in diffusers")
    name, slot, slots = _THEIRS[pattern]
    return name.replace("*", number), slot, slots


def of_flux2(layer: str) -> bool:
    """Whether only diffusers' FLUX.2, and not FLUX.1, has a layer of this name."""
    return _numbered(layer)[0] not in {name for layers in _FLUX1.values() for name in layers}


def diffusers_names(name: str) -> tuple[str, ...]:
    """The layers of diffusers' FLUX.1 that one of theirs is made of.

    Raises:
        ValueError: no such layer.
    """
    pattern, number = _numbered(name)
    if pattern not in _FLUX1:
        raise ValueError(f"{name}: no linear layer of FLUX.1 as Black Forest Labs names them")
    return tuple(layer.replace("*", number) for layer in _FLUX1[pattern])


def widths(hidden: int, rows: int) -> list[int]:
    """Rows of query, key and value, and of what may come after them in a fused layer."""
    rest = rows - 3 * hidden
    return [hidden] * 3 + [rest] * (rest > 0)


def halves_swapped(rows: Tensor) -> Tensor:
    """The last modulation gives shift, then scale at Black Forest Labs, and scale, then shift in diffusers."""
    return torch.cat(rows.chunk(2)[::-1])


def _numbered(name: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\w*blocks)\.(\d+)\.(.+)", name)
    return (f"{found[1]}.*.{found[3]}", found[2]) if found else (name, "")


def _blocks(theirs: str, ours: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.*.{name}": tuple(f"{ours}.*.{layer}" for layer in layers) for name, layers in names.items()}


def _embedders(ours: str, names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    numbered = {"in_layer": "linear_1", "out_layer": "linear_2"}
    return {
        f"{theirs}.{layer}": (f"{ours}.{name}.{linear}",)
        for theirs, name in names.items()
        for layer, linear in numbered.items()
    }


_TIME = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder"}
_FLUX1 = {
    **_blocks("double_blocks", "transformer_blocks", _DOUBLE | _DOUBLE_1),
    **_blocks("single_blocks", "single_transformer_blocks", _SINGLE_1),
    **_embedders("time_text_embed", {**_TIME, "vector_in": "text_embedder"}),
    **_AROUND,
}
_FLUX2 = {
    **_blocks("double_blocks", "transformer_blocks", _DOUBLE | _DOUBLE_2),
    **_blocks("single_blocks", "single_transformer_blocks", _SINGLE_2),
    **_embedders("time_guidance_embed", _TIME),
    **{f"{name}.lin": (f"{name}.linear",) for name in _MODULATIONS_2},
    **_AROUND,
}
_THEIRS = {
    layer: (name, slot, len(layers))
    for family in (_FLUX2, _FLUX1)
    for name, layers in family.items()
    for slot, layer in enumerate(layers)
}
