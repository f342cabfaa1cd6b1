"""Whether a picture shows what its text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from graphbuild.annotators.base import Derived, Each, Request, Resources, Score, each, parameter, scored
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.embeddings import CLIP, Clip, cosine


@dataclass(frozen=True, kw_only=True)
class CaptionMatch(Score):
    """CLIPScore (J. Hessel et al., arXiv 2104.08718): 2.5 times the cosine of CLIP's embeddings of a picture and its
    text, cut off at 0 and 1.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder with a `CLIPModel`.
        text: the kind that says what the picture shows; of edits each variant has its own.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    model: str = parameter(CLIP.model, output=False)
    text: Literal["caption", "edit_text", "background_text"] = "caption"
    resources: Resources = Resources(memory_gb=2, batch_size=8)

    def reads(self) -> tuple[str | Each, ...]:
        return ("caption",) if self.text == "caption" else (each(self.text),)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {"model": CLIP.at(self.model)}

    def load(self, device: str) -> Clip:
        return Clip.load(Path(self.checkpoints()["model"].folder()), device)

    def annotate(self, batch: Sequence[Request], model: Clip) -> list[Derived]:
        return [self._of(request, model) for request in batch]

    def _of(self, request: Request, model: Clip) -> Derived:
        found = cosine(model.picture(request.inputs["judged"].array()), model.words(request.inputs[self.text].text))
        return scored(2.5 * found, cosine=found)
