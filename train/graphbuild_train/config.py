"""A training run as a value. Every field has the default of the VisualCloze preset, at sizes that fit one GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from graphbuild.tasks.config import CellConfig, SamplerConfig

Base = Literal["flux_fill", "flux_dev", "sdxl", "flux2_klein"]
Objective = Literal["visualcloze_fill", "visualcloze_dev", "onepic", "onediffusion", "flux2_klein"]
Layers = Literal["attn", "attn_ff", "all"]
Schedule = Literal["constant", "linear", "cosine"]

MODELS: Mapping[Base, str] = {
    "flux_fill": "black-forest-labs/FLUX.1-Fill-dev",
    "flux_dev": "black-forest-labs/FLUX.1-dev",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux2_klein": "black-forest-labs/FLUX.2-klein-base-4B",
}
"""The checkpoint of each base unless a recipe names another one."""


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
    """Largest norm of the gradient; a larger one is scaled down to it. 0 means no limit."""
    schedule: Schedule = "constant"
    """Of the learning rate after the warm-up: constant, or down to zero after the last step."""
    warmup: int = 0
    """Steps over which the learning rate rises to its value."""
    ema: float = 0.0
    """Decay of a moving average of the LoRA, such as .999; it is then what samples, validation and the export use."""

    def __post_init__(self) -> None:
        _at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip)
        _at_least(0, warmup=self.warmup, ema=self.ema)
        if self.ema >= 1:
            raise ValueError(f"ema: {self.ema!r}; allowed: a decay below 1, 0 for none")

    def rate(self, done: int, steps: int) -> float:
        """The learning rate of the step after `done` ones, of `steps`; a function, so that a resume needs no state."""
        if done < self.warmup:
            return self.learning_rate * (done + 1) / self.warmup
        share = (done - self.warmup) / max(1, steps - self.warmup)
        decays = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        return self.learning_rate * decays[self.schedule]


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run leaves behind on its way. Nothing here changes the LoRA that comes out. 0 means never, even at the
    end; only the last step always has a checkpoint."""

    checkpoint: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    validate: int = 500
    """Steps between validations; there is one before any training, and one after the last step."""
    tasks: int = 32
    """Grid tasks of a validation, each at 8 noise levels."""
    sample: int = 500
    """Steps between sampled pictures; there are some after the last step, too."""
    samples: int = 4
    """Grid tasks sampled each time."""
    sample_steps: int = 30
    sample_guidance: float = 30.0
    """Of the sampler. FLUX.1-Fill is sampled at 30 and trained at 1; SDXL and FLUX.2 want about 5."""

    def __post_init__(self) -> None:
        _at_least(0, checkpoint=self.checkpoint, validate=self.validate, sample=self.sample)
        _at_least(1, keep=self.keep, tasks=self.tasks, samples=self.samples, sample_steps=self.sample_steps)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides which LoRA comes out, except the graph and its snapshot."""

    base: Base = "flux_fill"
    """The model family that the LoRA is for."""
    model: str | None = None
    """A diffusers folder or hub repository of that family; by default the one of `MODELS`. `tiny` is made up in the
    run's folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen base and of activations. The LoRA, its optimiser and the loss are float32."""
    objective: Objective = "visualcloze_fill"
    """What is noised, at which time, and where the loss is taken."""
    paths: str = "graph200k"
    """The task list: a shipped one by name, or a `.yaml` file, which a recipe may name by where it lies beside it."""
    resolution: int = 384
    """Side of a square with the area of one cell, in pixels."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(split="train"))
    """How grid tasks are drawn: masks, rows, dropped words, splits, held-out tasks."""
    cells: CellConfig = field(default_factory=CellConfig)
    """How pictures become cells, and what is shown in a hole."""
    walks: int = 0
    """Train on this many grid tasks again and again, a multiple of `batch`; 0 never repeats one."""
    shift: Literal["dynamic", "none"] | float | None = None
    """Of noise levels: by the number of image tokens, as at inference; none, as VisualCloze was released; or a factor.
    By default the objective's own."""
    guidance: float = 1.0
    """What a guidance-distilled base is told while training; sampling has its own."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: int = 20_000
    batch: int = 64
    """Grid tasks per optimiser step, over all processes. They share one path and geometry."""
    micro_batch: int = 1
    """Grid tasks per forward pass; changes speed and memory, not the result."""
    checkpointing: int = 0
    """Compute every k-th block again in the backward pass instead of keeping its activations; 1 is every block."""
    compile: bool = False
    """Compile the model's repeated blocks with torch.compile, each kind once."""
    workers: int = 0
    """Processes that decode grid tasks; 0 decodes in threads of the training process."""
    cache_gb: float = 0.0
    """Main memory for what the VAE said of pictures it has seen, in GB; only with `walks`."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    seed: int = 0

    @property
    def checkpoint_model(self) -> str:
        """`model` with its default filled in."""
        return self.model or MODELS[self.base]

    def __post_init__(self) -> None:
        _at_least(1, resolution=self.resolution, steps=self.steps, batch=self.batch, micro_batch=self.micro_batch)
        _at_least(0, guidance=self.guidance, seed=self.seed, walks=self.walks, cache_gb=self.cache_gb)
        _at_least(0, checkpointing=self.checkpointing, workers=self.workers)
        if self.walks % self.batch:
            raise ValueError(f"walks: {self.walks}; allowed: a multiple of batch, {self.batch}, or 0")
        if self.cache_gb and not self.walks:
            raise ValueError(f"cache_gb: {self.cache_gb}; allowed only with walks: no picture would come again")
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch}; allowed: a divisor of batch, {self.batch}")
        if isinstance(self.shift, int | float):
            _at_least(1, shift=self.shift)


def config_from(document: Mapping[str, Any]) -> TrainConfig:
    """The config that a YAML recipe says, strictly; fields it leaves out keep their defaults.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or range; the message lists what is valid.
    """
    _refuse_unknown("the config", TrainConfig, document)
    values = dict(document)
    if isinstance(values.get("sampler"), Mapping):
        values["sampler"] = {"split": "train", **values["sampler"]}
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
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
