"""Networks whose embeddings are compared: CLIP and DINOv2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import frozen

Vector = NDArray[np.float64]
CLIP = Checkpoint("openai/clip-vit-large-patch14", licence="mit", gigabytes=1.7)
DINO = Checkpoint("facebook/dinov2-base", licence="apache-2.0", gigabytes=0.35)


@dataclass(frozen=True)
class Clip:
    """CLIP (A. Radford et al., arXiv 2103.00020) of transformers."""

    network: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Clip:
        """From a transformers folder, float32."""
        from transformers import CLIPModel, CLIPProcessor

        network: Any = CLIPModel.from_pretrained(folder, use_safetensors=True)
        return cls(frozen(network, device, "float32"), CLIPProcessor.from_pretrained(folder))

    def picture(self, pixels: Pixels) -> Vector:
        """Embedding of an H x W x 3 RGB uint8 picture, of length 1."""
        said = self.processor(images=Image.fromarray(pixels), return_tensors="pt").to(self.network.device)
        return _unit(self.network.get_image_features(**said))

    def words(self, text: str) -> Vector:
        """Embedding of a text, of length 1; what CLIP does not read is cut off."""
        said = self.processor(text=text, return_tensors="pt", truncation=True).to(self.network.device)
        return _unit(self.network.get_text_features(**said))


@dataclass(frozen=True)
class Dino:
    """DINOv2 (M. Oquab et al., arXiv 2304.07193) of transformers."""

    network: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Dino:
        """From a transformers folder, float32."""
        from transformers import AutoImageProcessor, Dinov2Model

        processors: Any = AutoImageProcessor
        network: Any = Dinov2Model.from_pretrained(folder, use_safetensors=True)
        return cls(frozen(network, device, "float32"), processors.from_pretrained(folder))

    def picture(self, pixels: Pixels) -> Vector:
        """The class token of an H x W x 3 RGB uint8 picture, of length 1."""
        said = self.processor(images=Image.fromarray(pixels), return_tensors="pt").to(self.network.device)
        return _unit(self.network(**said).last_hidden_state[:, 0])


def cosine(one: Vector, other: Vector) -> float:
    """Cosine of the angle between two vectors of length 1."""
    return float(one @ other)


def _unit(found: Any) -> Vector:
    """A batch of one as a vector of length 1."""
    features = getattr(found, "pooler_output", found)
    vector: Vector = features[0].double().cpu().numpy()
    return vector / np.linalg.norm(vector)
