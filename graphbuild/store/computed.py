"""Recipe nodes: pictures computed on read from stored parents and a seed, never stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphbuild.images.codecs import Node, Pixels
from graphbuild.kinds.registry import KINDS


def recipe_node(kind: str, parents: Mapping[str, Node], seed: int) -> Node:
    """A recipe kind from its parents.

    `foreground` and `background` keep the picture inside, respectively outside, the foreground mask and are black
    elsewhere. Degradations act on the picture fitted to a long side of 512 px, never enlarged, so that they stay
    visible in a grid cell; rotations swap its sides.

    Args:
        parents: kind -> node, for every kind in `KINDS[kind].parents`.
        seed: the only source of randomness, 0 <= seed < 2**63.
    """
    image = parents["image"]
    if kind in ("foreground", "background"):
        return Node.computed(image.item_ix, kind, _cut_out(kind, parents))
    from graphbuild.images import degradations

    return degraded(image.item_ix, kind, degradations.fit(image.array()), seed)


def degraded(item_ix: int, kind: str, pixels: Pixels, seed: int) -> Node:
    """A degradation of these pixels (H x W x 3 RGB uint8) as they are; quarter turns swap their sides."""
    from graphbuild.images import degradations

    return Node.computed(item_ix, kind, degradations.apply(kind, pixels, seed))


def _cut_out(kind: str, parents: Mapping[str, Node]) -> Pixels:
    mask = parents["foreground_mask"].values() > 127
    return np.where(mask[:, :, None] == (kind == "foreground"), parents["image"].array(), 0).astype(np.uint8)


def parents_of(kind: str) -> tuple[str, ...]:
    """The stored kinds that must exist for a kind to exist: its recipe parents, or itself."""
    declared = KINDS.get(kind)
    return declared.parents if declared is not None and declared.is_recipe else (kind,)
