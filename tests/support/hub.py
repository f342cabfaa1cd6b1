"""A stand-in for the Hub on a loopback port: repositories, large files, commits, downloads. It can be told to fail.

Only this part of the Hub is imitated, with the plain protocol of large files and not the one of chunks (Xet), which the
Hub's library prefers where it is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_tests"
_LARGE = (".safetensors", ".parquet", ".jpg", ".png", ".tar")


class Hub(ThreadingHTTPServer):
    """Attributes:
    repositories: `models/ORG/NAME` -> path of a file -> its bytes; `private`: those made as private.
    large: content of large files by hash; `received`: hashes of those that were sent, in order.
    room: large files that it takes before it refuses all others; None for any number.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: list[str] = []
        self.large: dict[str, bytes] = {}
        self.received: list[str] = []
        self.room: int | None = None
        self._taking = threading.Lock()

    def takes(self, oid: str, data: bytes) -> bool:
        """Keep a large file if there is room; none is refused before that is full."""
        assert hashlib.sha256(data).hexdigest() == oid
        with self._taking:
            if self.room == 0:
                return False
            if self.room is not None:
                self.room -= 1
            self.large[oid] = data
            self.received.append(oid)
            return True

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _answer(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path.endswith("/whoami-v2"):
            self._answer({"name": "me", "type": "user", "orgs": [{"name": "lab"}]})
        elif found := re.fullmatch(r"/api/(\w+/[\w.-]+/[\w.-]+)/tree/[^?]*\?.*", self.path):
            files = self.server.repositories[found[1]].items()
            self._answer([{"type": "file", "path": p, "size": len(data), "oid": _blob(data)} for p, data in files])
        elif "/resolve/" in self.path:
            self.wfile.write(self._file())
        else:  # about a repository
            self._answer({"id": "/".join(self.path.split("/")[3:5]), "sha": "0" * 40})

    def do_HEAD(self) -> None:
        self._file()

    def _file(self) -> bytes:
        """A file of a model, whose head is sent."""
        repository, _, rest = self.path[1:].partition("/resolve/")
        commit, _, path = rest.partition("/")
        data = self.server.repositories[f"models/{repository}"][path]
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "ETag": _blob(data), "X-Repo-Commit": commit}.items():
            self.send_header(name, value)
        self.end_headers()
        return data

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/(\w+/[\w.-]+/[\w.-]+)/(preupload|commit)/main", self.path):
            if found[2] == "preupload":
                self._preupload(found[1], json.loads(body))
            else:
                self.server.commit(found[1], [json.loads(line) for line in body.splitlines()])
                page = f"{self.server.url}/{found[1].removeprefix('models/')}/commit/1"
                self._answer({"commitUrl": page, "commitOid": "1" * 40})
        else:
            self._answer({"error": self.path}, 404)

    def do_PUT(self) -> None:
        taken = self.server.takes(self.path.rpartition("/")[2], self._body())
        self._answer({}, 200 if taken else 403)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
        known = name in self.server.repositories
        if not known and (asked.get("private") or asked.get("visibility") == "private"):
            self.server.private.append(name)
        self.server.repositories.setdefault(name, {})
        self._answer({"url": f"{self.server.url}/{name.removeprefix('models/')}"}, 409 if known else 200)

    def _preupload(self, repository: str, asked: dict[str, Any]) -> None:
        there = self.server.repositories[repository]
        self._answer({
            "files": [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                 "shouldIgnore": False, "oid": _oid(file["path"], there.get(file["path"]))}
                for file in asked["files"]
            ]
        })  # fmt: skip

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            each if each["oid"] in self.server.large else
            {**each, "actions": {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}}
            for each in asked["objects"]
        ]  # fmt: skip
        self._answer({"objects": objects, "transfer": "basic"})


def _oid(path: str, data: bytes | None) -> str | None:
    if data is None:
        return None
    if path.endswith(_LARGE):
        return hashlib.sha256(data).hexdigest()
    return _blob(data)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[Hub]:
    """A Hub that the library of this process talks to, as somebody who is logged in."""
    import huggingface_hub.constants as settings

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(settings, "ENDPOINT", server.url)
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(settings, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(settings, "HF_TOKEN_PATH", "/nonexistent")
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
