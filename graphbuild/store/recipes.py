"""Recipe nodes: pictures computed on read from stored parents and a seed, never stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphbuild.codecs import Node, Pixels
from graphbuild.kinds import kind_of


def recipe_node(kind: str, parents: Mapping[str, Node], seed: int) -> Node:
    """A recipe kind from its parents.

    `foreground` and `background` keep the picture inside, respectively outside, the foreground mask and are black
    elsewhere. Degradations act on the picture fitted to a long side of 512 px, never enlarged, so that they stay
    visible in a grid cell; rotations swap its sides.

    Args:
        parents: kind -> node, for every kind in `kind_of(kind).parents`.
        seed: the only source of randomness, 0 <= seed < 2**63.
    """
    image = parents["image"]
    pixels = _cut_out(kind, parents) if kind in ("foreground", "background") else _degraded(kind, image.array(), seed)
    return Node.computed(image.item_ix, kind, pixels)


def _cut_out(kind: str, parents: Mapping[str, Node]) -> Pixels:
    mask = parents["foreground_mask"].values() > 127
    return np.where(mask[:, :, None] == (kind == "foreground"), parents["image"].array(), 0).astype(np.uint8)


def _degraded(kind: str, pixels: Pixels, seed: int) -> Pixels:
    from graphbuild import degradations

    return degradations.apply(kind, degradations.fit(pixels), seed)


def parents_of(kind: str) -> tuple[str, ...]:
    """The stored kinds that must exist for a kind to exist: its recipe parents, or itself."""
    declared = kind_of(kind)
    return declared.parents if declared.is_recipe else (kind,)
