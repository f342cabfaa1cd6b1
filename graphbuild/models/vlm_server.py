"""A vision-language model behind a server with the OpenAI chat interface."""

from __future__ import annotations

import base64
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graphbuild.errors import GraphError
from graphbuild.images.codecs import CODECS
from graphbuild.models.vlm import Question, Refused, Reply

if TYPE_CHECKING:
    import requests


_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({"content_filter", "content_policy_violation"})
_VERSION_FIELDS = ("revision", "version", "digest")
_LIST_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60.0


class ServerFault(RuntimeError):
    """A request that the server did not answer, or not as the interface says; without its address or its key."""


@dataclass(frozen=True, kw_only=True)
class VlmServer:
    """The server and how to talk to it. Nothing is sent before it is asked something.

    Attributes:
        address: with or without `/v1`.
        model: the name it knows the model by.
        key_from: environment variable with its key.
        in_flight: requests at once.
        timeout_s: seconds without a sign of life after which a request is given up.
        tries: of one request. Pauses double from `pause_s` on, with chance in them, unless the server names one; none
            is longer than a minute.
    """

    address: str
    model: str
    key_from: str | None = None
    in_flight: int = 16
    timeout_s: float = 120.0
    tries: int = 5
    pause_s: float = 1.0

    def ask(self, questions: Sequence[Question], *, max_new_tokens: int, temperature: float) -> list[Reply]:
        """One reply per question, in order, `in_flight` of them under way at once."""

        def reply(question: Question) -> Reply:
            body = {"model": self.model, "messages": _messages(question), "max_tokens": max_new_tokens}
            drawn = {"seed": question.seed % 2**31} if temperature else {}
            try:
                return _said(self._answer({**body, "temperature": temperature, **drawn}))
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
    def _session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter

        key = None if self.key_from is None else os.environ.get(self.key_from)
        if self.key_from is not None and not key:
            raise GraphError(f"api_key_env: the environment variable {self.key_from} is not set on this worker")

        def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        session = requests.Session()
        session.auth = signed  # a header of the session would give way to the user's ~/.netrc
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=self.in_flight))
        return session

    def _url(self, path: str) -> str:
        base = self.address.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}/{path}"

    def _answer(self, body: Mapping[str, Any]) -> Any:
        """What the server says to one request, tried until it is neither busy, broken nor silent.

        Raises:
            ServerFault: it never was, or it does not take the request.
        """
        import requests

        url, patience = self._url("chat/completions"), (_CONNECT_TIMEOUT_S, self.timeout_s)
        why, pause = "", 0.0
        for attempt in range(self.tries):
            time.sleep(pause)
            pause = min(self.pause_s * 2**attempt, _LONGEST_PAUSE_S) * random.SystemRandom().uniform(0.5, 1)
            try:
                response = self._session.post(url, json=body, timeout=patience)
            except requests.Timeout:
                why = f"no answer within {self.timeout_s:g} s"
            except requests.RequestException as error:
                why = f"the connection failed ({type(error).__name__})"
            else:
                if response.status_code not in _BUSY:
                    return _document(response)
                why, pause = f"HTTP {response.status_code}", _asked_pause(response, pause)
        raise ServerFault(f"{why}, in each of {self.tries} tries")

    def _listed(self) -> list[Mapping[str, Any]]:
        """Its list of models, empty if it keeps none.

        Raises:
            ServerFault: it cannot be reached, or does not accept the key.
        """
        import requests

        try:
            response = self._session.get(self._url("models"), timeout=_LIST_TIMEOUT_S)
        except requests.RequestException as error:
            raise ServerFault(f"does not answer ({type(error).__name__})") from None
        if response.status_code in (401, 403):
            raise ServerFault(f"HTTP {response.status_code}")
        try:
            return [entry for entry in response.json()["data"] if isinstance(entry, Mapping)]
        except (ValueError, LookupError, TypeError):
            return []


def _messages(question: Question) -> list[dict[str, Any]]:
    jpeg = base64.b64encode(CODECS["jpeg"].encode(question.picture).data).decode()
    shown = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}}
    first, *rest = question.turns
    later = [{"role": ("assistant", "user")[at % 2], "content": turn} for at, turn in enumerate(rest)]
    return [{"role": "user", "content": [shown, {"type": "text", "text": first}]}, *later]


def _asked_pause(response: requests.Response, pause: float) -> float:
    """Seconds to wait, as the server asks in `Retry-After` (seconds or a date)."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        asked = response.headers.get("Retry-After")
        return pause if asked is None else min(Retry().parse_retry_after(asked), _LONGEST_PAUSE_S)
    except InvalidHeader:
        return pause


def _document(response: requests.Response) -> Any:
    """The JSON of a final response; a refusal for its content has the form of an answer."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if response.ok and document is not None:
        return document
    if response.status_code in (401, 403):  # what they say may repeat the key
        raise ServerFault(f"HTTP {response.status_code}: the key is not accepted")
    error = document.get("error") if isinstance(document, Mapping) else None
    if isinstance(error, Mapping) and error.get("code") in _REFUSED:
        return {"choices": [{"finish_reason": "content_filter", "message": {}}]}
    raise ServerFault(f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}")


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
        return content if isinstance(content, str) else "".join(part["text"] for part in content or [])
    except (LookupError, TypeError, AttributeError) as error:
        raise ServerFault(f"not a chat completion: {str(document)[:200]}") from error
