"""The published models as folders of configs without weights: what a forecast reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, Qwen3Config, T5Config

_LIBRARY: Any = diffusers
_CLIP = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
_T5 = T5Config(
    d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128
)
_BLOCKS: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def flux_fill(folder: Path, **changed: Any) -> Path:
    """FLUX.1-Fill with T5-XXL, CLIP-L and its VAE."""
    transformer = {"in_channels": 384, "out_channels": 64, "guidance_embeds": True, **changed}
    quant = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    return _written(
        folder, "FluxFillPipeline",
        {"text_encoder": ("CLIPTextModel", _CLIP), "text_encoder_2": ("T5EncoderModel", _T5)},
        {"transformer": ("FluxTransformer2DModel", transformer), "vae": ("AutoencoderKL", {**_BLOCKS, **quant})},
    )  # fmt: skip


def klein(folder: Path, **changed: Any) -> Path:
    """FLUX.2-klein 4B with Qwen3-4B."""
    transformer = {
        "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
        "attention_head_dim": 128, "joint_attention_dim": 7680, "guidance_embeds": False, **changed,
    }  # fmt: skip
    qwen = Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    return _written(
        folder, "Flux2KleinPipeline", {"text_encoder": ("Qwen3ForCausalLM", qwen)},
        {"transformer": ("Flux2Transformer2DModel", transformer), "vae": ("AutoencoderKLFlux2", {})},
    )  # fmt: skip


def sdxl(folder: Path, **unet: Any) -> Path:
    """SDXL with both text encoders; `unet` is its config."""
    big = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32, projection_dim=1280
    )
    return _written(
        folder, "StableDiffusionXLPipeline",
        {"text_encoder": ("CLIPTextModel", _CLIP), "text_encoder_2": ("CLIPTextModelWithProjection", big)},
        {"unet": ("UNet2DConditionModel", unet), "vae": ("AutoencoderKL", {**_BLOCKS, "latent_channels": 4})},
    )  # fmt: skip


def _written(
    folder: Path, pipeline: str, encoders: dict[str, tuple[str, Any]], networks: dict[str, tuple[str, dict[str, Any]]]
) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, "tokenizer": ["transformers", "CLIPTokenizer"]}
    for name, (cls, config) in encoders.items():
        index[name] = ["transformers", cls]
        config.save_pretrained(folder / name)
    for name, (cls, options) in networks.items():
        index[name] = ["diffusers", cls]
        with torch.device("meta"):
            getattr(_LIBRARY, cls)(**options).save_config(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
