"""Checkpoints of a few hundred kilobytes with random weights, shaped like the published ones, for the annotators that
give every pixel a value: `depth_anything`, `marigold_normals`, `oneformer`, `birefnet`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASSES = ("wall", "building, edifice", "sky", "floor;flooring", "tree", "person")


def tiny_depth_anything(folder: Path) -> dict[str, Any]:
    """Depth Anything on a DINOv2 of four layers."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
    )
    torch.manual_seed(1)
    network = _scattered(DepthAnythingForDepthEstimation(config), 0.2)
    network.head.conv3.bias.data.fill_(3.0)  # above the last layer's zero
    network.save_pretrained(folder / "depth_anything")
    DPTImageProcessor(
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder / "depth_anything")
    return {"model": str(folder / "depth_anything"), "resolution": 56}


def tiny_marigold_normals(folder: Path) -> dict[str, Any]:
    """A latent diffusion model that works at an eighth of the size, like the published one."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, MarigoldNormalsPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=320,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    MarigoldNormalsPipeline(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        prediction_type="normals",
        default_denoising_steps=4,
        default_processing_resolution=768,
    ).save_pretrained(folder / "marigold_normals")
    return {"model": str(folder / "marigold_normals"), "resolution": 64, "steps": 2}


def tiny_oneformer(folder: Path) -> dict[str, Any]:
    """OneFormer on a Swin Transformer of four stages, with six classes and the processor settings of the published one,
    which name a list of classes on the hub."""
    import torch
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor, SwinConfig

    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = OneFormerConfig(
        backbone_config=backbone,
        id2label=dict(enumerate(CLASSES)),
        hidden_dim=32,
        conv_dim=32,
        mask_dim=32,
        num_queries=12,
        num_attention_heads=2,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=2,
        dim_feedforward=32,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=320,
        text_encoder_n_ctx=4,
        text_encoder_proj_layers=1,
    )
    torch.manual_seed(3)
    network = _scattered(OneFormerForUniversalSegmentation(config), 1.0)
    network.save_pretrained(folder / "oneformer")
    OneFormerImageProcessor(size={"shortest_edge": 640, "longest_edge": 2560}).save_pretrained(folder / "oneformer")
    file = folder / "oneformer" / "preprocessor_config.json"
    settings = {**json.loads(file.read_text()), "class_info_file": "ade20k_panoptic.json"}
    file.write_text(json.dumps(settings))
    _tokenizer().save_pretrained(folder / "oneformer")
    return {"model": str(folder / "oneformer"), "resolution": 64}


ATR = (
    *("Background", "Hat", "Hair", "Sunglasses", "Upper-clothes", "Skirt", "Pants", "Dress", "Belt", "Left-shoe"),
    *("Right-shoe", "Face", "Left-leg", "Right-leg", "Left-arm", "Right-arm", "Bag", "Scarf"),
)


def tiny_clothes(folder: Path) -> dict[str, Any]:
    """SegFormer with the 18 classes of ATR."""
    return _segformer(folder / "clothes", dict(enumerate(ATR)))


def tiny_segformer(folder: Path) -> dict[str, Any]:
    """SegFormer with the 150 classes of ADE20K: another network for `oneformer`."""
    return _segformer(folder / "segformer", {number: f"class {number}" for number in range(150)})


def _segformer(folder: Path, classes: dict[int, str]) -> dict[str, Any]:
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=classes,
    )
    torch.manual_seed(4)
    _scattered(SegformerForSemanticSegmentation(config), 0.3).save_pretrained(folder)
    SegformerImageProcessor().save_pretrained(folder)
    return {"model": str(folder), "resolution": 64}


BIREFNET_CONFIG = """
from transformers import PretrainedConfig


class BiRefNetConfig(PretrainedConfig):
    model_type = "SegformerForSemanticSegmentation"

    def __init__(self, bb_pretrained=False, **kwargs):
        self.bb_pretrained = bb_pretrained
        super().__init__(**kwargs)
"""

BIREFNET_CODE = """
import torch
from torch import nn
from transformers import PreTrainedModel

from .BiRefNet_config import BiRefNetConfig


class Settings:
    width = 8


class BiRefNet(PreTrainedModel):
    config_class = BiRefNetConfig

    def __init__(self, bb_pretrained=True, config=BiRefNetConfig()):
        super().__init__(config)
        self.config = Settings()
        rates = [rate.item() for rate in torch.linspace(0, 0.2, 3)]
        self.first = nn.Conv2d(3, self.config.width, 3, padding=1)
        self.drop = nn.Dropout(rates[-1])
        self.last = nn.Conv2d(self.config.width, 1, 1)

    def forward(self, pixels):
        coarse = self.first(pixels)
        return [coarse.mean(1, keepdim=True), self.last(self.drop(torch.relu(coarse)))]
"""
"""Its own words, with what makes the published code peculiar: the configuration is not the first parameter and is
replaced, a number is read from a tensor while the network is built, and nothing is called at the end of building."""


def tiny_birefnet(folder: Path) -> dict[str, Any]:
    """A checkpoint that brings its own code, like the published one."""
    import torch

    torch.manual_seed(5)
    weights = {
        "first.weight": torch.randn(8, 3, 3, 3) * 0.3,
        "first.bias": torch.randn(8) * 0.3,
        "last.weight": torch.randn(1, 8, 1, 1),
        "last.bias": torch.zeros(1),
    }
    return _with_code(folder / "birefnet", BIREFNET_CODE, weights)


def _with_code(folder: Path, code: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    modules = {"AutoConfig": "BiRefNet_config.BiRefNetConfig", "AutoModelForImageSegmentation": "birefnet.BiRefNet"}
    (folder / "config.json").write_text(json.dumps({"architectures": ["BiRefNet"], "auto_map": modules}))
    (folder / "BiRefNet_config.py").write_text(BIREFNET_CONFIG)
    (folder / "birefnet.py").write_text(code)
    save_file(dict(weights), folder / "model.safetensors")
    return {"model": str(folder), "trust_remote_code": True, "resolution": 64}


def _scattered(network: Any, deviation: float) -> Any:
    """The network with weights large enough that pictures differ in what it makes of them."""
    for name, weight in network.named_parameters():
        if weight.dim() > 1 or "norm" not in name:
            weight.data.normal_(0, deviation)
    return network


def _tokenizer() -> Any:
    """CLIP's, reduced to single bytes."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)
