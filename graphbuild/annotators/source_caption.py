"""The caption a source brought along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.annotators.base import Annotator, Derived, Request, Skip


@dataclass(frozen=True, kw_only=True)
class SourceCaption(Annotator):
    """The caption from the item's own row, as the source gave it: subject and description of Subjects200K, a sidecar
    file of a folder."""

    makes: ClassVar[tuple[str, ...]] = ("caption",)
    item_facts: ClassVar[tuple[str, ...]] = ("caption",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        captions = [(request.item.caption or "").strip() for request in batch]
        return [Derived({"caption": caption}) if caption else Skip("no_caption") for caption in captions]
