"""A training run as a value. Every field has the default of the VisualCloze preset, at sizes that fit one GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

Base = Literal["flux_fill", "flux_dev", "sdxl", "flux2_klein"]
Objective = Literal["visualcloze_fill", "visualcloze_dev", "onepic", "onediffusion"]
Layers = Literal["attn", "attn_ff", "all"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The trained part. Its parameters are float32 whatever the base is kept in: bfloat16 loses small steps."""

    layers: Layers = "attn_ff"
    """Which linear layers are adapted: attention, attention and feed-forward, or every one (VisualCloze)."""
    rank: int = 64
    alpha: int | None = None
    """The update is scaled by alpha / rank. None is the rank: some readers of LoRA files ignore another alpha."""
    bias: bool = False
    """Whether the up-projections have a bias, as VisualCloze's have."""

    def __post_init__(self) -> None:
        _at_least(1, rank=self.rank, alpha=self.scale_alpha)

    @property
    def scale_alpha(self) -> int:
        """`alpha` with its default filled in."""
        return self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 2.0
    """Largest norm of the gradient; a larger one is scaled down to it."""

    def __post_init__(self) -> None:
        _at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides which LoRA comes out, except the graph and its snapshot."""

    base: Base = "flux_fill"
    """The model family that the LoRA is for."""
    objective: Objective = "visualcloze_fill"
    """What is noised, at which time, and where the loss is taken."""
    paths: str = "graph200k"
    """The task list: a shipped one by name, or a `.yaml` file."""
    resolution: int = 384
    """Side of a square with the area of one cell, in pixels."""
    shift: Literal["dynamic", "none"] | float = "dynamic"
    """Of noise levels: by the number of image tokens, as at inference; none, as VisualCloze was released; or fixed."""
    guidance: float = 1.0
    """What a guidance-distilled base is told while training; sampling has its own."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: int = 20_000
    batch: int = 64
    """Grid tasks per optimiser step, over all processes. They share one path and geometry."""
    micro_batch: int = 1
    """Grid tasks per forward pass; changes speed and memory, not the result."""
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(1, resolution=self.resolution, steps=self.steps, batch=self.batch, micro_batch=self.micro_batch)
        _at_least(0, guidance=self.guidance, seed=self.seed)
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch}; allowed: a divisor of batch, {self.batch}")
        if not isinstance(self.shift, str):
            _at_least(1, shift=self.shift)


def config_from(document: Mapping[str, Any]) -> TrainConfig:
    """The config that a YAML recipe says, strictly; fields it leaves out keep their defaults.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or range; the message lists what is valid.
    """
    _refuse_unknown("the config", TrainConfig, document)
    try:
        return TypeAdapter(TrainConfig).validate_python(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if str(part).isidentifier()]
        what = [str(first["ctx"]["error"])] if first["type"] == "value_error" else [repr(first["input"]), first["msg"]]
        raise ValueError(": ".join([*where, *what])) from error


def _refuse_unknown(where: str, cls: type, document: object) -> None:
    valid = [f.name for f in fields(cls)]
    if not isinstance(document, Mapping):
        raise ValueError(f"{where}: {document!r}; allowed: a mapping with the keys {', '.join(valid)}")
    if unknown := [key for key in document if key not in valid]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; valid: {', '.join(valid)}")
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint) and isinstance(hint, type) and name in document:
            _refuse_unknown(name, hint, document[name])


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name}: {value!r}; allowed: a finite number >= {least}")
