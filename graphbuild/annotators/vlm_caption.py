"""Captions by a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphbuild.annotators.base import Derived, Request, Skip, parameter
from graphbuild.annotators.vlm import Answer, VlmAnnotator, fitted
from graphbuild.models.vlm import Question, Vlm

PROMPT = (
    "Describe this picture in one paragraph of at most 100 words. Name the main subject first, then what it does "
    "or how it lies, what is around and behind it, and the colours, materials, light and style. Write only what can "
    "be seen, in plain sentences, and do not open with words such as 'the image shows'."
)


@dataclass(frozen=True, kw_only=True)
class VlmCaption(VlmAnnotator):
    """One paragraph about a picture (S. Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923).

    Thinking and a fence around the words are left out and white space is cleaned, nothing else is changed. The further
    parameters are those of `VlmAnnotator`.

    Args:
        prompt: the question.

    Skips with `refused`, `length` and, for an empty answer, `no_caption`.
    """

    makes: ClassVar[tuple[str, ...]] = ("caption",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[int] = 2
    of: str = parameter("image", added=True)
    prompt: str = PROMPT

    def annotate(self, batch: Sequence[Request], model: Vlm) -> list[Derived | Skip | Exception]:
        pictures = [fitted(request.inputs["image"].array(), self.max_side) for request in batch]
        questions = [Question(shown, (self.prompt,), r.seed) for r, shown in zip(batch, pictures, strict=True)]
        return [_caption(reply) for reply in self.ask(model, questions)]


def _caption(reply: Answer) -> Derived | Skip | Exception:
    if not isinstance(reply, str):
        return reply
    caption = " ".join(reply.split())
    return Derived({"caption": caption}) if caption else Skip("no_caption")
