"""A generated picture with all that it can be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import KINDS, Kind

PICTURES = ("image", "style", "edit")
"""Families of kinds that show a scene, and no map of one."""

Maps = Mapping[str, tuple[object, object]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture that was made for one hole of a grid task, all pictures H x W x 3 RGB uint8 of one size.

    Attributes:
        made: what was generated.
        truth: what the graph has there.
        kind: what it shows.
        given: kind -> cell, of the query row.
        caption: what the picture is to show; empty if nothing says so.
        maps: kind of a given condition -> the same condition of `made` and of the item's picture, both made by the
            annotator of the graph.
    """

    made: Pixels
    truth: Pixels
    kind: Kind
    given: Mapping[str, Pixels] = field(default_factory=dict)
    caption: str = ""
    maps: Maps = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        """Whether it shows a scene, and no map of one."""
        return self.kind.family in PICTURES

    @property
    def is_style(self) -> bool:
        """Whether it is to have the style of a given picture."""
        return self.kind.family == "style" and "style_reference" in self.given

    @property
    def restores(self) -> bool:
        """Whether it is to be restored from a degradation."""
        return self.is_picture and any(KINDS[kind].family == "degradation" for kind in self.given if kind in KINDS)
