"""FLUX Fill, FLUX Depth with Redux, and SDXL with IP-Adapter and ControlNets: random weights of a few channels, saved
as diffusers folders; tokenizers made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphbuild.annotators.base import Resources

TINY = {"steps": 2, "resolution": 64, "dtype": "float32", "resources": Resources(memory_gb=0.5)}
"""What makes a pipeline quick and small."""

_SIDE = 32
_WIDTH = 16


def tiny_style_picker(folder: Path) -> dict[str, Any]:
    """Four pictures of plain stripes in a folder."""
    import cv2
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        picture = np.full((48, 40, 3), 60 * number, np.uint8)
        picture[:: number + 2] = 255 - 50 * number, 30 * number, 200
        assert cv2.imwrite(str(folder / f"style{number}.png"), picture)
    return {"folder": str(folder)}


def tiny_fill_edit(folder: Path) -> dict[str, Any]:
    from diffusers import FluxFillPipeline

    FluxFillPipeline(**_flux(in_channels=64 + 64 + 256)).save_pretrained(folder / "fill")
    return {"model": str(folder / "fill"), "grow": 4, **TINY}


def tiny_redux_style(folder: Path) -> dict[str, Any]:
    from diffusers import FluxControlPipeline

    FluxControlPipeline(**_flux(in_channels=64 + 64)).save_pretrained(folder / "depth")
    return {"model": str(folder / "depth"), "redux": _redux(folder / "redux"), "tokens": 4, **TINY}


def tiny_depth_edit(folder: Path) -> dict[str, Any]:
    return {**tiny_redux_style(folder), "tokens": 2}


def tiny_instant_style(folder: Path) -> dict[str, Any]:
    import torch
    from diffusers import ControlNetModel

    pipeline = _sdxl()
    pipeline.save_pretrained(folder / "sdxl")
    controlnet = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4,) * 4)
    # Zero at first: an untrained one would do nothing.
    for layer in (controlnet.controlnet_cond_embedding.conv_out, *controlnet.controlnet_down_blocks):
        torch.nn.init.normal_(layer.weight)
    controlnet.save_pretrained(folder / "controlnet")
    _ip_adapter(pipeline.unet, folder / "adapter" / "sdxl_models")
    models = {name: str(folder / name) for name in ("sdxl", "adapter", "controlnet")}
    fields = {"model": models["sdxl"], "ip_adapter": models["adapter"], "controlnet": models["controlnet"]}
    return {**fields, "guidance": 2.0, **TINY}


# ---- FLUX ----------------------------------------------------------------------------------------------------------


def _flux(in_channels: int) -> dict[str, Any]:
    """The modules of a FLUX.1 pipeline: latents of 16 channels and 1/8 in size, shifted and scaled as there."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    t5 = T5Config(d_model=_WIDTH, d_ff=_WIDTH, d_kv=8, num_heads=2, num_layers=1, vocab_size=100)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": AutoencoderKL(
            block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611,
        ),
        "text_encoder": CLIPTextModel(_clip_config(_WIDTH, 1000)),
        "tokenizer": _clip_tokenizer(),
        "text_encoder_2": T5EncoderModel(t5),
        "tokenizer_2": _t5_tokenizer(),
        "transformer": FluxTransformer2DModel(
            in_channels=in_channels, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=_WIDTH, pooled_projection_dim=_WIDTH, axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        ),
    }  # fmt: skip


def _redux(folder: Path) -> str:
    """A Redux of 4 x 4 tokens, without text encoders, as the published one is."""
    import torch
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(1)
    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=_SIDE, patch_size=8
    )
    FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config),
        feature_extractor=SiglipImageProcessor(size={"height": _SIDE, "width": _SIDE}),
        image_embedder=ReduxImageEncoder(redux_dim=8, txt_in_features=_WIDTH),
    ).save_pretrained(folder)
    return str(folder)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    return T5TokenizerFast(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=512)


# ---- SDXL ----------------------------------------------------------------------------------------------------------


def _sdxl() -> Any:
    """A `StableDiffusionXLPipeline` with the real one's blocks around the style layer: three attentions in the first
    up block."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4,
        scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=2,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2, 2),
        cross_attention_dim=40, transformer_layers_per_block=1, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(_clip_config(16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(24, 20)),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _ip_adapter(unet: Any, folder: Path) -> None:
    """The two files of IP-Adapter for SDXL: four tokens of an image embedding, keys and values for each cross-attention
    under the odd numbers of the published file."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, projection_dim=12, num_hidden_layers=1, num_attention_heads=2,
        image_size=_SIDE, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    width = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * width, 12),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(crossing):
        channels = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(channels, width)
    save_file(weights, folder / "ip-adapter_sdxl.safetensors")


def _clip_config(hidden: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    letters = len(_letters())
    return CLIPTextConfig(
        vocab_size=2 * letters + 2, hidden_size=hidden, intermediate_size=hidden, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=2 * letters, eos_token_id=2 * letters + 1,
    )  # fmt: skip


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=77)


def _letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
