"""PiSSA (arXiv 2404.02948): an update that begins as the largest singular components of each weight, which are taken
out of the frozen one.

What a run leaves is the difference to that start, W + scale (B A - B0 A0): a LoRA of twice the rank for the weights as
they were, which any reader of LoRA files adds like another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_A, _B = ".lora_A.weight", ".lora_B.weight"


@torch.no_grad()
def take_out(model: nn.Module, adapter: str) -> None:
    """Subtract the update of an adapted model from its frozen weights, in place, in peft's order of operations."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight: Any = module.get_base_layer().weight
            down, up = (side[adapter].weight for side in (module.lora_A, module.lora_B))
            weight.copy_(weight.float() - module.scaling[adapter] * up @ down)


def difference(state: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An update less its start, of twice the rank; what began at zero, and so has an empty start, as it is."""
    made = dict(state)
    for layer in _layers(start) if state else ():
        down, up = state[layer + _A], state[layer + _B]
        made[layer + _A] = torch.cat([down, start[layer + _A].to(down)])
        made[layer + _B] = torch.cat([up, -start[layer + _B].to(up)], 1)
    return made


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The update and its start that `difference` put together."""
    update, start = dict(state), {}
    for layer in _layers(state):
        (update[layer + _A], start[layer + _A]), (update[layer + _B], less) = (
            state[layer + _A].chunk(2), state[layer + _B].chunk(2, 1)
        )  # fmt: skip
        start[layer + _B] = -less
    return update, start


def doubled(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Ranks and alphas of a difference, from those of the update."""
    grown = math.sqrt(2) if adapter.get("use_rslora") else 2
    ranks = {"r": 2 * adapter["r"], "lora_alpha": grown * adapter["lora_alpha"]}
    patterns = {"rank_pattern": 2.0, "alpha_pattern": grown}
    narrow = {
        name: {layer: type(value)(factor * value) for layer, value in adapter[name].items()}
        for name, factor in patterns.items()
        if name in adapter
    }
    return {**adapter, **ranks, **narrow}


def _layers(state: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(_A) for name in state if name.endswith(_A)]
