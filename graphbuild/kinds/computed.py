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


def inpaint_mask(shape: str, parents: Mapping[str, Node], seed: int) -> Pixels:
    """White where the image is to be painted anew, black elsewhere; `shape` is one of `images.inpaint_masks.SHAPES`."""
    return np.where(_drawn(shape, parents, seed), np.uint8(255), np.zeros(3, np.uint8))


def masked(shape: str, parents: Mapping[str, Node], seed: int) -> Pixels:
    """The image, mid-grey where the inpaint mask of that shape and seed is white."""
    return np.where(_drawn(shape, parents, seed), np.uint8(128), parents["image"].array())


def tile(parents: Mapping[str, Node], seed: int) -> Pixels:
    """The image reduced by area to a long side of 48 to 192 pixels, each factor as likely as another, and enlarged
    bicubically to its size: what a tile ControlNet adds detail to."""
    import cv2

    image = parents["image"].array()
    height, width = image.shape[:2]
    longest = 48 * 4 ** np.random.Generator(np.random.PCG64(seed)).random()
    scale = min(1.0, longest / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def _drawn(shape: str, parents: Mapping[str, Node], seed: int) -> NDArray[np.bool_]:
    from graphbuild.images.inpaint_masks import SHAPES

    height, width = parents["image"].array().shape[:2]
    return SHAPES[shape](height, width, np.random.Generator(np.random.PCG64(seed)))[:, :, None]


def _mask(parents: Mapping[str, Node]) -> NDArray[np.bool_]:
    white: NDArray[np.bool_] = parents["foreground_mask"].values()[:, :, None] > 127
    return white
