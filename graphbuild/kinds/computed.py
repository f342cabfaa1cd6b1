"""Pictures of computed kinds: made on read from the nodes of their stored parents and a seed, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphbuild.images.codecs import Pixels
    from graphbuild.images.node import Node


def degraded(name: str, parents: Mapping[str, Node], seed: int) -> Pixels:
    """The image fitted to a long side of 512 px, never enlarged, with one of the degradations.

    Fitted first, so that the damage stays visible in a grid cell. Quarter turns swap the sides.
    """
    from graphbuild.images import degradations

    return degradations.apply(name, degradations.fit(parents["image"].array()), seed)


def foreground(parents: Mapping[str, Node], seed: int) -> Pixels:
    """The image where the foreground mask is white, black elsewhere."""
    return np.where(_mask(parents), parents["image"].array(), np.uint8(0))


def background(parents: Mapping[str, Node], seed: int) -> Pixels:
    """The image where the foreground mask is black, black elsewhere."""
    return np.where(_mask(parents), np.uint8(0), parents["image"].array())


def _mask(parents: Mapping[str, Node]) -> NDArray[np.bool_]:
    white: NDArray[np.bool_] = parents["foreground_mask"].values()[:, :, None] > 127
    return white
