"""A training run as a value. Every field has the default of the VisualCloze preset, at sizes that fit one GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from graphbuild.config.strict_yaml import Strict, build
from graphbuild.tasks.config import CellConfig, DataConfig, SamplerConfig

Layers = Literal["attn", "attn_ff", "all"] | tuple[str, ...]
"""Of a LoRA: a preset, or patterns of names."""
Loggers = Literal["tensorboard", "wandb", "trackio"]
Schedule = Literal["constant", "linear", "cosine"]
Mix = Literal["pass", "step"]
Quantise = Literal["none", "int8", "fp8", "nf4"]
Draws = Literal["shared", "separate"]
Text = Literal["device", "cpu", "ahead"]

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Strict):
    """The trained part. Its parameters are float32 whatever the base is kept in: bfloat16 loses small steps."""

    layers: Layers = "attn_ff"
    """Which linear layers are adapted: `attn`, attention; `attn_ff`, feed-forward layers as well; `all`, every one
    (VisualCloze); or a list of patterns, such as [attn.to_q, "transformer_blocks.1?.*"], each of a name or of its end
    after a dot."""
    rank: Count = 64
    alpha: Count | None = None
    """The update is scaled by alpha / rank. None is the rank: some readers of LoRA files ignore another alpha."""
    bias: bool = False
    """Whether the up-projections have a bias, as VisualCloze's have."""
    rslora: bool = False
    """The update is scaled by alpha / sqrt(rank) (arXiv 2312.03732)."""
    init: Literal["zero", "pissa"] = "zero"
    """What the update begins as: zero, or the largest singular components of each weight, which are taken out of the
    frozen one (PiSSA, arXiv 2404.02948). Files then hold the difference, a LoRA of twice the rank that any reader adds
    to the weights as they were."""
    dora: bool = False
    """Refused: only some readers of LoRA files would give what was trained; see the message."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dora:
            raise ValueError(
                "dora: True; allowed: False. Of what is exported, diffusers' importer of kohya's form drops magnitudes "
                "(dora_scale), and ComfyUI divides by the norm of the base's weight, where training divided by that of "
                "the updated one; use rslora or init: pissa"
            )
        if self.init == "pissa" and self.bias:
            raise ValueError("init: 'pissa'; allowed: zero with bias, as peft has it")
        if not self.layers:
            raise ValueError("layers: (); allowed: attn, attn_ff, all, or patterns of names")

    @property
    def scale_alpha(self) -> int:
        """`alpha` with its default filled in."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def where(self) -> str:
        """`layers` in words."""
        return self.layers if isinstance(self.layers, str) else ", ".join(self.layers)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Strict):
    """AdamW, or another optimiser."""

    name: str = "adamw"
    """`adamw`; `adamw_8bit`, whose moments take a quarter of the memory (bitsandbytes); or the class of an optimiser as
    `module:Class`, such as `prodigyopt:Prodigy`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its class, such as `betas`."""
    learning_rate: NotNegative = 1e-4
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 2.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0 means no limit."""
    schedule: Schedule = "constant"
    """Of the learning rate after the warm-up: constant, or down to zero after the last step."""
    warmup: Whole = 0
    """Steps over which the learning rate rises to its value."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the LoRA, such as .999; it is then what samples, validation and the export use."""

    def rate(self, done: int, steps: int) -> float:
        """The learning rate of the step after `done` ones, of `steps`; a function, so that a resume needs no state."""
        if done < self.warmup:
            return self.learning_rate * (done + 1) / self.warmup
        share = (done - self.warmup) / max(1, steps - self.warmup)
        decays = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        return self.learning_rate * decays[self.schedule]


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Strict):
    """What a run records on the way. Nothing here changes the resulting LoRA. 0 means never, even at the end; only the
    last step always has a checkpoint."""

    checkpoint: Whole = 500
    """Steps between checkpoints."""
    minutes: NotNegative = 30.0
    """A checkpoint is also written when the last one is this old."""
    keep: Count = 3
    """Newest checkpoints that are kept."""
    loggers: tuple[Loggers, ...] = ("tensorboard",)
    """Where metrics go beside `metrics.jsonl`, through accelerate's trackers."""
    validate: Whole = 500
    """Steps between validations; there is one before any training, and one after the last step."""
    tasks: Count = 32
    """Grid tasks of a validation, each at 8 noise levels."""
    sample: Whole = 500
    """Steps between sampled pictures; there are some after the last step, too."""
    samples: Count = 4
    """Grid tasks sampled each time."""
    sample_steps: Count | None = None
    sample_guidance: NotNegative | None = None
    """Of the sampler; by default those of the base. FLUX.1-Fill is sampled at 30 and trained at 1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Strict):
    """Everything that determines the resulting LoRA, except the graph and its snapshot."""

    base: str = "flux_fill"
    """The model family that the LoRA is for: a name, `module:Class`, or an entry point of `graphbuild.bases`."""
    model: str | None = None
    """A diffusers folder or hub repository of that family; by default the base's `checkpoint`. `tiny` is made up in the
    run's folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen base and of activations. The LoRA, its optimiser and the loss are float32."""
    quantise: Quantise = "none"
    """Of the linear layers of the frozen base and of its large text encoder: int8 or fp8 by torchao, nf4 by
    bitsandbytes. It saves memory, not time."""
    text: Text = "device"
    """Where text encoders are: on the GPU; `cpu`, in main memory, from where each layer visits the GPU when it is
    asked (not quantised then); or `ahead`, there as well, and asked for all instructions of the run before its first
    step, with `text_cache_gb`."""
    objective: str = "visualcloze_fill"
    """Which tokens are noised, at which timesteps, and where the loss applies: a name, `module:NAME`, or an entry point
    of `graphbuild.objectives`."""
    paths: str = "graph200k"
    """The task list: a shipped one by name, or a `.yaml` file, by a path relative to the recipe or to the working
    folder."""
    data: tuple[DataConfig, ...] = ()
    """Graphs that are trained on together, instead of `--graph`: each with its task list (`paths` where it names none)
    and weight."""
    resolution: Count = 384
    """Side of a square with the area of one cell, in pixels."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(split="train"))
    """How grid tasks are drawn: masks, rows, dropped words, splits, held-out tasks."""
    cells: CellConfig = field(default_factory=CellConfig)
    """How pictures are fitted to cells, and how holes are filled."""
    walks: Whole = 0
    """Train in rounds over this many grid tasks, a multiple of `batch`; 0 never repeats a task."""
    shift: Literal["dynamic", "none"] | Annotated[float, Field(ge=1)] | None = None
    """Shift of noise levels: `dynamic`, by the number of image tokens, as at inference; `none`, as in VisualCloze's
    released code; or a factor. By default the objective's own."""
    logit_mean: float = 0.0
    """Added to the logit of the noise levels of a flow, beside what `shift` adds; of training alone."""
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of that logit: levels of a flow are logit-normal."""
    min_snr: NotNegative = 0.0
    """Largest signal-to-noise ratio at which a step of SDXL counts in full, such as 5; less noisy ones count less
    (min-SNR, arXiv 2303.09556). 0 lets all count alike. Validation losses are not weighed."""
    draws: Draws = "shared"
    """Of the VAE's posterior of a given row, for a base that gets it twice, noised and as a condition: `shared`, one
    draw as in diffusers' pipeline, or `separate`, two as in VisualCloze's code."""
    guidance: NotNegative = 1.0
    """Guidance value that a guidance-distilled base gets in training; sampling has its own."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    init: str | None = None
    """A LoRA to go on from: of diffusers, of kohya's tools, or VisualCloze's .pth; layers and ranks as in `lora`."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: Count = 20_000
    batch: Count = 64
    """Grid tasks per optimiser step, over all processes."""
    micro_batch: Count = 1
    """Grid tasks per forward pass, of one path and number of rows; with `sampler: {repeat: geometry}` of one number of
    rows and columns, each of its own path, so that many in a pass mix as well as few. With cells of the pictures' own
    shape, those that differ in size go through the model one after the other."""
    mix: Mix = "pass"
    """What shares one path and number of rows, or what `sampler.repeat` says: `pass`, the `micro_batch` grid tasks of a
    forward pass, so that a step mixes tasks, with `micro_batch` 1 independently as in VisualCloze's code; or `step`,
    the whole batch, so that `micro_batch` changes speed and memory alone."""
    checkpointing: Whole | Literal["auto"] = 0
    """Compute every k-th block again in the backward pass instead of keeping its activations; 1 is every block. `auto`
    is the least of 0, 4, 2, 1 that the forecast says fits the GPU."""
    shard: bool = False
    """Share the frozen base out among the processes (FSDP2) instead of one copy each, for GPUs that cannot hold it;
    each block is gathered when it is used."""
    compile: bool = False
    """Compile the model's repeated blocks with torch.compile, each kind once."""
    workers: Whole = 0
    """Processes that decode grid tasks; 0 decodes in threads of the training process."""
    cache_gb: NotNegative = 0.0
    """Main memory for cached VAE posteriors, in GB; only with `walks`. What is cached is not decoded again."""
    cache_disk_gb: NotNegative = 0.0
    """Disk for cached VAE posteriors, in GB. They are found again by later runs with the same graph and VAE."""
    text_cache_gb: NotNegative = 0.0
    """Disk for cached embeddings of instructions, in GB; text encoders are not asked twice."""
    cache_folder: str | None = None
    """Where both are, so that runs can share them; by default `cache` in the run's folder."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    seed: Whole = 0

    @property
    def path_repeat(self) -> int:
        """Consecutive grid tasks that share path and number of rows."""
        return self.micro_batch if self.mix == "pass" else self.batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.walks % self.batch:
            raise ValueError(f"walks: {self.walks}; allowed: a multiple of batch, {self.batch}, or 0")
        if self.cache_gb and not self.walks:
            raise ValueError(f"cache_gb: {self.cache_gb}; allowed only with walks: no picture would come again")
        if self.text == "ahead" and not self.text_cache_gb:
            raise ValueError("text: 'ahead'; allowed only with text_cache_gb, which holds what is encoded ahead")
        if self.lora.init == "pissa" and (self.quantise != "none" or self.init):
            other = f"init: {self.init}" if self.init else f"quantise: {self.quantise}"
            raise ValueError(
                f"lora.init: 'pissa'; allowed: zero with {other}: PiSSA begins with the base's own weights"
            )
        if self.shard and self.cells.cell_fit == "aspect" and self.micro_batch > 1:
            raise ValueError(
                f"micro_batch: {self.micro_batch}; allowed: 1 with shard and cells.cell_fit aspect, as processes that "
                "share out a base make the same number of passes"
            )
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch}; allowed: a divisor of batch, {self.batch}")


def config_from(document: Mapping[str, Any]) -> TrainConfig:
    """The config from the contents of a recipe, read strictly; fields that are left out keep their defaults.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or range; the message lists what is valid.
    """
    values = dict(document)
    if isinstance(values.get("sampler"), Mapping):
        values["sampler"] = {"split": "train", **values["sampler"]}
    return build(TrainConfig, values)
