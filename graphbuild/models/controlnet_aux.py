"""Networks of controlnet-aux: their classes, their weights, and pictures at the size they work at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import GraphError
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.resizing import Made, in_stacks, map_at, picture_at, working_size

if TYPE_CHECKING:
    import torch

HUB = "lllyasviel/Annotators"
LONGEST = 4
"""The longest working side as a multiple of `resolution`, so that a strip of pixels does not fill the memory."""


def network_class(module: str, name: str) -> Any:
    """A class of controlnet-aux, imported without its warnings."""
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
    pictures: Sequence[Pixels], resolution: int, run: Callable[[torch.Tensor], Sequence[Made]]
) -> list[Made]:
    """The output of `run` for each picture (H x W x 3 RGB uint8). It gets pictures of one working size as a stack (n x
    3 x h x w floats, RGB 0..255): the short side near `resolution`, multiples of 64. Without gradients."""
    import torch

    inputs = []
    for picture in pictures:
        size = working_size(picture, short=resolution, long=LONGEST * resolution, multiple=64)
        inputs.append(torch.tensor(picture_at(picture, size)).permute(2, 0, 1).float())
    with torch.inference_mode():
        return in_stacks(inputs, lambda stack, _: run(stack))


def soft_edges(
    pictures: Sequence[Pixels], resolution: int, probabilities: Callable[[torch.Tensor], torch.Tensor]
) -> list[NDArray[np.float32]]:
    """H x W edge probabilities, 0..1, of each picture at its size, from a network that works at `resolution`.

    Args:
        probabilities: n x 3 x h x w floats, RGB 0..255, to n x 1 x h x w edge probabilities, 0..1.
    """
    small = at_resolution(pictures, resolution, lambda stack: list(probabilities(stack)[:, 0].float().cpu().numpy()))
    return [map_at(values, picture.shape[:2]) for values, picture in zip(small, pictures, strict=True)]
