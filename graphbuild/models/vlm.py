"""Vision-language models as annotators see them: questions about a picture, and replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from graphbuild.images.codecs import Pixels


@dataclass(frozen=True, slots=True)
class Question:
    """A picture and a conversation about it.

    Attributes:
        picture: H x W x 3 RGB uint8, shown before the first words; sides are what the model takes.
        turns: what was said so far, the user first and last, the model in between.
        seed: the only source of randomness in the answer, where it is drawn at all.
    """

    picture: Pixels
    turns: tuple[str, ...]
    seed: int = 0

    def after(self, answer: str, objection: str) -> Question:
        """The same conversation, continued with an answer and what is wrong with it."""
        return replace(self, turns=(*self.turns, answer, objection))


class Refused:
    """The model, or its server, declined to answer."""


Reply = str | Refused | Exception
"""What came of one question: words, a refusal, or what went wrong with this question alone."""


class Vlm(Protocol):
    """Something that answers questions: `LocalVlm` or `VlmServer`."""

    def ask(self, questions: Sequence[Question], *, max_new_tokens: int, temperature: float) -> list[Reply]:
        """One reply per question, in order.

        Args:
            max_new_tokens: after which an answer is cut off.
            temperature: 0 for the likeliest tokens, else tokens are sampled from softmax(scores / temperature).
        """
