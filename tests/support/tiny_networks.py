"""Tiny random checkpoints of the networks behind metrics."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny_models import tokenizer


def save_clip(folder: Path) -> Path:
    """A `CLIPModel` of one layer that reads 32 px."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**sizes, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer(77).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A `Dinov2Model` of one layer that reads 28 px."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def save_vgg(folder: Path) -> Path:
    """The convolutions of a VGG-16, in timm's names."""
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    layers = torchvision.models.vgg16(weights=None, init_weights=False).features.state_dict()
    save_file({f"features.{name}": value for name, value in layers.items()}, folder / "model.safetensors")
    return folder


def save_inception(file: Path) -> Path:
    """The Inception-v3 of FID, which has one size only."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """Keeps what it was initialised with."""

        def load_state_dict(self, *_: object, **__: object) -> None: ...

    torch.manual_seed(0)
    torch.save({}, file)
    torch.save(Untrained("random", ["2048"], str(file)).state_dict(), file)
    return file


def save_classifier(folder: Path, labels: tuple[str, ...]) -> Path:
    """A `ViTForImageClassification` of one layer."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: at for at, label in enumerate(labels)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_omnigen(folder: Path) -> Path:
    """An `OmniGenPipeline` of one layer."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel

    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=16, num_layers=1,
        pad_token_id=1, vocab_size=100, time_step_dim=8, pos_embed_max_size=16,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    )  # fmt: skip
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=[8] * 4, latent_channels=4, norm_num_groups=4)
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    OmniGenPipeline(transformer, scheduler, vae, tokenizer(512)).save_pretrained(folder)
    return folder
