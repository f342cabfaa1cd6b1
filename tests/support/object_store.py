"""An S3 server in this process, moto's, that can be told to go wrong."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET, SECRET = "my-bucket", "mb7Secret0AccessKey"
Fault = Callable[[dict[str, Any]], str]
"""What to do with a request: `""` answers it, `cut` answers it and loses the answer, `lost` does not even do it, `torn`
takes half of what is put, `slow` takes long, `lenient` forgets its condition, and `503 SlowDown` is such an answer."""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any) -> None:
        """Nothing."""


class ObjectStore:
    """A bucket on a loopback port. `requests` are the methods and paths of all that was asked."""

    def __init__(self) -> None:
        self._moto, self.fault, self.requests = DomainDispatcherApplication(create_backend_app), _none, list[str]()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "AKIATESTS",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        self._client = boto3.client(
            "s3", region_name="us-east-1", endpoint_url=self.endpoint, aws_access_key_id="AKIATESTS",
            aws_secret_access_key=SECRET,
        )  # fmt: skip
        self._client.create_bucket(Bucket=BUCKET)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        what = self.fault(environ)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if what == "lenient":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        elif what == "slow":
            time.sleep(1.5)
        elif what in ("cut", "lost", "torn"):
            if what == "cut":
                b"".join(self._moto(environ, lambda *_: None))
            elif what == "torn":
                environ["wsgi.input"].read(length // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("cut on purpose")
        elif what:
            environ["wsgi.input"].read(length)
            start(what, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{what.split()[1]}</Code><Message>{SECRET} told</Message></Error>".encode()]
        return self._moto(environ, start)

    def new_url(self) -> str:
        """A prefix that nothing is under yet."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}/g"

    def content(self, url: str) -> dict[str, bytes]:
        """Name -> bytes of every object under a URL."""
        prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(prefix): self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
        }

    def put(self, url: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"), Body=data)

    def upload(self, folder: Path, url: str = "") -> str:
        """The files of a folder as objects; returns their URL."""
        url = url or self.new_url()
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return url

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        self.fault = fault
        try:
            yield
        finally:
            self.fault = _none


def _none(environ: dict[str, Any]) -> str:
    return ""


def local_content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file of a graph on this machine, without the events of runs."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in names if not name.startswith(("runs/", ".", "_"))}
