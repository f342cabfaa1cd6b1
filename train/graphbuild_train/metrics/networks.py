"""The networks behind metrics: which weights each loads, whether they are here, and what they say of a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.embeddings import CLIP, DINO, Clip, Dino, Vector

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


@dataclass(frozen=True)
class Lpips:
    """LPIPS (R. Zhang et al., arXiv 1801.03924) on VGG-16; torchmetrics brings the linear layers."""

    network: nn.Module

    @classmethod
    def load(cls, folder: Path, device: str) -> Lpips:
        """From a folder with the weights of torchvision's VGG-16 in timm's form."""
        from safetensors.torch import load_file
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class downloads a pickle

        network = _NoTrainLpips(net="vgg", pnet_rand=True)
        found = load_file(folder / "model.safetensors")
        state = {name: found[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
        network.net.load_state_dict(state)
        return cls(network.to(device))

    @torch.no_grad()
    def distance(self, made: Pixels, truth: Pixels) -> float:
        """0 for equal pictures, H x W x 3 RGB uint8."""
        device = next(self.network.parameters()).device
        one, other = (_tensor(each, device).div(255) for each in (made, truth))
        return float(self.network(one, other, normalize=True))


@dataclass(frozen=True)
class Inception:
    """The Inception-v3 of FID (M. Heusel et al., arXiv 1706.08500), of torch-fidelity."""

    network: Any

    @classmethod
    def load(cls, file: Path, device: str) -> Inception:
        """From the `.pth` of torch-fidelity's release."""
        from torchmetrics.image.fid import NoTrainInceptionV3

        torch.load(file, weights_only=True)  # torch-fidelity would unpickle anything; this refuses all but tensors
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        return cls(network.to(device))

    @torch.no_grad()
    def picture(self, pixels: Pixels) -> Vector:
        """2048 features of an H x W x 3 RGB uint8 picture."""
        device = next(self.network.parameters()).device
        found: Vector = self.network(_tensor(pixels, device))[0].double().cpu().numpy()
        return found


@dataclass(frozen=True)
class Network:
    """What a metric loads: the weights, and the class that they are loaded as."""

    checkpoint: Checkpoint
    load: Callable[[Path, str], Any]
    url: str = ""
    """Where a file that is in no hub repository comes from."""
    libraries: tuple[str, ...] = ()
    """Import names that it needs beyond the extra `train`."""

    def missing(self) -> str | None:
        """One line on what is not on this machine and how to get it."""
        if absent := [name for name in self.libraries if find_spec(name) is None]:
            return f"Python packages {', '.join(absent)} are missing: pip install 'graphbuild[evaluate]'"
        if self.url and not self.checkpoint.local:
            return f"{self.checkpoint.model} is not here: download {self.url}, then: --weights inception=FILE"
        return self.checkpoint.missing()


def networks(weights: Mapping[str, str] | None = None) -> dict[str, Network]:
    """The networks by name.

    Args:
        weights: other weights for some of them: a hub repository, a folder or a file.

    Raises:
        ValueError: there is no network of a name.
    """
    weights = weights or {}
    if unknown := sorted(set(weights) - set(_NETWORKS)):
        raise ValueError(f"weights: {unknown[0]!r}; allowed: {', '.join(_NETWORKS)}")
    return {name: _with(network, weights.get(name)) for name, network in _NETWORKS.items()}


def _with(network: Network, model: str | None) -> Network:
    return network if model is None else replace(network, checkpoint=network.checkpoint.at(model))


_VGG = Checkpoint("timm/vgg16.tv_in1k", ("*.json", "*.safetensors"), "bsd-3-clause", 0.55)
_INCEPTION = Checkpoint(INCEPTION, ("*.pth",), "apache-2.0", 0.1)
_NETWORKS: Mapping[str, Network] = {
    "clip": Network(CLIP, Clip.load),
    "dino": Network(DINO, Dino.load),
    "vgg": Network(_VGG, Lpips.load, libraries=("torchmetrics",)),
    "inception": Network(_INCEPTION, Inception.load, INCEPTION_URL, ("torchmetrics", "torch_fidelity")),
}


def _tensor(pixels: Pixels, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))[None].to(device)
