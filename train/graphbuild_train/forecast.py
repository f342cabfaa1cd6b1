"""Memory and time of a training step, computed from the model's layers before the first step.

A FLUX.1 step is counted to within 5 %; what activations take was measured on its layers in bfloat16 with fused
attention and is carried over to other models by width and number of blocks. Kernels need a little on top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffusers import FluxTransformer2DModel
from torch import nn

from graphbuild_train.config import Layers

GIB = 1 << 30
_KEPT = {"attn": 4.7, "attn_ff": 5.3, "all": 7.3}
"""GiB that a forward pass of FLUX.1 keeps for the backward pass, per 1,000 tokens, by adapted layers. peft's float32
copies of the inputs, about 2 more, are not in it: `peft.helpers.disable_input_dtype_casting` under autocast."""
_FLUX_WIDTHS = 57 * 3072
_LORA_BYTES = 16
"""Of one trained parameter: value, gradient and the two moments of Adam, all float32."""
_PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
"""TFLOP/s of dense bfloat16 with float32 sums, from the producers' data sheets. The first name that fits counts."""


@dataclass(frozen=True)
class Work:
    """Size of a forward pass over one sample."""

    attention: Sequence[tuple[int, float, float]]
    """Width, number of queries and number of keys of each attention."""
    rows: Callable[[str], float]
    """Number of vectors that pass through a layer, by its name."""
    text: int
    """Text tokens: an attention with that many keys attends to text alone, and keeps little for the backward pass."""


UTILISATION = 0.45
"""Share of a GPU's peak that training reaches, about."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Memory and work of one forward and backward pass. Sizes are in bytes."""

    base: int
    """Frozen weights."""
    lora: int
    """Trained weights, their gradients and the optimiser's moments."""
    activations: int
    flops: float
    """Of forward and backward pass; without what checkpointing computes again."""
    recomputed: float
    """FLOP that checkpointing adds."""
    estimated: bool
    """Whether the activations are carried over from FLUX.1."""

    @property
    def memory(self) -> int:
        """All of it, bytes."""
        return self.base + self.lora + self.activations

    def seconds(self, peak: float) -> float:
        """Time of the two passes on a device of `peak` TFLOP/s, of which it reaches `UTILISATION`."""
        return (self.flops + self.recomputed) / (peak * 1e12 * UTILISATION)

    def __str__(self) -> str:
        sizes = {"base": self.base, "LoRA": self.lora, "activations": self.activations}
        parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in sizes.items())
        how = ", estimated" if self.estimated else ""
        work = (self.flops + self.recomputed) / 1e12
        return f"memory {self.memory / GIB:.1f} GiB ({parts}{how}); {work:,.1f} TFLOP a pass"


def forecast(
    model: nn.Module, layers: Layers, work: Work, *, batch: int = 1, checkpointing: int = 0, others: int = 0
) -> Forecast:
    """Forecast a forward and backward pass of an adapted model; it may be on the meta device.

    Args:
        layers: the preset that was adapted.
        work: of the model with one sample.
        batch: samples in the pass.
        checkpointing: every how many blocks one is computed again in the backward pass; 0 is none.
        others: bytes of weights beside the model, such as text encoders and VAE.
    """
    parameters = list(model.parameters())
    linear = {"base": 0.0, "lora": 0.0}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            kind = "lora" if ".lora_" in name else "base"
            linear[kind] += 2 * layer.weight.numel() * work.rows(name)
    attention = sum(4.0 * width * queries * keys for width, queries, keys in work.attention)
    blocks = [width * queries for width, queries, keys in work.attention if keys != work.text]
    kept = _KEPT[layers] * GIB / 1000 / _FLUX_WIDTHS * sum(blocks)
    again = 1 / checkpointing if checkpointing else 0.0
    if checkpointing:  # of the blocks computed again the inputs in bfloat16, and the inside of one
        kept = (1 - again) * kept + again * 2 * sum(blocks) + kept / len(blocks)
    forward = linear["base"] + linear["lora"] + attention
    backward = linear["base"] + 2 * linear["lora"] + 2 * attention  # frozen weights get no gradient
    return Forecast(
        base=others + sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad),
        lora=_LORA_BYTES * sum(p.numel() for p in parameters if p.requires_grad),
        activations=round(batch * kept),
        flops=batch * (forward + backward),
        recomputed=batch * forward * again,
        estimated=not isinstance(model, FluxTransformer2DModel),
    )


def peak_of(device: str) -> float | None:
    """TFLOP/s in bfloat16 of a GPU by the name that CUDA gives it, or None if the table lacks it."""
    return next((peak for name, peak in _PEAKS.items() if name in device), None)


def transformer_work(model: nn.Module, image: int, text: int) -> Work:
    """Of a FLUX.1 or FLUX.2 transformer, whose attentions see text and image."""
    config: Any = model.config
    width, both = config.num_attention_heads * config.attention_head_dim, image + text
    count = config.num_layers + config.num_single_layers
    return Work([(width, both, both)] * count, partial(_transformer_rows, image=image, text=text), text)


def unet_work(model: nn.Module, image: int, text: int) -> Work:
    """Of a UNet: `image` is latent pixels."""
    config: Any = model.config
    rows = partial(_unet_rows, image=image, text=text, levels=len(config.block_out_channels))
    queries = {name: layer for name, layer in model.named_modules() if name.endswith((".attn1.to_q", ".attn2.to_q"))}
    sites = [
        (int(layer.out_features), rows(name), rows(name) if ".attn1." in name else text)
        for name, layer in queries.items()
    ]
    return Work(sites, rows, text)


def _transformer_rows(name: str, *, image: int, text: int) -> float:
    if "norm" in name or "modulation" in name or name.startswith("time_"):
        return 1
    if name.startswith("single_"):
        return image + text
    return text if "context" in name or ".add_" in name or "to_add_out" in name else image


def _unet_rows(name: str, *, image: int, text: int, levels: int) -> float:
    if "time_emb" in name or "add_embedding" in name:
        return 1
    if ".attn2.to_k" in name or ".attn2.to_v" in name:
        return text
    block = re.match(r"(down|up|mid)_block(?:s\.(\d+))?", name)
    if not block:
        return image
    last = levels - 1
    level = {"down": int(block[2] or 0), "mid": last, "up": last - int(block[2] or 0)}[block[1]]
    level += ("downsamplers" in name) - ("upsamplers" in name)  # counted where their output is
    return float(image / 4**level)
