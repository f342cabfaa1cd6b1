"""Whether an edit changed anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphbuild.annotators.base import Derived, Each, Request, Score, scored
from graphbuild.images.codecs import Pixels

_SIDE, _MOST, _FULL = 32, 0.05, 32.0


@dataclass(frozen=True, kw_only=True)
class Changed(Score):
    """How much an edit differs from the picture where it differs most: the mean difference of the 5 % of 32 x 32 blocks
    that differ most, 32 levels and more counting as 1. A near-duplicate of its parent has a low one, however small the
    object is that should have been replaced; `everywhere` is the mean of all blocks."""

    needs: ClassVar[tuple[str | Each, ...]] = ("image",)
    of: str = "edit_local"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived:
        edited, picture = (_blocks(request.inputs[name].array()) for name in ("judged", "image"))
        differ = np.sort(np.abs(edited - picture).mean(2).ravel())
        most = differ[-max(1, round(_MOST * differ.size)) :].mean()
        return scored(most / _FULL, everywhere=min(1.0, differ.mean() / _FULL))


def _blocks(picture: Pixels) -> Any:
    import cv2

    return cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
