"""FLUX.1 Fill and dev, and Flex.2, with random weights and few channels, as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    VisualClozePipeline,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel


def save_flux_fill(folder: Path, *, guidance: bool = True) -> Path:
    """A `VisualClozePipeline` whose transformer takes 64 + 64 + 256 channels."""
    VisualClozePipeline(**components(in_channels=384, guidance=guidance), resolution=384).save_pretrained(folder)
    return folder


def save_flux_dev(folder: Path, *, guidance: bool = True) -> Path:
    """A `FluxPipeline`."""
    FluxPipeline(**components(in_channels=64, guidance=guidance)).save_pretrained(folder)
    return folder


def save_flex2(folder: Path) -> Path:
    """A `FluxPipeline` whose transformer takes 64 + 64 + 4 + 64 channels."""
    FluxPipeline(**components(in_channels=196, guidance=True)).save_pretrained(folder)
    return folder


def components(*, in_channels: int, guidance: bool) -> dict[str, Any]:
    """The modules of a FLUX.1 pipeline: latents of 16 channels and 1/8, shifted and scaled; the scheduler of the real
    model."""
    torch.manual_seed(0)
    clip = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=100,
        projection_dim=16, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    t5 = T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, vocab_size=100)
    transformer = FluxTransformer2DModel(
        in_channels=in_channels, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance,
    )  # fmt: skip
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": AutoencoderKL(
            block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611,
        ).eval(),
        "text_encoder": CLIPTextModel(clip).eval(),
        "tokenizer": tokenizer(77),
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer_2": tokenizer(512),
        "transformer": transformer.eval(),
    }  # fmt: skip


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """One token a character, so that other words are other tokens."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *characters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


class PixelVae:
    """Latents that are the pixels, but for noise of 3e-7: 8 x 8 of them a latent pixel."""

    config = SimpleNamespace(shift_factor=0.25, scaling_factor=2.0)
    dtype = torch.float32

    def encode(self, pixels: torch.Tensor) -> Any:
        mean = pixel_unshuffle(pixels, 8)
        parameters = torch.cat([mean, torch.full_like(mean, -30.0)], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=parameters))

    def decode(self, latents: torch.Tensor, return_dict: bool) -> Any:
        return (pixel_shuffle(latents, 8),)
