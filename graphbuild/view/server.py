"""The local server: who may ask, what every answer says to the browser, and how it is started."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graphbuild.errors import GraphError
from graphbuild.view.pages import Pages, Settings

COOKIE = "graphbuild-token"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Lets through who may see the graph: on loopback, requests whose Host is this machine (a page elsewhere cannot
    make its name point here); bound elsewhere, those that bring the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refused(scope)
        await (self.app if refused is None else refused)(scope, receive, answer)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.token is None:
            host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if host.strip("[]") in _LOCAL:
                return None
            return PlainTextResponse("this page is for this machine only: open it at http://127.0.0.1", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.token.encode()):
            there = RedirectResponse(scope["path"], 303)
            there.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return there
        if hmac.compare_digest(_cookie(headers).encode(), self.token.encode()):
            return None
        return PlainTextResponse("open the address with ?token=... that graphbuild view printed", 403)


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Viewer:
    """A server bound to its port, before it answers.

    Args:
        host: where it is bound; anything but loopback needs a token, which is made here.
        port: 0 for any free one.

    Raises:
        GraphError: no graph is there, or the port is taken.
    """

    def __init__(self, settings: Settings, host: str = "127.0.0.1", port: int = 0) -> None:
        self.token = None if is_loopback(host) else secrets.token_urlsafe(24)
        self.pages = Pages(settings)
        self.socket = _bound(host, port)
        app = Starlette(routes=self.pages.routes(), exception_handlers=self.pages.error_pages())
        config = uvicorn.Config(Guard(app, self.token), log_level="warning", access_log=False, lifespan="off")
        self.server = uvicorn.Server(config)
        self.host = host

    @property
    def address(self) -> str:
        """What to open in a browser."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        token = "" if self.token is None else f"?token={self.token}"
        return f"http://{name}:{self.socket.getsockname()[1]}/{token}"

    def run(self) -> None:
        """Answer until Ctrl-C."""
        try:
            self.server.run(sockets=[self.socket])
        finally:
            self.pages.looking.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise GraphError(f"{host} port {port}: {error.strerror}; choose another with --port, 0 for any") from error
    return listening
