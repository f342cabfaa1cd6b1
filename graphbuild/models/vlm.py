"""Vision-language models as annotators see them: questions about a picture, and replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

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


@dataclass(frozen=True, slots=True)
class Cut:
    """Words that end where the answer had its greatest length."""

    words: str


Reply = str | Cut | Refused | Exception
"""What came of one question: words, the beginning of some, a refusal, or what went wrong with this question alone."""


class Vlm(Protocol):
    """Something that answers questions: `LocalVlm` or `VlmServer`."""

    def ask(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        temperature: float | None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """One reply per question, in order.

        Args:
            max_new_tokens: after which an answer is cut off.
            temperature: 0 for the likeliest tokens; above, tokens are sampled from softmax(scores / temperature), from
                those that the checkpoint's own settings leave; None for these settings as they are.
            schema: JSON schema of the answer, for models that can be held to one; others ignore it.
        """
