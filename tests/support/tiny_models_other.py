"""SDXL, FLUX.2 klein and Qwen-Image-Edit with random weights and a few channels, saved as diffusers folders. And
what their tests do with them: train for a moment, and watch what a model is called with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch
from graphbuild_train.config import Layers, LoraConfig
from graphbuild_train.lora import add_lora

_DOWN, _UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
_BYTES = sorted(ByteLevel.alphabet())
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def save_sdxl(folder: Path) -> Path:
    """A `StableDiffusionXLPipeline` of 8 px a latent pixel, its scheduler the one of the real model."""
    torch.manual_seed(0)
    first, second = _clip_config(16, 16), _clip_config(24, 20)
    vae = AutoencoderKL(
        down_block_types=_DOWN, up_block_types=_UP, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
        layers_per_block=1, latent_channels=4, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2), cross_attention_dim=40,
        transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=_clip_tokenizer(pad="<|endoftext|>"),
        tokenizer_2=_clip_tokenizer(pad="!"),  # the second encoder of the real model pads with another token, too
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_flux2_klein(folder: Path) -> Path:
    """A `Flux2KleinPipeline` of 16 px a token, whose latents have statistics far from 0 and 1."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        down_block_types=_DOWN, up_block_types=_UP, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
        layers_per_block=1, latent_channels=4,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.randn(16))
    vae.bn.running_var.copy_(torch.rand(16) + 0.5)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(_BYTES) + 5, hidden_size=8, intermediate_size=8, num_hidden_layers=28, head_dim=4,
            num_attention_heads=2, num_key_value_heads=1,
        )
    ).eval()  # fmt: skip
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_qwen_tokenizer("<think>", "</think>"),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_qwen_edit(folder: Path) -> Path:
    """A `QwenImageEditPlusPipeline` of 16 px a token, told in the model which pictures are clean, as in 2511."""
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, end, image, video = (len(_BYTES) + 3 + at for at in range(4))
    words = {
        "vocab_size": len(_BYTES) + 7, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    eyes = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config=words, vision_config=eyes, vision_start_token_id=start, vision_end_token_id=end,
        image_token_id=image, video_token_id=video,
    )  # fmt: skip
    text_encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[-0.7, 0.2, 0.5, 1.5],
        latents_std=[2.8, 1.4, 0.5, 0.9],
    ).eval()  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6), zero_cond_t=True,
    ).eval()  # fmt: skip
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def _clip_config(hidden: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 * len(_BYTES) + 2, hidden_size=hidden, intermediate_size=hidden, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, hidden_act="gelu",
        bos_token_id=2 * len(_BYTES), eos_token_id=2 * len(_BYTES) + 1,
    )  # fmt: skip


def _clip_tokenizer(pad: str) -> Any:
    words = [*_BYTES, *(f"{char}</w>" for char in _BYTES), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: at for at, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=77)


def _qwen_tokenizer(*further: str) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *further]
    vocab = {word: at for at, word in enumerate([*_BYTES, *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=special[1:], model_max_length=4096)
    tokenizer.chat_template = _CHAT
    return tokenizer


def trained(base: Base, batch: LatentBatch, layers: Layers = "attn") -> None:
    """Give a base a LoRA, its alpha not its rank and some layers narrower, and take two large steps on a batch."""
    add_lora(base.bare, LoraConfig(layers=layers, rank=12, alpha=6), base.targets(layers))
    noisy = base.objective.corrupt(batch, seed=5)
    parameters = [weight for weight in base.bare.parameters() if weight.requires_grad]
    for _ in range(2):  # in the first only the up-projections have a gradient
        loss = base.objective.loss_of(base.predict(noisy.x, noisy.level, batch), noisy).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for weight, gradient in zip(parameters, gradients, strict=True):
                weight.sub_(0.1 * gradient.sign())


class Calls(list[dict[str, Any]]):
    """Arguments of every call of a module, by name; the module answers as before, or as `answer` says."""

    def __init__(self, module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, answer: Any = None) -> None:
        forward = module.forward
        signature = inspect.signature(forward)

        def recorded(*arguments: Any, **named: Any) -> Any:
            self.append(dict(signature.bind(*arguments, **named).arguments))
            return (answer(**self[-1]),) if answer else forward(*arguments, **named)

        monkeypatch.setattr(module, "forward", recorded)
