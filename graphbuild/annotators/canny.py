"""Canny edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from graphbuild.annotators.base import Condition, Derived, Request


@dataclass(frozen=True, kw_only=True)
class Canny(Condition):
    """Binary edges, white on black: `cv2.Canny(rgb, low, high)` on the colour picture, where the channel with the
    largest gradient decides (J. Canny, "A Computational Approach to Edge Detection", PAMI 1986).

    Args:
        low, high: hysteresis thresholds on the L1 gradient, low <= high; 100 and 200 are those of Graph200K.
    """

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    low: Annotated[float, Field(ge=0, le=2040)] = 100.0
    high: Annotated[float, Field(ge=0, le=2040)] = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:  # OpenCV would swap them: two versions of the same pixels
            raise ValueError(f"low: {self.low}; allowed: at most high, which is {self.high}")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        import cv2

        return [Derived({"canny": cv2.Canny(r.inputs["image"].array(), self.low, self.high)}) for r in batch]
