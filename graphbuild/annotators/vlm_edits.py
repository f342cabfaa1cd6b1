"""Captions rewritten for edits, by a vision-language model that sees the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.annotators.base import Derived, Request, Skip, Variants, parameter
from graphbuild.annotators.vlm import Temperature, VlmAnnotator, fitted
from graphbuild.models.vlm import Question, Vlm

SUBJECT_PROMPT = (
    "This picture has the caption: {caption}\n"
    "Invent another picture, in which something else stands in the place of the main subject and all else stays as it "
    "is. The new subject is a single thing or being of another sort, fits into the same place at about the same size "
    "and would make a believable photograph. This is idea number {number}: the ideas before it are taken, so choose "
    "one that differs from what comes to mind first. Rewrite the caption for the new picture, and do not mention what "
    "was replaced.\n"
    'Answer with JSON only: {"subject": "the new subject in at most six words", "caption": "the new caption"}'
)
BACKGROUND_PROMPT = (
    "This picture has the caption: {caption}\n"
    "Invent another picture with the same subject, unchanged in look, pose and size, in quite different surroundings. "
    "They suit the subject and would make a believable photograph. This is idea number {number}: the ideas before it "
    "are taken. Rewrite the caption for the new picture, and do not mention the old surroundings.\n"
    'Answer with JSON only: {"background": "the new surroundings in at most eight words", "caption": "the new caption"}'
)


@dataclass(frozen=True, kw_only=True)
class VlmEdits(VlmAnnotator):
    """The caption with another main subject in place of the present one; the new subject is in the attrs.

    Sampled at temperature 0.8, with the number of the variant in the question, so that the variants of one picture
    differ. The total is not in the question: raising `variants` leaves the first ones as they are. The further
    parameters are those of `VlmAnnotator`.

    Args:
        prompt: the question; `{caption}` and `{number}`, from 1, are filled in.
        variants: edits of one picture.

    Skips with `refused`.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "caption")
    makes: ClassVar[tuple[str, ...]] = ("edit_text",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    temperature: Temperature = 0.8
    prompt: str = SUBJECT_PROMPT
    variants: Variants = parameter(5, output=False)

    def annotate(self, batch: Sequence[Request], model: Vlm) -> list[Derived | Skip | Exception]:
        def read(answer: Any) -> Derived:
            return _rewritten(answer, "edit_text", "subject")

        return self.ask_json(model, _questions(self, self.prompt, batch), read)


@dataclass(frozen=True, kw_only=True)
class VlmBackground(VlmAnnotator):
    """The caption with other surroundings for the same subject; they are in the attrs as `background`.

    The further parameters are those of `VlmAnnotator`.

    Args:
        prompt: the question; `{caption}` and `{number}`, from 1, are filled in.
        variants: backgrounds of one picture.

    Skips with `refused`.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "caption")
    makes: ClassVar[tuple[str, ...]] = ("background_text",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    temperature: Temperature = 0.8
    prompt: str = BACKGROUND_PROMPT
    variants: Variants = parameter(1, output=False)

    def annotate(self, batch: Sequence[Request], model: Vlm) -> list[Derived | Skip | Exception]:
        def read(answer: Any) -> Derived:
            return _rewritten(answer, "background_text", "background")

        return self.ask_json(model, _questions(self, self.prompt, batch), read)


def _questions(annotator: VlmAnnotator, prompt: str, batch: Sequence[Request]) -> list[Question]:
    return [
        Question(
            fitted(request.inputs["image"].array(), annotator.max_side),
            (
                prompt.replace("{number}", str(request.variant + 1)).replace(
                    "{caption}", request.inputs["caption"].text
                ),
            ),
            request.seed,
        )
        for request in batch
    ]


def _rewritten(answer: Any, kind: str, changed: str) -> Derived:
    """The new caption, as a node of `kind`, and the change as an attribute.

    Raises:
        ValueError: one of them is not there, or empty.
    """
    for name in (changed, "caption"):
        if not isinstance(answer, dict) or not isinstance(answer.get(name), str) or not answer[name].strip():
            raise ValueError(f"{name!r} is missing or empty")
    return Derived({kind: " ".join(answer["caption"].split())}, attrs={changed: " ".join(answer[changed].split())})
