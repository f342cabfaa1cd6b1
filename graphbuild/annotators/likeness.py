"""How alike both ends of an edge look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from graphbuild.annotators.base import Derived, Each, Request, Resources, Score, each, parameter, scored
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.embeddings import DINO, Dino, cosine


@dataclass(frozen=True, kw_only=True)
class Likeness(Score):
    """Cosine of DINOv2's embeddings (M. Oquab et al., arXiv 2304.07193) of a picture and another one of its item: of a
    reference and the image, the same subject has a high one; of a styled picture and its style reference, the style.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `Dinov2Model`.
        to: the other picture; of style references each variant has its own.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    of: str = "reference"
    model: str = parameter(DINO.model, output=False)
    to: Literal["image", "reference", "style_reference"] = "image"
    resources: Resources = Resources(memory_gb=1, batch_size=8)

    def reads(self) -> tuple[str | Each, ...]:
        return (each(self.to) if self.to == "style_reference" else self.to,)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": DINO.at(self.model)}

    def load(self, device: str) -> Dino:
        return Dino.load(Path(self.checkpoints()["model"].folder()), device)

    def annotate(self, batch: Sequence[Request], model: Dino) -> list[Derived]:
        pairs = [(request.inputs["judged"].array(), request.inputs[self.to].array()) for request in batch]
        return [scored(cosine(model.picture(one), model.picture(other))) for one, other in pairs]
