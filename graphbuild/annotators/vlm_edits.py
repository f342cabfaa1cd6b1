"""Edits in words, by a vision-language model that sees the picture: the caption of the result, and an instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphbuild.annotators.base import Derived, Request, Skip, Variants, parameter
from graphbuild.annotators.vlm import Temperature, VlmAnnotator, fitted
from graphbuild.models.answers import objects_in
from graphbuild.models.vlm import Question, Vlm

SUBJECT_PROMPT = (
    "This picture has the caption: {caption}\n"
    "Invent another picture, in which something else stands in the place of the main subject and all else stays as it "
    "is. The new subject is a single thing or being of another sort, fits into the same place at about the same size "
    "and would make a believable photograph. This is idea number {number}: the ideas before it are taken, so choose "
    "one that differs from what comes to mind first. Rewrite the caption for the new picture, and do not mention what "
    "was replaced. Then write the edit as an instruction to somebody who has the first picture only: what there is to "
    "be replaced, and by what, in one short sentence.\n"
    'Answer with JSON only: {"subject": "the new subject in at most six words", "caption": "the new caption", '
    '"instruction": "the instruction"}'
)
BACKGROUND_PROMPT = (
    "This picture has the caption: {caption}\n"
    "Invent another picture with the same subject, unchanged in look, pose and size, in quite different surroundings. "
    "They suit the subject and would make a believable photograph. This is idea number {number}: the ideas before it "
    "are taken. Rewrite the caption for the new picture, and do not mention the old surroundings. Then write the edit "
    "as an instruction to somebody who has the first picture only: where the subject is to be put, in one short "
    "sentence.\n"
    'Answer with JSON only: {"background": "the new surroundings in at most eight words", '
    '"caption": "the new caption", "instruction": "the instruction"}'
)


@dataclass(frozen=True, kw_only=True)
class VlmEdits(VlmAnnotator):
    """An edit that puts another main subject in place of the present one, in words: `edit_text` is the caption of the
    result, `edit_instruction` says what to do. The new subject is in the attrs.

    Sampled at temperature 0.8, with the number of the variant in the question, so that the variants of one picture
    differ. The total is not in the question: raising `variants` leaves the first ones as they are. The further
    parameters are those of `VlmAnnotator`.

    Args:
        prompt: the question; `{caption}` and `{number}`, from 1, are filled in.
        variants: edits of one picture.

    Skips with `refused` and `length`.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "caption")
    makes: ClassVar[tuple[str, ...]] = ("edit_text", "edit_instruction")
    item_facts: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[int] = 2
    temperature: Temperature = 0.8
    prompt: str = SUBJECT_PROMPT
    variants: Variants = parameter(5, output=False)

    def annotate(self, batch: Sequence[Request], model: Vlm) -> list[Derived | Skip | Exception]:
        return _edits(self, self.prompt, batch, model, "subject", *self.makes)


@dataclass(frozen=True, kw_only=True)
class VlmBackground(VlmAnnotator):
    """An edit that puts the same subject in other surroundings, in words: `background_text` is the caption of the
    result, `background_instruction` says what to do. The surroundings are in the attrs as `background`.

    The further parameters are those of `VlmAnnotator`.

    Args:
        prompt: the question; `{caption}` and `{number}`, from 1, are filled in.
        variants: backgrounds of one picture.

    Skips with `refused` and `length`.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "caption")
    makes: ClassVar[tuple[str, ...]] = ("background_text", "background_instruction")
    item_facts: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[int] = 2
    temperature: Temperature = 0.8
    prompt: str = BACKGROUND_PROMPT
    variants: Variants = parameter(1, output=False)

    def annotate(self, batch: Sequence[Request], model: Vlm) -> list[Derived | Skip | Exception]:
        return _edits(self, self.prompt, batch, model, "background", *self.makes)


def _edits(  # noqa: PLR0917 - what is asked, then the names of what is answered
    annotator: VlmAnnotator, prompt: str, batch: Sequence[Request], model: Vlm, new: str, caption: str, instruction: str
) -> list[Derived | Skip | Exception]:
    """Answers about pictures and their captions: `new` is the attribute that says what is new, then come the kinds of
    caption and instruction."""

    def read(answer: Mapping[str, Any]) -> Derived:
        said = {name: _line(answer, name) for name in (new, "caption", "instruction")}
        return Derived({caption: said["caption"], instruction: said["instruction"]}, attrs={new: said[new]})

    questions = _questions(annotator, prompt, batch)
    return annotator.ask_json(model, questions, objects_in, read, _schema(new, "caption", "instruction"))


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


def _schema(*names: str) -> dict[str, Any]:
    """Of an object with these texts."""
    texts = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": texts, "required": list(names), "additionalProperties": False}


def _line(answer: Mapping[str, Any], name: str) -> str:
    """A text of an answer, in one line.

    Raises:
        ValueError: it is not there, or empty.
    """
    said = answer.get(name)
    if not isinstance(said, str) or not said.strip():
        raise ValueError(f"{name!r} is missing or empty")
    return " ".join(said.split())
