"""A small real HTTP server with the OpenAI chat interface: sensible answers to our prompts, and misbehaviour on order.

Whoever has its `url` can ask it, from any process. What it is ordered to do, and what it saw, is for the process that
started it: `with chat_server() as server: server.order("teapot", "429", "drop")`.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tests/tiny-vlm"
MALFORMED = 'Gladly! Here it is: {"subject": "a kite", "caption": '
REFUSAL = "I'm sorry, but I can't help with that."


class ChatServer(ThreadingHTTPServer):
    """Attributes:
    url: its address, for `server=`.
    model: the one model it serves; `listing`: further fields of its entry in the list of models.
    key: what it wants to see as the bearer token; None for no check.
    together: it answers no conversation before it had so many at once.
    asked: the bodies of all requests, in order; `at`: when each came; `headers`: their headers.
    most_in_flight: requests it had at once at most.
    schemas: whether it takes requests with a schema of the answer.
    """

    daemon_threads = True

    def __init__(
        self, *, model: str = MODEL, key: str | None = None, together: int = 1, schemas: bool = True, **listing: str
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.key, self.together, self.listing = model, key, together, listing
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked: list[dict[str, Any]] = []
        self.at: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.most_in_flight, self.schemas = 0, schemas
        self.closing, self.full = threading.Event(), threading.Event()
        self._in_flight = 0
        self._orders: list[tuple[str, list[str]]] = []
        self._lock = threading.Lock()

    def order(self, words: str, *what: str) -> None:
        """What becomes of the next requests with these words in the conversation, one after another; then all is well.

        `malformed`, `refusal`, `empty`, `say:WORDS`, `cut:WORDS` by the greatest length; `refusal_field`, `filtered`,
        `policy`; `429`, `429:RETRY_AFTER`, `500` or another status; `drop` the connection, `half` an answer, `hang`,
        `html`, `no_choices`, `raw:STATUS BODY`.
        """
        self._orders.append((words, list(what)))

    def tries(self, words: str) -> int:
        """How often a conversation with these words came."""
        return sum(words in _words(body) for body in self.asked)

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        """Note a request; what was ordered for it, or ``."""
        with self._lock:
            self.asked.append(body)
            self.at.append(time.monotonic())
            self.headers.append(headers)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            if self._in_flight >= self.together:
                self.full.set()
            orders = [what for words, what in self._orders if what and words in _words(body)]
            return orders[0].pop(0) if orders else ""

    def leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that did not wait for its answer is part of the test."""


@contextmanager
def chat_server(**options: Any) -> Iterator[ChatServer]:
    """A server of this process, in threads of its own."""
    server = ChatServer(**options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._let_in():
            entry = {"id": self.server.model, "object": "model", "created": 0, "owned_by": "tests"}
            self._send(200, {"object": "list", "data": [entry | self.server.listing]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        ordered = self.server.enter(body, dict(self.headers.items()))
        try:
            self.server.full.wait(20)
            if "response_format" in body and not self.server.schemas:
                self._send(400, {"error": {"message": "response_format: not supported"}})
            else:
                self._do(ordered, body)
        finally:
            self.server.leave()

    def _let_in(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._send(401, {"error": {"message": f"bad key: {self.headers['Authorization']}"}})
        return False

    def _do(self, ordered: str, body: dict[str, Any]) -> None:
        what, _, detail = ordered.partition(":")
        if what.isdigit():
            headers = {"Retry-After": detail} if detail else {}
            self._send(int(what), {"error": {"message": f"ordered {what}"}}, **headers)
        elif what == "policy":
            self._send(400, {"error": {"message": "no", "code": "content_policy_violation"}})
        elif what == "html":
            self._reply(200, b"<html>Welcome to our proxy</html>", "text/html")
        elif what == "no_choices":
            self._send(200, {"object": "error"})
        elif what == "raw":
            status, _, text = detail.partition(" ")
            self._reply(int(status), text.encode(), "application/json")
        elif what in ("drop", "half", "hang"):
            self._fail(what)
        else:
            self._send(200, _completion(what, detail, body))

    def _fail(self, how: str) -> None:
        if how == "hang":
            self.server.closing.wait(20)
        if how == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, document: Any, **headers: str) -> None:
        self._reply(status, json.dumps(document).encode(), "application/json", **headers)

    def _reply(self, status: int, data: bytes, form: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": form, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _completion(what: str, detail: str, body: dict[str, Any]) -> dict[str, Any]:
    fixed = {"malformed": MALFORMED, "refusal": REFUSAL, "empty": " \n", "refusal_field": ""}
    fixed |= {"say": detail, "cut": detail}
    message = {"role": "assistant", "content": fixed[what] if what in fixed else _answer(body)}
    if what == "refusal_field":
        message["refusal"] = "No."
    ended = {"filtered": "content_filter", "cut": "length"}.get(what, "stop")
    choice = {"index": 0, "message": message, "finish_reason": ended}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice]}


def _answer(body: dict[str, Any]) -> str:
    """What a good model would say: it depends on the picture and the question, and on nothing else."""
    question, (width, height, colour) = _words(body), _seen(body)
    idea = re.search(r"idea number (\d+)", question)
    number = int(idea[1]) if idea else 1
    if '"subject"' in question:
        new = {"subject": f"toy number {number}", "caption": f"Toy number {number} in {colour} light."}
        new["instruction"] = f"Put toy number {number} there."
        return f"```json\n{json.dumps(new)}\n```"
    if '"background"' in question:
        new = {"background": f"beach {number}", "caption": f"The same, on beach {number}, {colour}."}
        return json.dumps({**new, "instruction": f"Take it to beach {number}."})
    if '"bbox_2d"' in question:
        if "0 to 1000" in question:
            width, height = 1000, 1000
        large = [width // 8, height // 8, width * 7 // 8, height * 7 // 8]
        small = [width // 4, height // 4, width // 2, height // 2]
        return json.dumps([{"bbox_2d": large, "label": f"{colour} cloth"}, {"bbox_2d": small, "label": "button"}])
    return f"A {colour} picture,\n {width} pixels wide  and {height} high. "


def _words(body: dict[str, Any]) -> str:
    contents = [message["content"] for message in body["messages"]]
    return "\n".join(c if isinstance(c, str) else "".join(part.get("text", "") for part in c) for c in contents)


def _seen(body: dict[str, Any]) -> tuple[int, int, str]:
    from PIL import Image

    with Image.open(io.BytesIO(picture_bytes(body))) as picture:
        return *picture.size, "#" + bytes(picture.convert("RGB").resize((1, 1)).getpixel((0, 0))).hex()  # type: ignore


def picture_bytes(body: dict[str, Any]) -> bytes:
    """The picture of a request, as it was sent."""
    (url,) = (part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return base64.b64decode(data)
