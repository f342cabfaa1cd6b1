"""Line drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, parameter
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.controlnet_aux import HUB, fill, network_class, soft_edges
from graphbuild.models.device import Dtype, frozen, torch_dtype

if TYPE_CHECKING:
    import torch

FILES = {"fine": "sk_model.pth", "coarse": "sk_model2.pth"}
_RESIDUAL_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Lineart(Condition):
    """A drawing of the lines an artist would draw, light on black (C. Chan et al., "Learning to generate line drawings
    that convey geometry and semantics", arXiv 2203.12691), with the networks that lineart ControlNets were trained on.

    The score is the mean brightness, 0..1.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`), a local folder with `sk_model.pth` (fine) or
            `sk_model2.pth` (coarse), or that file.
        style: `fine` lines, or fewer and `coarse` ones.
        resolution: short side in pixels at which the network works, rounded with the long side to multiples of 64;
            the long side is at most four times as long. Lines are then resized linearly.
        dtype: precision of the network.
    """

    makes: ClassVar[tuple[str, ...]] = ("lineart",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "controlnet_aux")
    model: str = parameter(HUB, output=False)
    style: Literal["fine", "coarse"] = "fine"
    resolution: Side = 512
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=4, batch_size=8)

    def checkpoints(self) -> dict[str, Checkpoint]:
        licence = "mit" if self.model.startswith(HUB) else "unknown"
        return {"model": Checkpoint(self.model, (FILES[self.style],), licence, 0.02)}

    def load(self, device: str) -> Any:
        network = network_class("lineart", "Generator")(3, 1, _RESIDUAL_BLOCKS)
        fill(network, self.checkpoints()["model"])
        return frozen(network, device, self.dtype)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = soft_edges(pictures, self.resolution, lambda stack: self._lines(stack, model))
        return [Derived({"lineart": (each * 255).round().astype(np.uint8)}, score=float(each.mean())) for each in maps]

    def _lines(self, stack: torch.Tensor, network: Any) -> torch.Tensor:
        """The network draws dark lines on white."""
        paper: torch.Tensor = network((stack / 255).to(next(network.parameters()).device, torch_dtype(self.dtype)))
        return 1 - paper.float()
