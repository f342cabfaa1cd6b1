"""A FLUX.1-Fill of random weights and a few channels, made on the spot: to try everything out on a CPU in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graphbuild.errors import GraphError

NAME = "tiny"
FOLDER = "tiny-model"


def made(model: str, base: str, out: Path) -> str:
    """`model` itself; but for `tiny` the folder `out/tiny-model`, into which one is put if there is none yet.

    Raises:
        GraphError: there is no tiny model of that base.
    """
    if model != NAME:
        return model
    if base != "flux_fill":
        raise GraphError(f"model: {NAME!r}; there is one for base flux_fill only, not for {base}")
    folder = out / FOLDER
    if not folder.is_dir():
        save(out / f".{FOLDER}").rename(folder)  # whole, or not there
    return str(folder)


def save(folder: Path) -> Path:
    """Write a `VisualClozePipeline` as a diffusers folder of half a megabyte; the same weights every time."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    library: Any = diffusers  # parts of it are not annotated
    clip = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=100,
        projection_dim=16, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    t5 = T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, vocab_size=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "scheduler": library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            "vae": library.AutoencoderKL(
                block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=2,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611,
            ),
            "text_encoder": CLIPTextModel(clip),
            "tokenizer": _tokenizer(77),
            "text_encoder_2": T5EncoderModel(t5),
            "tokenizer_2": _tokenizer(512),
            "transformer": library.FluxTransformer2DModel(
                in_channels=384, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=4, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
                guidance_embeds=True,
            ),
        }  # fmt: skip
    library.VisualClozePipeline(**parts, resolution=384).save_pretrained(folder)
    return folder


def _tokenizer(length: int) -> Any:
    """One token a character: other words, other tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = [*special.values(), *(chr(code) for code in range(32, 127))]
    words = models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token=special["unk_token"])
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=tokenizer, model_max_length=length, **special)
