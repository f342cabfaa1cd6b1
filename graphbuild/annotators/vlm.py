"""Questions to a vision-language model, in this process or behind a server, and annotators that ask them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from graphbuild.annotators.base import Annotator, Resources, Side, Skip, parameter
from graphbuild.errors import MissingWeights
from graphbuild.images.codecs import Pixels
from graphbuild.models.answers import words_of
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype
from graphbuild.models.vlm import Cut, Question, Refused, Reply, Vlm
from graphbuild.models.vlm_local import load_vlm
from graphbuild.models.vlm_server import VlmServer

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"

_PATCH = 28
_LEAST_SIDE = 56
_AGAIN = "That is not the JSON that was asked for ({why}). Answer once more, with the JSON and nothing else."
_REFUSAL = re.compile(
    r"\W*(i['\u2019]?m (very )?sorry|i am (very )?sorry|sorry[,.]|i can(not|['\u2019]t)\b|as an ai\b"
    r"|i['\u2019]?m (unable|not able)\b|i am (unable|not able)\b)",
    re.IGNORECASE,
)

NewTokens = Annotated[int, Field(ge=1, le=32768)]
Temperature = Annotated[float, Field(ge=0, le=10)] | None

Read = TypeVar("Read")
Answer = str | Skip | Exception
"""A reply as an annotator reports it: a refusal, and an answer that is cut off, is a skip."""
Values = Callable[[str], Iterator[Any]]
"""The JSON values of an answer that may be meant, the likeliest first: a function of `graphbuild.models.answers`."""


class UnreadableAnswer(ValueError):
    """An answer that is not the JSON that was asked for, `said` as it was given."""

    def __init__(self, why: str, said: str) -> None:
        super().__init__(f"{why}: {said[:80]!r}")
        self.why, self.said = why, said


@dataclass(frozen=True, kw_only=True)
class VlmAnnotator(Annotator):
    """An annotator that asks a vision-language model.

    The model runs in the worker, or behind any server with the OpenAI interface: vLLM, SGLang, llama.cpp,
    `transformers serve`, a provider. Pictures are resampled to multiples of 28 pixels, at most `max_side`, and go to a
    server as JPEG. A question that fails costs its own row alone.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder of the Qwen-VL family; with
            `server`, the name it knows the model by.
        server: its address, such as `http://localhost:8000/v1`; None to load the model here.
        server_version: what the server runs, in your words: a commit or a date; part of the version. Change it when the
            server's weights change. Not needed if the server says so itself in its list of models.
        api_key_env: environment variable that holds the server's key, here and on every worker.
        in_flight: requests to the server at once, for each worker.
        timeout_s: seconds to wait for an answer of the server.
        tries: of one request, with exponential backoff, while the server is busy, failing or silent.
        max_side: of a picture as the model gets it, pixels; 980 is within the 1280 patches of common servers.
        max_new_tokens: longest answer.
        temperature: of the draws, which follow the request's seed; 0 for the likeliest answer; None for the
            checkpoint's own settings. Its other settings (top-p, top-k, penalties) are kept at any temperature.
        dtype: precision of weights and activations of a model that is loaded here.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    deterministic: ClassVar[bool] = False
    beside_server: ClassVar[Resources] = Resources(cpus=0.25)
    """What an actor needs when the model is elsewhere."""

    model: str = parameter(MODEL, output=False)
    server: str | None = parameter(None, output=False, trusted=True)
    server_version: str | None = parameter(None, output=False)
    api_key_env: str | None = parameter(None, output=False, trusted=True)
    in_flight: Annotated[int, Field(ge=1, le=1024)] = parameter(16, output=False)
    timeout_s: Annotated[float, Field(gt=0, le=86400)] = parameter(120.0, output=False)
    tries: Annotated[int, Field(ge=1, le=100)] = parameter(5, output=False)
    max_side: Side = 980
    max_new_tokens: NewTokens = 512
    temperature: Temperature = None
    dtype: Dtype = "bfloat16"
    resources: Resources = Resources(memory_gb=24, batch_size=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is None:
            return
        address = urlsplit(self.server)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            # Not shown: what it holds may be a key, and it would be stored with the graph.
            raise ValueError("server: allowed: http(s)://host[:port][/path] without a name or key; api_key_env has it")
        least = replace(self.beside_server, batch_size=4 * self.in_flight)
        default = type(self).resources
        object.__setattr__(self, "resources", _instead(self.resources, default, least))

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        if self.server is not None:
            return {}
        known = self.model.partition("@")[0] == MODEL
        return {
            "model": Checkpoint(self.model, licence="apache-2.0", gigabytes=16.6) if known else Checkpoint(self.model)
        }

    def identity(self) -> str | None:
        """`model@server:version` of a server, and what pins the weights that are loaded here.

        Raises:
            MissingWeights: weights are not on this machine, or the server does not say what it runs.
        """
        if self.server is None:
            return super().identity()
        declared = self.server_version or self.connected().version()
        if declared is None:
            raise MissingWeights("; ".join(self.missing()))
        return " ".join(filter(None, (f"{self.model}@server:{'_'.join(declared.split())}", super().identity())))

    def missing(self) -> list[str]:
        here = super().missing() if self.checkpoints() else []
        return here if self.server is None else [*here, *self.connected().missing(self.server_version is not None)]

    def load(self, device: str) -> Any:
        """The model here, or the server."""
        if self.server is not None:
            return self.connected()
        return load_vlm(self.checkpoints()["model"].folder(), device, self.dtype, self.max_side)

    def connected(self) -> VlmServer:
        """The server; nothing is sent yet."""
        assert self.server is not None
        return VlmServer(
            address=self.server,
            model=self.model,
            key_from=self.api_key_env,
            in_flight=self.in_flight,
            timeout_s=self.timeout_s,
            tries=self.tries,
        )

    def ask(self, model: Vlm, questions: Sequence[Question]) -> list[Answer]:
        """The words of one answer per question, without thinking. A refusal, also one in words, is `Skip("refused")`,
        an answer that is cut off `Skip("length")`."""
        return [_answer(reply) for reply in self._replies(model, questions)]

    def ask_json(
        self, model: Vlm, questions: Sequence[Question], values: Values, read: Callable[[Any], Read],
        schema: Mapping[str, Any],
    ) -> list[Read | Skip | Exception]:  # fmt: skip
        """One answer per question, `read` from its JSON; an unreadable one is asked for once more, one that is cut off
        before there is enough of it is `Skip("length")`.

        Args:
            values: what in an answer may be meant.
            read: raises ValueError where a value is not what was asked for.
            schema: of the JSON, for servers that can hold a model to it.
        """
        answers = [_read(reply, values, read) for reply in self._replies(model, questions, schema)]
        unread = {at: answer for at, answer in enumerate(answers) if isinstance(answer, UnreadableAnswer)}
        again = [questions[at].after(wrong.said, _AGAIN.replace("{why}", wrong.why)) for at, wrong in unread.items()]
        for at, reply in zip(unread, self._replies(model, again, schema), strict=True):
            answers[at] = _read(reply, values, read)
        return answers

    def _replies(
        self, model: Vlm, questions: Sequence[Question], schema: Mapping[str, Any] | None = None
    ) -> list[Reply]:
        settings: Any = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return model.ask(questions, **settings, schema=schema)


def fitted(picture: Pixels, max_side: int) -> Pixels:
    """A picture as models get it: sides are multiples of 28, from 56 to `max_side`, near its shape (area averages
    where it shrinks, else bicubic). Models that count in pixels would resample it so themselves, each with another
    limit, and count in pixels of the result."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    most = max(_LEAST_SIDE, max_side // _PATCH * _PATCH)
    size = [min(most, max(_LEAST_SIDE, round(side * scale / _PATCH) * _PATCH)) for side in (width, height)]
    shrinks = size[0] * size[1] < width * height
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)  # type: ignore


def _answer(reply: Reply) -> Answer:
    if isinstance(reply, Exception):
        return reply
    if isinstance(reply, Cut):
        return Skip("length")
    if isinstance(reply, Refused) or _REFUSAL.match(words := words_of(reply)):
        return Skip("refused")
    return words


def _read(reply: Reply, values: Values, read: Callable[[Any], Read]) -> Read | Skip | Exception:
    if isinstance(reply, Exception | Refused):
        return _answer(reply)  # type: ignore[return-value]
    said = reply.words if isinstance(reply, Cut) else reply
    why = ""
    for value in values(said):
        try:
            return read(value)
        except ValueError as error:
            why = why or str(error)
    answer = _answer(reply)
    return UnreadableAnswer(why or "no JSON in it", words_of(said) or said) if isinstance(answer, str) else answer


def _instead(given: Resources, default: Resources, other: Resources) -> Resources:
    """`given`, with `other` wherever it says what the default says."""
    same = [f.name for f in fields(Resources) if getattr(given, f.name) == getattr(default, f.name)]
    return replace(given, **{name: getattr(other, name) for name in same})
