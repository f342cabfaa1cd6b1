"""FLUX.1 Depth guided by FLUX.1 Redux: pictures from a depth map and a look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.diffusion import (
    FLUX_LICENCE,
    drawing_size,
    drawn_at,
    image_at,
    load_pipeline,
    noise_of,
    pipeline_checkpoint,
)

if TYPE_CHECKING:
    import torch

MODEL = "black-forest-labs/FLUX.1-Depth-dev"
REDUX = "black-forest-labs/FLUX.1-Redux-dev"

_NETWORKS = {"transformer": 23.8, "vae": 0.2}
_TEXT_NETWORKS = {"text_encoder": 0.2, "text_encoder_2": 9.5}
_REDUX_NETWORKS = {"image_encoder": 0.9, "image_embedder": 0.1}
_TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ReduxDepth:
    """FLUX.1 Depth guided by FLUX.1 Redux (Black Forest Labs, 2024): the geometry of a depth map, the look of a
    picture.

    Attributes:
        prior: diffusers' `FluxPriorReduxPipeline`, which makes tokens of a picture.
        control: diffusers' `FluxControlPipeline`, with text encoders or without.
        tokens: side of the square of tokens (27 in Redux) that a look is averaged to. The fewer, the less they outweigh
            the words; all of them leave the words without effect.
    """

    prior: Any
    control: Any
    tokens: int

    def drawn(
        self,
        depth: Pixels,
        look: Pixels,
        words: str | None,
        *,
        seed: int,
        steps: int,
        guidance: float,
        resolution: int | None,
        size: tuple[int, int],
    ) -> Pixels:
        """A picture with the geometry of a depth map and the look of another picture.

        Args:
            depth: H x W x 3 uint8, near is bright; `look`: h x w x 3 RGB uint8.
            words: what it shows besides; None, as without text encoders, for no words.
            resolution: square root of the area in pixels at which the network works; None: of the depth map's own area,
                but at least 512 and at most 1024.
            size: height and width of the picture.
        """
        import torch

        working = drawing_size(depth, resolution)
        with torch.inference_mode():
            embedded, pooled = self.embedded(look, words)
            made = self.control(
                prompt_embeds=embedded,
                pooled_prompt_embeds=pooled,
                control_image=image_at(depth, working),
                height=working[0],
                width=working[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=noise_of(seed),
            )
        return drawn_at(made.images[0], size)

    def embedded(self, look: Pixels, words: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the transformer reads: 1 x (512 + tokens) x channels, and the pooled 1 x channels of the words.

        diffusers' own prior does the same with all tokens; without words it has zeros, too, but of fixed widths.
        """
        import torch
        from PIL import Image

        device = self.control._execution_device
        patches = self.prior.encode_image(Image.fromarray(look), device, 1)
        tokens = averaged(self.prior.image_embedder(patches).image_embeds, self.tokens)
        if words is None:
            width = self.control.transformer.config.pooled_projection_dim
            text, pooled = tokens.new_zeros(1, _TEXT_TOKENS, tokens.shape[2]), tokens.new_zeros(1, width)
        else:
            text, pooled, _ = self.control.encode_prompt(words, None, max_sequence_length=_TEXT_TOKENS)
        return torch.cat([text, tokens], dim=1), pooled


def averaged(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """A square of tokens (1 x N x channels, row by row) as the means of `side` x `side` parts of it; never more."""
    import torch

    whole = math.isqrt(tokens.shape[1])
    square = tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], whole, whole)
    return torch.nn.functional.adaptive_avg_pool2d(square, min(side, whole)).flatten(2).transpose(1, 2)


def redux_depth_checkpoints(model: str, redux: str, *, text: bool) -> Mapping[str, Checkpoint]:
    """The checkpoints of fields `model` and `redux`; `text` for the text encoders as well."""
    networks = _NETWORKS | (_TEXT_NETWORKS if text else {})
    return {
        "model": pipeline_checkpoint(model, MODEL, networks, FLUX_LICENCE),
        "redux": pipeline_checkpoint(redux, REDUX, _REDUX_NETWORKS, FLUX_LICENCE),
    }


def load_redux_depth(
    checkpoints: Mapping[str, Checkpoint], device: str, dtype: Dtype, *, tokens: int, text: bool
) -> ReduxDepth:
    """Both pipelines on their device; `text` for the text encoders as well."""
    from diffusers import FluxControlPipeline, FluxPriorReduxPipeline

    words = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    without = dict.fromkeys(words)
    prior = load_pipeline(FluxPriorReduxPipeline, checkpoints["redux"].folder(), dtype, **without)
    control = load_pipeline(FluxControlPipeline, checkpoints["model"].folder(), dtype, **({} if text else without))
    return ReduxDepth(prior.to(device), control.to(device), tokens)
