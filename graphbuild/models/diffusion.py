"""Diffusion pipelines: checkpoints, loading, working size and initial noise."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import Size, picture_at, working_size

if TYPE_CHECKING:
    import torch
    from PIL import Image

FLUX_LICENCE = "flux-1-dev-non-commercial-license"
"""Of FLUX.1 [dev] and its Fill, Depth and Redux."""

LIBRARIES = ("torch", "torchvision", "transformers", "diffusers", "accelerate")
"""What diffusers needs to load these pipelines and to run them."""

_MULTIPLE = 16
_MOST_ASPECT = 4


def pipeline_checkpoint(model: str, published: str, networks: Mapping[str, float], licence: str) -> Checkpoint:
    """The checkpoint of a diffusers pipeline, of which only some networks are loaded.

    Args:
        model: the repository or folder that is used.
        published: the repository whose licence and sizes these are; nothing is known of others.
        networks: folder of each network that is loaded -> GB (10^9 bytes) of its weights.
    """
    files = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", *(f"{name}/*.safetensors" for name in networks))
    if model.partition("@")[0] == published:
        return Checkpoint(model, files, licence, round(sum(networks.values()), 1))
    return Checkpoint(model, files)


def load_part(kind: Any, folder: Path, dtype: Dtype, **components: Any) -> Any:
    """A network or pipeline of class `kind` from a folder, on the CPU, without progress bars.

    Args:
        components: parts to use instead of the folder's; None leaves one out.
    """
    from diffusers.utils.logging import disable_progress_bar

    hide_loading_bars()
    disable_progress_bar()  # diffusers' own, for the same reason
    options = {"dtype": torch_dtype(dtype), "use_safetensors": True, "local_files_only": True}
    return kind.from_pretrained(folder, **options, **components)


def load_pipeline(kind: Any, folder: Path, dtype: Dtype, **components: Any) -> Any:
    """The same for a pipeline, which then shows no progress bars and takes captions of any length."""
    pipeline = load_part(kind, folder, dtype, **components)
    pipeline.set_progress_bar_config(disable=True)
    _let_captions_be_long(pipeline)
    return pipeline


def _let_captions_be_long(pipeline: Any) -> None:
    """Silence the warnings of pipeline and tokenizers about captions longer than CLIP reads."""
    logging.getLogger(type(pipeline).__module__).setLevel(logging.ERROR)
    for name in ("tokenizer", "tokenizer_2"):
        if tokenizer := pipeline.components.get(name):
            tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True


def drawing_size(picture: Pixels, resolution: int | None, least: int = 512) -> Size:
    """About `resolution` x `resolution` pixels in the aspect of a picture, both sides multiples of 16; without a
    `resolution` about as many pixels as the picture has, but at least `least` and at most 1024 squared. Above an aspect
    of 4 the area shrinks, so that the long side is at most twice `resolution`."""
    if resolution is None:
        resolution = min(1024, max(least, round(math.sqrt(picture.shape[0] * picture.shape[1]))))
    short, long = sorted(picture.shape[:2])
    side = round(resolution * math.sqrt(min(long / short, _MOST_ASPECT)))
    return working_size(picture, short=side, long=side, multiple=_MULTIPLE)


def image_at(picture: Pixels, size: Size) -> Image.Image:
    """A picture at a pipeline's working size, as a PIL image."""
    from PIL import Image

    return Image.fromarray(picture_at(picture, size))


def drawn_at(image: Image.Image, size: Size) -> Pixels:
    """A generated picture at the size of the one it belongs to, H x W x 3 RGB uint8: by area where it shrinks, else
    bicubic."""
    return picture_at(np.asarray(image), size)


def noise_of(seed: int) -> torch.Generator:
    """The initial noise of one request, made on the CPU so that a seed gives the same noise on every device."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)
