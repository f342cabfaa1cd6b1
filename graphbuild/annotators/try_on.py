"""What virtual try-on needs of a photograph of a person: the garment, and the person without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Derived, Request, Skip
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.kinds.registry import Kind

GARMENTS = {"upper": ("upper-clothes",), "lower": ("skirt", "pants"), "dress": ("dress",)}
"""Garment -> names of its classes, lower case."""
LIMBS = {
    "upper": ("left-arm", "right-arm"),
    "lower": ("left-leg", "right-leg"),
    "dress": ("left-arm", "right-arm", "left-leg", "right-leg"),
}
"""Garment -> what may be under it, and would give away its sleeves or its length."""
_GREY, _WHITE, _MARGIN = 128, 255, 0.1

GARMENT = Kind(
    name="garment", family="image", codec="source", description="a garment cut out of a photo, on white",
    phrases=("a garment cut out on white", "a piece of clothing on its own", "the clothing item alone",
             "a cut-out of the garment"),
)  # fmt: skip
AGNOSTIC = Kind(
    name="agnostic", family="image", codec="source", description="the person with the garment greyed out",
    phrases=("a person whose garment is greyed out", "a photo with the clothing area blanked out",
             "the person without the garment", "a clothing-agnostic photo of the person"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TryOn(Annotator):
    """The garment of a person, cut out on white and cropped to its box with a tenth of margin, and the picture with the
    garment and the bare limbs it may cover greyed out, as VITON-HD has them (S. Choi et al., arXiv 2103.16874). Other
    parts of the person, such as hair and face, stay as they are.

    The kinds are those of the task list `viton_hd`. Attrs: `garment`, which one it is. The score is the garment's share
    of the picture (0..1). No weights: `clothes` says what is where.

    Args:
        garment: which one; `any` takes the one that covers most of the picture.
        min_share: least share of the picture (0..1) that it covers.
        grow: by how much the grey reaches beyond, as a share of the picture's long side (0..1).

    Skips with `no_garment`.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "clothes")
    makes: ClassVar[tuple[Kind, ...]] = (GARMENT, AGNOSTIC)
    item_facts: ClassVar[tuple[str, ...]] = ()
    garment: Literal["any", "upper", "lower", "dress"] = "any"
    min_share: Share = 0.01
    grow: Share = 0.015

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._one(request.inputs["image"].array(), request.inputs["clothes"]) for request in batch]

    def _one(self, picture: Pixels, clothes: Node) -> Derived | Skip:
        wanted = GARMENTS if self.garment == "any" else {self.garment: GARMENTS[self.garment]}
        found = {name: _region(clothes, classes) for name, classes in wanted.items()}
        name = max(found, key=lambda name: int(found[name].sum()))
        garment, share = found[name], float(found[name].mean())
        if not garment.any() or share < self.min_share:
            return Skip("no_garment")
        nodes = {"garment": _cut_out(picture, garment), "agnostic": self._without(picture, clothes, name)}
        return Derived(nodes, score=share, attrs={"garment": name})

    def _without(self, picture: Pixels, clothes: Node, garment: str) -> Pixels:
        hidden = _region(clothes, (*GARMENTS[garment], *LIMBS[garment]))
        reach = round(self.grow * max(picture.shape[:2]))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        grown = cv2.dilate(hidden.astype(np.uint8), disc) > 0
        kept = ~hidden & ~_region(clothes, ("background", ""))
        return np.where((grown & ~kept)[:, :, None], np.uint8(_GREY), picture)


def _region(clothes: Node, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Where a label map shows one of some classes, named in lower case."""
    numbers = [number for number, name in enumerate(clothes.attrs.get("labels", ())) if name.lower() in classes]
    return np.isin(clothes.values(), numbers)


def _cut_out(picture: Pixels, region: NDArray[np.bool_]) -> Pixels:
    """A region on white, cropped to its box and a margin around it, which may lie outside the picture."""
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    margin = round(_MARGIN * max(width, height))
    box = (slice(top, top + height), slice(left, left + width))
    alone = np.where(region[box][:, :, None], picture[box], np.uint8(_WHITE))
    return np.pad(alone, ((margin, margin), (margin, margin), (0, 0)), constant_values=_WHITE)
