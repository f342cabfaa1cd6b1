"""What FLUX.1 models share: tokens of 2 x 2 latents, the VAE's units, positions, and two text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from graphbuild_train.bases.base import Base
    from graphbuild_train.batch import LatentBatch

ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
"""Of the double blocks only, as in diffusers' training scripts: single blocks fuse theirs with attention's output."""

NON_COMMERCIAL = {
    "license": "other",
    "license_name": "flux-1-dev-non-commercial-license",
    "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
}
"""Of FLUX.1-dev and FLUX.1-Fill-dev."""

VAE_SCALE = 8
TOKEN = 2 * VAE_SCALE
"""Side of a token in pixels."""
TEXT_LENGTH = 512


def packed(latents: Tensor) -> Tensor:
    """B x C x 2h x 2w latents as B x hw x 4C tokens; channels in the order (channel, row, column)."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The opposite of `packed`, with `size` (h, w)."""
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, *size), 2)


def positions(first: int, size: tuple[int, int], left: int = 0) -> Tensor:
    """h w x 3 float32 position ids of a unit: `first`, the token's row, and its column counted from `left`."""
    height, width = size
    return torch.cartesian_prod(torch.tensor([first]), torch.arange(height), torch.arange(left, left + width)).float()


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents of the VAE in the units of the model."""
    made: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return made


def tokens(vae: Any, latents: Tensor) -> Tensor:
    """The same as tokens, float32."""
    return packed(scaled(vae, latents)).float()


def sizes(latents: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Height and width in tokens of each unit."""
    return tuple((unit.shape[2] // 2, unit.shape[3] // 2) for unit in latents)


def decoded(vae: Any, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of tokens: B x 3 x H x W, about [-1, 1]."""
    latents = unpacked(tokens, size) / vae.config.scaling_factor + vae.config.shift_factor
    pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pixels


def encoded_text(pipe: Any, prompt: str, device: torch.device) -> dict[str, Tensor]:
    """`prompt_embeds` 1 x 512 x D of T5, padding included, and `pooled` 1 x P of CLIP, as diffusers' pipelines have
    them, without their warning for every prompt that is longer than CLIP reads."""

    def words(tokenizer: Any, length: int) -> Tensor:
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids: Tensor = tokenizer([prompt], **options).input_ids
        return ids.to(device)

    return {
        "prompt_embeds": pipe.text_encoder_2(words(pipe.tokenizer_2, TEXT_LENGTH))[0],
        "pooled": pipe.text_encoder(words(pipe.tokenizer, pipe.tokenizer.model_max_length)).pooler_output,
    }


def blank_text(transformer: Any, count: int) -> dict[str, Tensor]:
    """What `encoded_text` gives for `count` instructions, all zeros."""
    config, like = transformer.config, {"device": transformer.device, "dtype": transformer.dtype}
    return {
        "prompt_embeds": torch.zeros(count, TEXT_LENGTH, config.joint_attention_dim, **like),
        "pooled": torch.zeros(count, config.pooled_projection_dim, **like),
    }


def velocity(base: Base, x: Tensor, level: Tensor, batch: LatentBatch, **named: Any) -> Tensor:
    """What a FLUX.1 with further channels predicts at one level for each sample; `named` goes to the model, too."""
    assert batch.extra is not None
    words = batch.text["prompt_embeds"]
    made: Tensor = base.model(
        hidden_states=torch.cat([x, batch.extra], -1).to(base.dtype),
        timestep=level[:, 0],
        pooled_projections=batch.text["pooled"],
        encoder_hidden_states=words,
        txt_ids=words.new_zeros(words.shape[1], 3),
        img_ids=batch.ids,
        return_dict=False,
        **named,
    )[0]
    return made.float()


def guidance_of(transformer: Any, guidance: float, count: int) -> Tensor | None:
    """The guidance value `count` times, for a guidance-distilled model; None for others."""
    if not transformer.config.guidance_embeds:
        return None
    device = next(transformer.parameters()).device  # diffusers' `device` looks at every module
    return torch.full((count,), guidance, device=device)
