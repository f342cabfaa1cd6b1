"""A model family as the trainer uses it: encode grids, predict, name its layers, sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from graphbuild.data import GridBatch
from graphbuild.tasks.config import HoleFill
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases.sdedit import enlarged
from graphbuild_train.batch import LatentBatch, stacked
from graphbuild_train.config import Draws, Layers, Quantise, Text, TrainConfig, WatchConfig
from graphbuild_train.disk_cache import DiskCache
from graphbuild_train.forecast import Work
from graphbuild_train.latent_cache import LatentCache
from graphbuild_train.model_setup import place
from graphbuild_train.objective import Objective, generators
from graphbuild_train.planned import planned_parts
from graphbuild_train.quantise import keep_layout, pack, while_loading

if TYPE_CHECKING:
    from PIL import Image

RECENT = 32
"""Instructions whose embeddings are kept: tasks whose words are left out share theirs. 4 MB each for FLUX.1."""
UNKNOWN_LICENCE = {"license": "other", "license_name": "see-base-model"}


class Base(ABC):
    """One frozen model, on one device.

    Args:
        pipe: diffusers' pipeline that the checkpoint was loaded as; it owns all modules.
        objective: what the model is trained for, one of the class's `objectives`.
        guidance: the guidance value that a guidance-distilled model gets in training.
        hole_fill: the colour of holes, for a model that gets them as pixels.

    Attributes:
        model: the module that gets the LoRA, called by `predict`. A wrapper (DDP, compiled) may be put in its place;
            `bare` stays the module itself.
        cache: of VAE posteriors; by default it keeps nothing.
        texts, cut: instructions encoded so far, and those that are longer than the text encoder reads.
        said: cache of embeddings of instructions; None without one.
        draws: of posteriors, see `TrainConfig`.
    """

    checkpoint: ClassVar[str]
    """Hub repository that is trained on unless a recipe names another model."""
    licence: ClassVar[Mapping[str, str]] = UNKNOWN_LICENCE
    """The checkpoint's licence, which its LoRAs inherit, as front matter of a model card."""
    pipeline: ClassVar[str]
    """Name of the pipeline in diffusers that loads the checkpoint and its LoRAs."""
    objectives: ClassVar[tuple[str, ...]]
    """Names of the objectives it can be trained for, its usual one first."""
    large_encoders: ClassVar[tuple[str, ...]] = ()
    """The pipeline's names for text encoders of billions of parameters, which are quantised with the base."""
    denoiser: ClassVar[str] = "transformer"
    """The pipeline's name for the module that gets the LoRA."""
    attention: ClassVar[tuple[str, ...]]
    """Suffixes of the names of attention's linear layers."""
    feed_forward: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the feed-forward layers that `attn_ff` adds."""
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {}
    """Networks of the pipeline that keep a dtype of their own, by name."""
    token: ClassVar[int] = 16
    """Side of a token in pixels."""
    multiple: ClassVar[int] = 16
    """Sides of a cell are multiples of this, in pixels: a hole would end inside a token."""
    text_tokens: ClassVar[int] = 512
    """Tokens of an instruction, with padding."""
    sample_steps: ClassVar[int] = 30
    sample_guidance: ClassVar[float] = 5.0
    """Steps and guidance of its sampler, unless a recipe says others."""
    editor: ClassVar[str] = ""
    """Name of the pipeline in diffusers that makes a given picture anew in part; empty if there is none."""
    load_options: ClassVar[str] = ""
    """Further arguments of `from_pretrained` in a model card, such as `resolution={resolution}`."""
    example: ClassVar[str] = ""
    """Python for a model card that fills a cell with the pipeline `pipe`; empty if the pipeline has no such sampler."""

    def __init__(
        self, pipe: Any, objective: Objective, *, guidance: float = 1.0, hole_fill: HoleFill = "black"
    ) -> None:
        self.pipe, self.objective, self.guidance, self.hole_fill = pipe, objective, guidance, hole_fill
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        self.bare: nn.Module = getattr(pipe, self.denoiser)
        self.model = self.bare
        self.cache = LatentCache(0.0)
        self.texts = self.cut = 0
        self.said: DiskCache | None = None
        self._recent = lru_cache(RECENT)(self._known_words)
        self.draws: Draws = "shared"

    @classmethod
    def load(
        cls, model: str, objective: Objective, *, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16, revision: str | None = None, guidance: float = 1.0,
        hole_fill: HoleFill = "black", quantise: Quantise = "none", text: Text = "device", shard: bool = False,
    ) -> Self:  # fmt: skip
        """Load from a diffusers folder or hub id, safetensors only, frozen, in `dtype` on `device`.

        Args:
            quantise: the linear layers of the base, and of large text encoders on the device.
            text: where text encoders are; other than `device`, in main memory.
            shard: the base stays in main memory, until it is shared out among processes.
        """
        kept: Any = {"default": dtype, **cls.dtypes} if cls.dtypes else dtype
        encoders = cls.large_encoders if text == "device" else ()
        quantised = while_loading(quantise, cls.denoiser, encoders, dtype, device)
        pipe = cls.pipeline_class().from_pretrained(
            model, revision=revision, dtype=kept, use_safetensors=True, quantization_config=quantised
        )
        pack(getattr(pipe, cls.denoiser), quantise)
        for encoder in encoders:
            keep_layout(getattr(pipe, encoder))
        place(pipe, device, offloaded=text != "device", left=cls.denoiser if shard else "")
        return cls(pipe, objective, guidance=guidance, hole_fill=hole_fill)

    @classmethod
    def planned(
        cls, model: str, objective: Objective, *, dtype: torch.dtype = torch.bfloat16, revision: str | None = None
    ) -> Self:
        """The same networks on the meta device, from the checkpoint's configs: nothing is loaded."""
        parts = planned_parts(model, revision, {"default": dtype, **cls.dtypes})
        return cls(SimpleNamespace(components=parts, **parts), objective)

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse a recipe that this base cannot train, before it is loaded.

        Raises:
            ValueError: a field and its value, and what is allowed.
        """
        if config.resolution % cls.multiple:
            raise ValueError(f"resolution: {config.resolution}; allowed: multiples of {cls.multiple}")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.bare.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights, packed ones aside; those of a LoRA are float32."""
        frozen = (weight for name, weight in self.bare.named_parameters() if "lora_" not in name)
        return next(weight.dtype for weight in frozen if weight.is_floating_point())

    def targets(self, layers: Layers) -> list[str]:
        """Full names of the linear layers that a LoRA goes into.

        Raises:
            ValueError: a pattern that fits none.
        """
        linears = [name for name, module in self.bare.named_modules() if isinstance(module, nn.Linear)]
        if layers == "all":
            return linears
        if not isinstance(layers, str):
            return _fitting(layers, linears)
        wanted = self.attention + (self.feed_forward if layers == "attn_ff" else ())
        return [name for name in linears if f".{name}".endswith(tuple(f".{end}" for end in wanted))]

    def work(self, image: int, text: int) -> Work | None:
        """Work of a forward pass over one sample of so many image and text tokens; None if it is unknown."""
        return None

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch | None:
        """A batch of `count` grids of square cells, all zeros, as `encode` would give it; None if it is unknown."""
        return None

    def unit(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        """Height and width in pixels of what the VAE encodes at once of a grid of square cells."""
        return side, side

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(self.pipe.vae.config.latent_channels)

    def encoding(self, picture: Tensor) -> Tensor:
        """Parameters of the VAE's posterior of a picture: 1 x 3 x h x w to 1 x 2 `latent_channels` x h/8 x w/8."""
        parameters: Tensor = self.pipe.vae.encode(picture).latent_dist.parameters
        return parameters

    @cached_property
    def _vae_dtype(self) -> torch.dtype:
        """Asked once: diffusers looks at every module."""
        dtype: torch.dtype = self.pipe.vae.dtype
        return dtype

    def posteriors(self, grid: GridBatch) -> list[list[DiagonalGaussianDistribution]]:
        """The VAE's posterior of every unit of every sample, from the cache or its pixels.

        Each is encoded alone, so that its bits depend neither on the batch nor on the cache.
        """
        pictures = self.pictures(grid)
        places = {sample: at for at, sample in enumerate(grid.decoded.tolist())}

        def posterior(key: str, unit: int, sample: int) -> DiagonalGaussianDistribution:
            def encode() -> Tensor:
                place = places[sample]
                picture = pictures[unit][place : place + 1].to(self._vae_dtype)
                return self.encoding(picture)

            return DiagonalGaussianDistribution(self.cache.get(key, encode).to(self.device))

        return [
            [posterior(key, unit, sample) for unit, key in enumerate(keys)]
            for sample, keys in enumerate(self._keys(grid, len(pictures)))
        ]

    def drawn(self, grid: GridBatch, seed: int) -> list[Tensor]:
        """A sample of the posterior of each unit, B x C x h x w, drawn by walk.

        Raises:
            ValueError: units of the samples differ in size.
        """
        return self.samples(self.posteriors(grid), grid, seed, "vae")

    def samples(
        self, found: Sequence[Sequence[DiagonalGaussianDistribution]], grid: GridBatch, seed: int, stream: str
    ) -> list[Tensor]:
        """The same from posteriors of every sample, with the draws of one use."""
        drawn = zip(found, generators(seed, grid.index, stream), strict=True)
        return stacked([[posterior.sample(draws) for posterior in own] for own, draws in drawn])

    def text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What `words` gives for instructions, if it is not known from the last ones or the cache. Each is encoded
        alone, so that its bits depend neither on the batch nor on the cache."""
        said = [self._recent(prompt) for prompt in prompts]
        return {name: torch.cat([own[name] for own in said]).to(self.device) for name in said[0]}

    def words(self, prompt: str) -> dict[str, Tensor]:
        """Embeddings of one instruction, by name; the first dimension of each is 1. A base that uses `text` has it."""
        raise NotImplementedError(f"{type(self).__name__} has no words()")

    @torch.no_grad()
    def _known_words(self, prompt: str) -> dict[str, Tensor]:
        """From the cache or encoded, in main memory."""
        if (known := self.said.get(prompt) if self.said else None) is not None:
            return known
        made = {name: tensor.cpu() for name, tensor in self.words(prompt).items()}
        if self.said:
            self.said.put(prompt, made)
        return made

    def _keys(self, grid: GridBatch, units: int) -> list[list[str]]:
        if not grid.keys:  # at inference: keys would stand for holes with the truth
            return [[""] * units] * len(grid.index)
        holes = [[column for column, hole in enumerate(row) if hole] for row in grid.holes.tolist()]
        return [self.units(*of) for of in zip(grid.row_keys, grid.cell_keys, holes, strict=True)]

    @classmethod
    def pipeline_class(cls) -> Any:
        """The class named by `pipeline`."""
        import diffusers

        return getattr(diffusers, cls.pipeline)

    def sampling(self, watch: WatchConfig) -> dict[str, Any]:
        """Steps and guidance for `sample`."""
        steps, guidance = watch.sample_steps, watch.sample_guidance
        return {
            "steps": self.sample_steps if steps is None else steps,
            "guidance": self.sample_guidance if guidance is None else guidance,
        }

    @classmethod
    def check_upscale(cls, side: int) -> None:
        """Refuse to enlarge pictures to the area of a square of `side`, where that is not 0 and the base cannot.

        Raises:
            ValueError: it cannot.
        """
        if side and not cls.editor:
            raise ValueError(
                f"upscale: {side}; allowed for {cls.__name__}: 0, as diffusers has no pipeline that makes a part of a "
                "given picture anew with it"
            )

    def upscaled(
        self, picture: Image.Image, words: str, *, side: int, strength: float, steps: int, guidance: float, seed: int
    ) -> Image.Image:
        """A picture enlarged to the area of a square of `side`, its details made anew by SDEdit (arXiv 2108.01073):
        noised to a level of `strength`, and denoised again with these words.

        Raises:
            ValueError: the base cannot.
        """
        self.check_upscale(side)
        options = {"num_inference_steps": steps, "guidance_scale": guidance}
        return enlarged(self.pipe, self.editor, picture, words, side=side, strength=strength, seed=seed, **options)

    @staticmethod
    @abstractmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        """Keys of the pictures that the VAE encodes of a grid task, derived from those of its rows and cells; see
        `GridSample`."""

    @abstractmethod
    def pictures(self, grid: GridBatch) -> list[Tensor]:
        """The pictures that `units` names, in that order: D x 3 x h x w in [-1, 1] of the decoded samples, with the
        memory layout that diffusers' pipeline has, so that results are equal bit for bit.

        Raises:
            ValueError: cells of sizes that the base cannot encode.
        """

    @abstractmethod
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        """Latents and text of a batch on the device, without gradients; the VAE's draws are counted by walk.

        Raises:
            ValueError: cells of sizes that the base cannot encode.
        """

    @abstractmethod
    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        """One forward pass of `model`: noisy latents B x S x C and timesteps B x S in [0, 1] to a prediction B x S x C,
        float32."""

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        """Generate one picture per hole of each task, left to right, with the sampler that users of the LoRA have."""
        self.pipe.set_progress_bar_config(disable=True)
        return [self.paint(task, steps, guidance, seed) for task in tasks]

    @abstractmethod
    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        """The same for one task."""


def _fitting(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that a pattern fits, whole or from a dot on, in their order."""
    chosen = set[str]()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")}
        if not found:
            some = ", ".join(names[:: max(1, len(names) // 6)])
            raise ValueError(f"lora.layers: {pattern!r} fits none of {len(names)} linear layers, such as {some}")
        chosen |= found
    return [name for name in names if name in chosen]
