"""Soft edges of a holistically-nested network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, parameter
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.controlnet_aux import HUB, fill, network_class, soft_edges
from graphbuild.models.device import Dtype, frozen, torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Hed(Condition):
    """Soft edges, bright on black (S. Xie and Z. Tu, "Holistically-Nested Edge Detection", arXiv 1504.06375), with the
    network and weights that ControlNet was trained on: five side outputs, enlarged, averaged, then the sigmoid.

    The score is the mean brightness, 0..1.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`), a local folder with `ControlNetHED.pth`, or that
            file.
        resolution: short side in pixels at which the network works, rounded with the long side to multiples of 64;
            the long side is at most four times as long. 512 is that of Graph200K. Edges are then resized linearly.
        dtype: precision of the network.
        compile: let torch compile the network, which pays off when all pictures have one size.
    """

    makes: ClassVar[tuple[str, ...]] = ("hed",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "controlnet_aux")
    model: str = parameter(HUB, output=False)
    resolution: Side = 512
    dtype: Dtype = "float32"
    compile: bool = parameter(False, output=False)
    resources: Resources = Resources(memory_gb=4, batch_size=8)

    def checkpoints(self) -> dict[str, Checkpoint]:
        licence = "apache-2.0" if self.model.startswith(HUB) else "unknown"
        return {"model": Checkpoint(self.model, ("ControlNetHED.pth",), licence, 0.03)}

    def load(self, device: str) -> Any:
        network = network_class("hed", "ControlNetHED_Apache2")()
        fill(network, self.checkpoints()["model"])
        return frozen(network, device, self.dtype, compiled=self.compile)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = soft_edges(pictures, self.resolution, lambda stack: self._probabilities(stack, model))
        return [Derived({"hed": (edges * 255).round().astype(np.uint8)}, score=float(edges.mean())) for edges in maps]

    def _probabilities(self, stack: torch.Tensor, network: Any) -> torch.Tensor:
        import torch

        on_device = stack.to(next(network.parameters()).device, torch_dtype(self.dtype))
        sides = (
            torch.nn.functional.interpolate(side.float(), stack.shape[2:], mode="bilinear")
            for side in network(on_device)
        )
        return torch.stack(tuple(sides)).mean(dim=0).sigmoid()
