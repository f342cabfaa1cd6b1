"""A vision-language model behind a server with the OpenAI chat interface."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, TimeoutError

from graphbuild.errors import GraphError
from graphbuild.images.codecs import CODECS
from graphbuild.models.vlm import Cut, Question, Refused, Reply

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REJECTED = frozenset({400, 422, 501})
_REFUSED = frozenset({"content_filter", "content_policy_violation"})
_VERSION_FIELDS = ("revision", "version", "digest")
_LIST_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60
_LEAST_SECRET = 8
"""Characters of a key that is masked in what a model says, too; shorter ones are placeholders such as `EMPTY`."""


class ServerFault(RuntimeError):
    """A request that the server did not answer, or not as the interface says; without its address or its key."""


class Rejected(ServerFault):
    """A request that the server will not take as it is."""


class _Patience(Retry):
    """Exponential backoff with jitter; an unreadable `Retry-After` is ignored."""

    def get_backoff_time(self) -> float:
        pause = min(self.backoff_factor * 2.0 ** (len(self.history) - 1), self.backoff_max)
        return pause * random.SystemRandom().uniform(0.5, 1)

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        try:
            return super().get_retry_after(response)
        except InvalidHeader:
            return None


@dataclass(frozen=True, kw_only=True)
class VlmServer:
    """A client of the server. Nothing is sent before the first question.

    Attributes:
        address: with or without `/v1`.
        model: the name it knows the model by.
        key_from: environment variable with its key.
        in_flight: requests at once.
        timeout_s: seconds without data after which a request is given up.
        tries: of one request, with exponential backoff from `pause_s` on and jitter, or after the server's
            `Retry-After`; a pause is at most a minute.
    """

    address: str
    model: str
    key_from: str | None = None
    in_flight: int = 16
    timeout_s: float = 120.0
    tries: int = 5
    pause_s: float = 1.0

    def ask(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        temperature: float | None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """One reply per question, in order, `in_flight` of them under way at once. A server that rejects a request with
        a schema and takes the same without is not sent one again."""

        def reply(question: Question) -> Reply:
            body = {"model": self.model, "messages": _messages(question), "max_tokens": max_new_tokens}
            body |= {} if temperature == 0 else {"seed": question.seed % 2**31}
            body |= {} if temperature is None else {"temperature": temperature}
            try:
                return _said(self._answer(body) if schema is None else self._held_to(schema, body))
            except ServerFault as fault:
                return fault

        with ThreadPoolExecutor(self.in_flight) as pool:
            return list(pool.map(reply, questions))

    def version(self) -> str | None:
        """Which version of the model it runs, if its list of models has a `revision`, `version` or `digest`."""
        try:
            listed = self._listed()
        except ServerFault:
            return None
        own = next((entry for entry in listed if entry.get("id") == self.model), {})
        return next((str(own[name]) for name in _VERSION_FIELDS if own.get(name)), None)

    def missing(self, declared: bool) -> list[str]:
        """What keeps it from being asked, one line each.

        Args:
            declared: the user has said what it runs.
        """
        if self.key_from is not None and not os.environ.get(self.key_from):
            return [f"api_key_env: the environment variable {self.key_from} is not set"]
        try:
            names = [str(entry.get("id")) for entry in self._listed()]
        except ServerFault as fault:
            return [f"server {self.address}: {fault}; start it, or correct server or api_key_env"]
        if names and self.model not in names:
            return [f"server {self.address} does not serve model {self.model!r}; it serves: {', '.join(names)}"]
        if not declared and self.version() is None:
            return [f"server {self.address} does not say what it runs: give server_version, your word for it"]
        return []

    # ---- http --------------------------------------------------------------------------------------------------

    @cached_property
    def _key(self) -> str | None:
        key = None if self.key_from is None else os.environ.get(self.key_from)
        if self.key_from is not None and not key:
            raise GraphError(f"api_key_env: the environment variable {self.key_from} is not set on this worker")
        return key

    @cached_property
    def _pool(self) -> PoolManager:
        parts = urlsplit(self.address)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        options: dict[str, Any] = {
            "maxsize": self.in_flight,
            "headers": {"Authorization": f"Bearer {self._key}"} if self._key else {},
        }
        return ProxyManager(proxy, **options) if proxy else PoolManager(**options)

    def _url(self, path: str) -> str:
        base = self.address.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}/{path}"

    @cached_property
    def _takes_no_schema(self) -> Event:
        return Event()

    def _held_to(self, schema: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        """The response to a request whose answer should have this schema.

        Raises:
            ServerFault: as `_answer`.
        """
        if self._takes_no_schema.is_set():
            return self._answer(body)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        try:
            return self._answer({**body, "response_format": form})
        except Rejected:
            document = self._answer(body)
            self._takes_no_schema.set()
            return document

    def _answer(self, body: Mapping[str, Any]) -> Any:
        """The response to one request, retried while the server is busy, failing or silent.

        Raises:
            ServerFault: no try succeeded, or the server rejects the request.
        """
        again = _Patience(
            self.tries - 1,
            status_forcelist=_BUSY,
            allowed_methods=None,
            backoff_factor=self.pause_s,
            backoff_max=_LONGEST_PAUSE_S,
            retry_after_max=_LONGEST_PAUSE_S,
            raise_on_status=False,
        )
        timeout = Timeout(connect=_CONNECT_TIMEOUT_S, read=self.timeout_s)
        try:
            response = self._pool.request(
                "POST", self._url("chat/completions"), json=body, retries=again, timeout=timeout
            )
        except HTTPError as error:
            why = error.reason if isinstance(error, MaxRetryError) else error
            silent = isinstance(why, TimeoutError)
            what = f"no answer within {self.timeout_s:g} s" if silent else f"the connection failed ({_name(why)})"
            raise ServerFault(f"{what}, in each of {self.tries} tries") from None
        if response.status in _BUSY:
            raise ServerFault(f"HTTP {response.status}, in each of {self.tries} tries")
        return _document(response, self._key)

    def _listed(self) -> list[Mapping[str, Any]]:
        """Its list of models, empty if it keeps none.

        Raises:
            ServerFault: it cannot be reached, or does not accept the key.
        """
        try:
            response = self._pool.request("GET", self._url("models"), retries=False, timeout=_LIST_TIMEOUT_S)
        except HTTPError as error:
            raise ServerFault(f"does not answer ({_name(error)})") from None
        if response.status in (401, 403):
            raise ServerFault(f"HTTP {response.status}")
        try:
            listed = json.loads(_masked(response.data.decode(), self._key))["data"]
            return [entry for entry in listed if isinstance(entry, Mapping)]
        except (ValueError, LookupError, TypeError):
            return []


def _messages(question: Question) -> list[dict[str, Any]]:
    jpeg = base64.b64encode(CODECS["jpeg"].encode(question.picture).data).decode()
    shown = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}}
    first, *rest = question.turns
    later = [{"role": ("assistant", "user")[at % 2], "content": turn} for at, turn in enumerate(rest)]
    return [{"role": "user", "content": [shown, {"type": "text", "text": first}]}, *later]


def _name(error: Exception | None) -> str:
    return type(error).__name__


def _masked(text: str, key: str | None) -> str:
    """A text without the key, however JSON escapes it."""
    forms = {key, json.dumps(key)[1:-1], key.replace("/", r"\/")} if key else ()
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _document(response: BaseHTTPResponse, key: str | None) -> Any:
    """The JSON of a final response, without the key; a refusal for its content has the form of an answer.

    Raises:
        ServerFault: it is neither; `Rejected` where another request might be.
    """
    text = response.data.decode(errors="replace")
    good = 200 <= response.status < 300
    if not good or len(key or "") >= _LEAST_SECRET:
        text = _masked(text, key)
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if good and document is not None:
        return document
    if response.status in (401, 403):
        raise ServerFault(f"HTTP {response.status}: the key is not accepted")
    error = document.get("error") if isinstance(document, Mapping) else None
    if isinstance(error, Mapping) and error.get("code") in _REFUSED:
        return {"choices": [{"finish_reason": "content_filter", "message": {}}]}
    fault = Rejected if response.status in _REJECTED else ServerFault
    raise fault(f"HTTP {response.status}: {' '.join(_masked(text, key).split())[:200]}")


def _text(part: Mapping[str, Any]) -> str:
    """The words of one part of a message; thinking is a part of its own with some servers."""
    return str(part["text"]) if part.get("type", "text") == "text" else ""


def _said(document: Any) -> Reply:
    """The words of a chat completion.

    Raises:
        ServerFault: it is none.
    """
    try:
        choice = document["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return Refused()
        content = message["content"]
        said = content if isinstance(content, str) else "".join(map(_text, content or []))
        return Cut(said) if choice.get("finish_reason") == "length" else said
    except (LookupError, TypeError, AttributeError) as error:
        raise ServerFault(f"not a chat completion: {str(document)[:200]}") from error
