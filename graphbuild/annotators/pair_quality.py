"""What a data set says itself of the quality of its pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.annotators.base import Derived, Request, Score, Skip, scored

_PARTS = ("compositeStructure", "objectConsistency", "imageQuality")


@dataclass(frozen=True, kw_only=True)
class PairQuality(Score):
    """The assessment that Subjects200K has of its pairs (Z. Tan et al., arXiv 2411.15098): the lowest of three grades
    of 0 to 5, as a share of 5. OminiControl trains on pairs of 1.0.

    Skips with `no_assessment` where the source has none.
    """

    item_facts: ClassVar[tuple[str, ...]] = ("meta",)
    of: str = "reference"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived | Skip]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived | Skip:
        grades = (json.loads(request.item.meta or "{}") or {}).get("quality_assessment") or {}
        known = {name: grades[name] / 5 for name in _PARTS if grades.get(name) is not None}
        return scored(min(known.values()), **known) if len(known) == len(_PARTS) else Skip("no_assessment")
