"""Training objectives: which tokens are noised, which timestep the model gets, and where the loss applies.

Levels are in [0, 1]: 1 is pure noise and 0 is clean. Draws are counter-based: each is a function of the run's
seed, the walk and its purpose, so that processes, micro batches and resumed runs all see the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graphbuild.config.lookup import find
from graphbuild.tasks.paths import Layout
from graphbuild_train.batch import LatentBatch
from graphbuild_train.config import TrainConfig

Shift = Literal["dynamic", "none"] | float

GROUP = "graphbuild.objectives"
"""Entry points of other packages with objectives."""


def generator(seed: int, index: int, stream: str) -> torch.Generator:
    """The CPU generator of walk `index` for one use, such as "noise". (Torch takes 32 bits of the hash.)"""
    digest = hashlib.blake2b(f"{seed}|{index}|{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def generators(seed: int, index: Tensor, stream: str) -> list[torch.Generator]:
    """The generator of each walk of a batch."""
    return [generator(seed, walk, stream) for walk in index.tolist()]


# ---- paths between data and noise --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """A straight line: `x = (1 - level) z + level noise`, and the model predicts `noise - z` (FLUX, OneDiffusion).

    Levels are logit-normal: `std` is the standard deviation of their logits, `mean` is added to the means.
    """

    mean: float = 0.0
    std: float = 1.0

    def levels(self, draws: torch.Generator, mu: Tensor) -> Tensor:
        """One level per mean in `mu`, float64."""
        return torch.sigmoid(torch.randn(mu.shape, generator=draws, dtype=torch.float64) * self.std + (mu + self.mean))

    def importance(self, level: Tensor) -> Tensor:
        """What an error at a level counts in a loss."""
        return torch.ones_like(level)

    def mix(self, z: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return (1 - level) * z + level * noise

    def target(self, z: Tensor, noise: Tensor) -> Tensor:
        return noise - z


@dataclass(frozen=True)
class Ddpm:
    """SDXL's variance-preserving path of 1000 steps, on which the model predicts the noise (arXiv 2006.11239).

    Its level is step / 1000, step 0..999; the betas are diffusers' `scaled_linear`, .00085 to .012. `min_snr` is the
    largest signal-to-noise ratio at which an error counts in full (arXiv 2303.09556); 0 lets all count alike.
    """

    steps: int = 1000
    min_snr: float = 0.0

    def levels(self, draws: torch.Generator, mu: Tensor) -> Tensor:
        """One uniform level per element of `mu`, float64; the values of `mu` are not used."""
        return torch.randint(self.steps, mu.shape, generator=draws).double() / self.steps

    def step(self, level: Tensor) -> Tensor:
        """The whole step, int64, nearest to a level."""
        return (level.double() * self.steps).round().long().clamp(max=self.steps - 1)

    def alpha_bar(self, level: Tensor) -> Tensor:
        """The share of the data in the variance at a level."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, self.steps, dtype=torch.float64) ** 2
        return (1 - betas).cumprod(0).to(level.device)[self.step(level)]

    def mix(self, z: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        share = self.alpha_bar(level)
        return share.sqrt().to(z.dtype) * z + (1 - share).sqrt().to(z.dtype) * noise

    def target(self, z: Tensor, noise: Tensor) -> Tensor:
        return noise

    def importance(self, level: Tensor) -> Tensor:
        """What an error at a level counts in a loss: min(snr, `min_snr`) / snr, of a prediction of noise."""
        if not self.min_snr:
            return torch.ones_like(level)
        share = self.alpha_bar(level)
        return ((1 - share) / share * self.min_snr).clamp(max=1.0).to(level)


# ---- shifts ------------------------------------------------------------------------------------------------------


def mean_logit(shift: Shift, tokens: Tensor) -> Tensor:
    """Mean of the logit of a level: what a shift adds to it, float64.

    A factor f takes a level s to `f s / (1 + (f - 1) s)` and so adds ln f. `dynamic` is FLUX's line through .5 at 256
    and 1.15 at 4096 noised tokens, continued on both sides as diffusers' pipelines do.
    """
    if shift == "dynamic":
        return 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens.double() - 256)
    return torch.full(tokens.shape, 0.0 if isinstance(shift, str) else math.log(shift), dtype=torch.float64)


def shifted(level: Tensor, mu: Tensor | float) -> Tensor:
    """Levels with `mu` added to their logits."""
    return torch.sigmoid(torch.logit(level.double()) + mu)


# ---- objectives --------------------------------------------------------------------------------------------------


class Noisy(NamedTuple):
    """Input, timestep, target and loss weight, in the dtype of the latents.

    Attributes:
        x: B x S x C, noised; `level`: B x S in [0, 1], the timestep of each token.
        target: B x S x C; `weight`: B x S, 0 where there is no loss.
        importance: B x S, what an error counts in training beside it.
    """

    x: Tensor
    level: Tensor
    target: Tensor
    weight: Tensor
    importance: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How a base is trained on grids. A recipe can name an instance of your own as `module:NAME`.

    Attributes:
        like: the shipped objective whose bases, positions and sampler it shares; empty for a shipped one.
        noise, loss: which tokens are noised, and which have a loss: all, or those of the holes.
        time: `sample` has one level; `clean` too, but given tokens have timestep 0; `view` draws one for each view.
        shift: of the levels; see `mean_logit`.
        layout: of the tasks that it trains; see `TaskPath.layout`.
    """

    name: str
    path: Flow | Ddpm
    noise: Literal["all", "generated"]
    time: Literal["sample", "clean", "view"]
    loss: Literal["all", "generated"]
    shift: Shift = "none"
    like: str = ""
    layout: Layout = "rows"

    @property
    def family(self) -> str:
        """The name that bases list it under in `objectives`."""
        return self.like or self.name

    def sampled(self) -> Objective:
        """The objective as used in sampling: given views are clean, at timestep 0."""
        return replace(self, noise="generated", time="clean", loss="generated") if self.time == "view" else self

    def noised(self, batch: LatentBatch) -> Tensor:
        """B x S bool, the tokens that are noised; a sampler makes these."""
        return torch.ones_like(batch.generated) if self.noise == "all" else batch.generated

    def timesteps(self, level: Tensor, batch: LatentBatch) -> Tensor:
        """B x S, the timestep of each token at levels B x 1, or B x V with one for each view."""
        spread = level.expand(-1, len(batch.size)).gather(1, batch.view)
        return spread * batch.generated if self.time == "clean" else spread

    def corrupt(self, batch: LatentBatch, seed: int, level: Tensor | None = None) -> Noisy:
        """A batch noised by draws of its own walks, or at `level`, B floats, where all errors count alike."""
        drawn = self._levels(batch, seed) if level is None else level[:, None]
        times = self.timesteps(drawn.to(batch.z), batch)
        noise = _noise(batch, seed, "noise")
        noised, one = self.noised(batch)[..., None], times[..., None]
        x = torch.where(noised, self.path.mix(batch.z, noise, one), batch.z)
        weight = torch.ones_like(times) if self.loss == "all" else batch.generated.to(times)
        importance = self.path.importance(times) if level is None else torch.ones_like(times)
        return Noisy(x, times, self.path.target(batch.z, noise), weight, importance)

    def loss_of(self, predicted: Tensor, noisy: Noisy) -> Tensor:
        """B, the weighted mean of squared errors of each sample; it does not depend on how a batch is split."""
        errors = (predicted.to(noisy.target.dtype) - noisy.target).square().mean(-1) * noisy.importance
        return (noisy.weight * errors).sum(1) / noisy.weight.sum(1)

    def sample(
        self, predict: Callable[[Tensor, Tensor, LatentBatch], Tensor], batch: LatentBatch, *, steps: int, seed: int
    ) -> Tensor:
        """Latents B x S x C made from noise by Euler steps along a `Flow`; given tokens are the batch's own.

        Args:
            predict: x B x S x C and levels B x S, to a velocity B x S x C.
        """
        sampled = self.sampled()
        noised = sampled.noised(batch)
        x = torch.where(noised[..., None], _noise(batch, seed, "sample"), batch.z)
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64).expand(len(x), -1)
        levels = shifted(grid, self._mean_logit(batch)).to(x)
        for level, following in zip(levels.T[:-1, :, None], levels.T[1:, :, None], strict=True):
            velocity = predict(x, sampled.timesteps(level, batch), batch)
            x = torch.where(noised[..., None], x + (following - level)[..., None] * velocity.to(x), batch.z)
        return x

    def _levels(self, batch: LatentBatch, seed: int) -> Tensor:
        """B x 1, or B x V for levels by view; float64."""
        mu = self._mean_logit(batch).expand(-1, len(batch.size) if self.time == "view" else 1)
        draws = generators(seed, batch.index, "level")
        return torch.stack([self.path.levels(own, mean) for own, mean in zip(draws, mu, strict=True)])

    def _mean_logit(self, batch: LatentBatch) -> Tensor:
        """B x 1, by the tokens that are noised in training."""
        return mean_logit(self.shift, self.noised(batch).sum(1).cpu())[:, None]


def _noise(batch: LatentBatch, seed: int, stream: str) -> Tensor:
    """B x S x C, drawn in float32 on the CPU."""
    draws = [torch.randn(batch.z.shape[1:], generator=own) for own in generators(seed, batch.index, stream)]
    return torch.stack(draws).to(batch.z)


OBJECTIVES = {
    made.name: made
    for made in (
        # VisualCloze (arXiv 2504.07960): conditions come through FLUX.1-Fill's own channels
        Objective(name="visualcloze_fill", path=Flow(), noise="all", time="sample", loss="all", shift="dynamic"),
        # its appendix B: FLUX.1-dev, clean conditions at timestep 0
        Objective(name="visualcloze_dev", path=Flow(), noise="generated", time="clean", loss="generated",
                  shift="dynamic"),
        # ONE-PIC (arXiv 2412.05619): noise and loss in the mask, one time for the whole canvas
        Objective(name="onepic", path=Ddpm(), noise="generated", time="sample", loss="generated", layout="canvas"),
        # OneDiffusion (arXiv 2411.16318): a level for each view
        Objective(name="onediffusion", path=Flow(), noise="all", time="view", loss="all", shift=3.0, layout="views"),
        # The same for Qwen-Image-Edit, where 2511 gives references timestep 0 by itself; the shift is FLUX's line
        Objective(name="qwen_edit", path=Flow(), noise="generated", time="sample", loss="generated", shift="dynamic"),
        # FLUX.2's way with reference images: clean, beside what is generated, at the same timestep
        Objective(name="flux2_klein", path=Flow(), noise="generated", time="sample", loss="generated",
                  shift="dynamic"),
    )
}  # fmt: skip


def objective_of(name: str, shift: Shift | None = None) -> Objective:
    """An objective by name: one of `OBJECTIVES`, an entry point or `module:NAME`; `shift` replaces its own.

    Raises:
        ValueError: no such objective, or one whose path has no shift.
    """
    preset = OBJECTIVES.get(name) or find("objective", name, {}, GROUP, also=OBJECTIVES)
    if not isinstance(preset, Objective):
        raise ValueError(f"objective {name!r}: {preset!r} is not an Objective")
    if shift in (None, preset.shift):
        return preset
    if isinstance(preset.path, Ddpm):
        raise ValueError(f"shift: {shift!r}; allowed for {name}, whose steps are drawn evenly: none")
    return replace(preset, shift=shift)


def objective_for(config: TrainConfig) -> Objective:
    """The objective of a recipe, with its shift and weights.

    Raises:
        ValueError: as `objective_of`, or a weight that its path does not have.
    """
    objective = objective_of(config.objective, config.shift)
    path = objective.path
    flow = isinstance(path, Flow)
    named = {"logit_mean": 0.0, "logit_std": 1.0} if not flow else {"min_snr": 0.0}
    for name, neutral in named.items():
        if (value := getattr(config, name)) != neutral:
            raise ValueError(f"{name}: {value}; allowed for {config.objective}, {_PATHS[flow]}: {neutral:g}")
    if isinstance(path, Ddpm):
        return replace(objective, path=replace(path, min_snr=config.min_snr))
    return replace(objective, path=replace(path, mean=config.logit_mean, std=config.logit_std))


_PATHS = {True: "whose path is a flow", False: "whose steps are drawn evenly"}
