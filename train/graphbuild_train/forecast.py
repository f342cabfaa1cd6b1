"""Memory and time of a training step, computed from the model's layers before anything is loaded.

Work is counted to within 5 %, memory by running a pass on the meta device. Kernels need a little on top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from graphbuild_train.config import Quantise
from graphbuild_train.model_setup import repeated
from graphbuild_train.quantise import packed_bytes

GIB = 1 << 30
_VALUES = 8
"""Bytes of one trained parameter: value and gradient in float32."""
_PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
"""TFLOP/s of dense bfloat16 with float32 sums, from the producers' data sheets. The first name that fits counts."""


@dataclass(frozen=True)
class Work:
    """Size of a forward pass over one sample."""

    attention: Sequence[tuple[int, float, float]]
    """Width, number of queries and number of keys of each attention."""
    rows: Callable[[str], float]
    """Number of vectors that pass through a layer, by its name."""


MARGIN = 1.05
"""What kernels and the allocator take on top of a forecast."""
UTILISATION = 0.45
"""Share of a GPU's peak that training reaches, about."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Memory and work of one forward and backward pass. Sizes are in bytes."""

    base: int
    """Frozen weights that get the LoRA."""
    others: int
    """Weights beside them: text encoders and VAE."""
    lora: int
    """Trained weights, their gradients, the optimiser's moments, and further copies."""
    activations: int
    """Most that a pass, the VAE before it, or a swap of the weights for their average, holds at once."""
    flops: float
    """Of forward and backward pass; without what checkpointing computes again."""
    recomputed: float
    """FLOP that checkpointing adds."""

    @property
    def memory(self) -> int:
        """All of it, bytes."""
        return self.base + self.others + self.lora + self.activations

    def seconds(self, peak: float) -> float:
        """Time of the two passes on a device of `peak` TFLOP/s, of which it reaches `UTILISATION`."""
        return (self.flops + self.recomputed) / (peak * 1e12 * UTILISATION)

    def __str__(self) -> str:
        sizes = {
            "base": self.base, "encoders and VAE": self.others, "LoRA and Adam": self.lora, "pass": self.activations
        }  # fmt: skip
        parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in sizes.items())
        work = (self.flops + self.recomputed) / 1e12
        return f"memory {self.memory / GIB:.1f} GiB ({parts}); {work:,.1f} TFLOP a pass"


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What is kept of each trained parameter beside value, gradient and moments."""

    low: bool = False
    """Autocast's copy in half precision, for the length of a pass."""
    moments: int = 8
    """Bytes of the optimiser's state."""
    buckets: bool = False
    """The gradients' buckets of data-parallel training."""
    average: bool = False
    """A moving average, and while it is in use the weights that it replaces."""


def forecast(
    model: nn.Module, work: Work, *, activations: int, encoding: int = 0, batch: int = 1, checkpointing: int = 0,
    others: int = 0, copies: Copies | None = None, quantise: Quantise = "none",
    shards: int = 1,
) -> Forecast:  # fmt: skip
    """Forecast a forward and backward pass of an adapted model; it may be on the meta device.

    Args:
        work: of the model with one sample.
        activations: peak of the pass beyond all weights, bytes.
        encoding: peak of the VAE's pass before it.
        batch: samples in the pass.
        checkpointing: every how many blocks one is computed again in the backward pass; 0 is none.
        others: bytes of weights beside the model, such as text encoders and VAE.
        copies: of the trained parameters.
        quantise: how frozen linear layers are kept.
        shards: processes that share out the base; each puts two blocks together at a time.
    """
    copies, trained = copies or Copies(), sum(p.numel() for p in model.parameters() if p.requires_grad)
    forward, backward = flops_of(model, work)
    again = 1 / checkpointing if checkpointing else 0.0
    return Forecast(
        base=frozen_bytes(model, quantise) // shards + 2 * (shards > 1) * _block(model, quantise),
        others=others,
        lora=trained * (_VALUES + copies.moments + 4 * copies.buckets + 4 * copies.average),
        activations=max(
            activations + 2 * trained * copies.low + _unpacked(model, quantise), encoding, 4 * trained * copies.average
        ),
        flops=batch * (forward + backward),
        recomputed=batch * forward * again,
    )


def frozen_bytes(model: nn.Module, quantise: Quantise) -> int:
    """Bytes of a network's weights that are not trained."""
    layers = _frozen(model)
    saved = sum(layer.weight.nbytes - packed_bytes(layer, quantise) for layer in layers)
    return sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad) - saved


def _block(model: nn.Module, quantise: Quantise) -> int:
    """Bytes of the largest repeated block."""
    return max((frozen_bytes(block, quantise) for block in repeated(model)), default=0)


def _unpacked(model: nn.Module, quantise: Quantise) -> int:
    """Bytes of the largest layer while it is in use: unpacked, for int8 and fp8 by way of float32."""
    bytes_of = {"none": 0, "nf4": 2, "int8": 6, "fp8": 6}[quantise]
    return bytes_of * max((layer.in_features * layer.out_features for layer in _frozen(model)), default=0)


def _frozen(model: nn.Module) -> list[nn.Linear]:
    """Linear layers that are not trained; a head that is the embedding itself stays as it is."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return [layer for layer in linear if not layer.weight.requires_grad and id(layer.weight) not in embeddings]


def flops_of(model: nn.Module, work: Work) -> tuple[float, float]:
    """FLOP of the forward and of the backward pass over one sample; frozen weights get no gradient."""
    linear = {"base": 0.0, "lora": 0.0}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            kind = "lora" if ".lora_" in name else "base"
            linear[kind] += 2 * _weights(layer) * work.rows(name)
    attention = sum(4.0 * width * queries * keys for width, queries, keys in work.attention)
    return linear["base"] + linear["lora"] + attention, linear["base"] + 2 * linear["lora"] + 2 * attention


def _weights(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else layer.weight.numel()


def peak_of(device: str) -> float | None:
    """TFLOP/s in bfloat16 of a GPU by the name that CUDA gives it, or None if the table lacks it."""
    return next((peak for name, peak in _PEAKS.items() if name in device), None)


def transformer_work(model: nn.Module, image: int, text: int) -> Work:
    """Of a FLUX.1 or FLUX.2 transformer, whose attentions see text and image."""
    config: Any = model.config
    width, both = config.num_attention_heads * config.attention_head_dim, image + text
    count = config.num_layers + config.num_single_layers
    return Work([(width, both, both)] * count, partial(_transformer_rows, image=image, text=text))


def unet_work(model: nn.Module, image: int, text: int) -> Work:
    """Of a UNet: `image` is latent pixels."""
    config: Any = model.config
    rows = partial(_unet_rows, image=image, text=text, levels=len(config.block_out_channels))
    queries = {name: layer for name, layer in model.named_modules() if name.endswith((".attn1.to_q", ".attn2.to_q"))}
    sites = [
        (int(layer.out_features), rows(name), rows(name) if ".attn1." in name else text)
        for name, layer in queries.items()
    ]
    return Work(sites, rows)


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
