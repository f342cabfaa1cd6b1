"""Soft edges of a tiny network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, parameter
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.controlnet_aux import fill, network_class, soft_edges
from graphbuild.models.device import frozen

if TYPE_CHECKING:
    import torch

MODEL = "fal/teed"
MEAN_BGR = (104.007, 116.669, 122.679)
"""What the authors take off blue, green and red, 0..255. controlnet-aux leaves it out and feeds RGB."""


@dataclass(frozen=True, kw_only=True)
class Teed(Condition):
    """Soft edges, bright on black, thinner than those of `hed`, from 58 thousand weights (X. Soria et al., "Tiny and
    Efficient Model for the Edge Detection Generalization", arXiv 2308.06468): the sigmoid of the fused output, from
    pictures prepared as the authors do.

    The score is the mean brightness, 0..1.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`), a local folder with `5_model.pth`, or a file in its
            form.
        resolution: short side in pixels at which the network works, rounded with the long side to multiples of 64;
            the long side is at most four times as long. Edges are then resized linearly.
    """

    makes: ClassVar[tuple[str, ...]] = ("hed",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "controlnet_aux")
    model: str = parameter(MODEL, output=False)
    resolution: Side = 512
    resources: Resources = Resources(memory_gb=3, batch_size=8)

    def checkpoints(self) -> dict[str, Checkpoint]:
        licence = "mit" if self.model.startswith(MODEL) else "unknown"
        return {"model": Checkpoint(self.model, ("5_model.pth",), licence, 0.0003)}

    def load(self, device: str) -> Any:
        network = network_class("teed.ted", "TED")()
        fill(network, self.checkpoints()["model"])
        return frozen(network, device, "float32")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = soft_edges(pictures, self.resolution, lambda stack: _probabilities(stack, model))
        return [Derived({"hed": (edges * 255).round().astype(np.uint8)}, score=float(edges.mean())) for edges in maps]


def _probabilities(stack: torch.Tensor, network: Any) -> torch.Tensor:
    blue_first = stack.flip(1) - stack.new_tensor(MEAN_BGR)[:, None, None]
    fused: torch.Tensor = network(blue_first.to(next(network.parameters()).device))[-1]
    return fused.sigmoid()
