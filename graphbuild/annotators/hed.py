"""Soft edges of a holistically-nested network, and what the other networks of controlnet-aux share with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Condition, Derived, Request, Resources, parameter
from graphbuild.errors import GraphError
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, torch_dtype
from graphbuild.models.resizing import Made, in_stacks, map_at, picture_at, working_size

if TYPE_CHECKING:
    import torch

HUB = "lllyasviel/Annotators"
LONGEST = 4
"""The longest working side as a multiple of `resolution`, so that a strip of pixels does not fill the memory."""


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
    libraries: ClassVar[tuple[str, ...]] = ("torch", "controlnet_aux")
    model: str = parameter(HUB, output=False)
    resolution: int = 512
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
        return soft_edges(batch, self.resolution, lambda stack: self._probabilities(stack, model))

    def _probabilities(self, stack: torch.Tensor, network: Any) -> torch.Tensor:
        import torch

        on_device = stack.to(next(network.parameters()).device, torch_dtype(self.dtype))
        sides = (
            torch.nn.functional.interpolate(side.float(), stack.shape[2:], mode="bilinear")
            for side in network(on_device)
        )
        return torch.stack(tuple(sides)).mean(dim=0).sigmoid()


# ---- shared with the other networks of controlnet-aux ------------------------------------------------------------


def network_class(module: str, name: str) -> Any:
    """A class of controlnet-aux, imported without its noise."""
    with warnings.catch_warnings():
        # Whatever is imported from it, the package imports all of its detectors, and a dozen deprecations with them.
        warnings.simplefilter("ignore")
        return getattr(import_module(f"controlnet_aux.{module}"), name)


def fill(network: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of the one .pth file of a checkpoint into a network.

    Raises:
        GraphError: they belong to another network.
        MissingWeights: they are not on this machine.
    """
    import torch

    found = checkpoint.folder()
    file = found if found.is_file() else next(found.rglob(checkpoint.files[0]))
    saved = torch.load(file, map_location="cpu", weights_only=True)
    # What was saved in training has the weights beside its epoch, under the names a parallel module gives them.
    tensors = {name.removeprefix("module."): tensor for name, tensor in saved.get("state_dict", saved).items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = shorten(str(error), 200)
        raise GraphError(f"model {checkpoint.model!r}: {file.name} holds another network: {reason}") from error


def at_resolution(
    batch: Sequence[Request], resolution: int, run: Callable[[torch.Tensor], Sequence[Made]]
) -> list[Made]:
    """What `run` makes of each request's picture, from stacks of those that have one working size (n x 3 x h x w
    floats, RGB 0..255): the short side near `resolution`, multiples of 64. Without gradients."""
    import torch

    inputs = []
    for request in batch:
        picture = request.inputs["image"].array()
        size = working_size(picture, short=resolution, long=LONGEST * resolution, multiple=64)
        inputs.append(torch.tensor(picture_at(picture, size)).permute(2, 0, 1).float())
    with torch.inference_mode():
        return in_stacks(inputs, lambda stack, _: run(stack))


def soft_edges(
    batch: Sequence[Request], resolution: int, probabilities: Callable[[torch.Tensor], torch.Tensor]
) -> list[Derived]:
    """Edges of each request's picture, at its size, from a network that works at `resolution`.

    Args:
        probabilities: n x 3 x h x w floats, RGB 0..255, to n x 1 x h x w edge probabilities, 0..1.
    """
    small = at_resolution(batch, resolution, lambda stack: list(probabilities(stack)[:, 0].float().cpu().numpy()))
    sizes = [request.inputs["image"].array().shape[:2] for request in batch]
    maps = [map_at(values, size) for values, size in zip(small, sizes, strict=True)]
    return [Derived({"hed": (edges * 255).round().astype(np.uint8)}, score=float(edges.mean())) for edges in maps]
