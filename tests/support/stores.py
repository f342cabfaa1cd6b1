"""Object stores as processes of their own that check who asks: OpenStack Swift with its S3 API, and Azurite for Azure.

Each is looked for on the path and in the folders that `GRAPHBUILD_TEST_SERVERS` names; `.ci/run` installs both.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest

from graphbuild.store.objects import open_store
from tests.support.object_store import BUCKET, SECRET
from tests.support.ports import free_ports

START_SECONDS = 60


@dataclass
class Store:
    """A bucket of a server that runs.

    Attributes:
        environment: what gives a process access.
        lent: what gives access for an hour, where a server knows such a thing.
        late: what gave access an hour ago.
        stranger: the environment with another secret.
        secrets: what must be in no message.
    """

    scheme: str
    environment: Mapping[str, str]
    lent: Mapping[str, str]
    late: Mapping[str, str]
    stranger: Mapping[str, str]
    secrets: Sequence[str]

    def new_url(self) -> str:
        """A prefix that nothing is under yet; cards begin with its last name."""
        return f"{self.scheme}://{BUCKET}/{uuid.uuid4().hex[:8]}/graph"

    def names(self, url: str, folder: str) -> list[str]:
        """The objects below a folder of a URL."""
        return [entry["path"] for entry in open_store(url, 60).list(folder or None).collect()]

    def content(self, url: str) -> dict[str, bytes]:
        """Name -> bytes of every object under a URL."""
        store = open_store(url, 60)
        return {name: bytes(store.get(name).bytes()) for name in self.names(url, "")}

    def put(self, url: str, name: str, data: bytes) -> None:
        open_store(url, 60).put(name, data)

    def upload(self, folder: Path) -> str:
        """The files of a folder as objects; returns their URL."""
        url = self.new_url()
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(url, path.relative_to(folder).as_posix(), path.read_bytes())
        return url


def installed(program: str) -> Path:
    """Where a server is; a test that asks for one that is not there is skipped."""
    folders = os.pathsep.join([os.environ.get("GRAPHBUILD_TEST_SERVERS", ""), os.environ["PATH"]])
    if (found := shutil.which(program, path=folders)) is None:
        pytest.skip(f"no {program}: see .ci/run, and name its folder in GRAPHBUILD_TEST_SERVERS")
    return Path(found)


@contextmanager
def _running(commands: Mapping[str, Sequence[Any]], folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Servers by the port that each will answer on; they are stopped at the end."""
    with ExitStack() as stack:
        for port, command in commands.items():
            log = stack.enter_context(open(folder / f"{port}.log", "wb"))
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **environment})
            stack.callback(process.wait)
            stack.callback(process.kill)
        for port in commands:
            _wait_for(port, folder / f"{port}.log")
        yield


def _wait_for(port: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", int(port))).close()
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError(f"a server does not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.02)


# ---- Swift ------------------------------------------------------------------------------------------------------

_KINDS = ("account", "container", "object")
_PIPELINE = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "s3api", "tempauth", "slo")
_OPTIONS = {"tempauth": f"user_test_tester = {SECRET} .admin", "s3api": "location = us-east-1"}
_RINGS = """
import sys
from swift.common.ring import RingBuilder

for kind, port in zip(("account", "container", "object"), sys.argv[1:]):
    builder = RingBuilder(2, 1, 1)
    builder.add_dev(dict(id=0, region=1, zone=1, weight=1, ip="127.0.0.1", port=int(port), device="disk"))
    builder.rebalance()
    builder.get_ring().save(kind + ".ring.gz")
"""
_AHEAD = """
import runpy, sys, time

now = time.time
time.time = lambda: now() + 3600
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program by a clock that is an hour ahead."""


@contextmanager
def swift(folder: Path) -> Iterator[Store]:
    """One replica on one disk, behind a proxy that checks signatures and the hash of what is put. A second proxy has
    another time."""
    proxy = installed("swift-proxy-server")
    python = proxy.with_name("python")
    asked, ahead, *ports = free_ports(5)
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    subprocess.run([python, "-c", _RINGS, *ports], cwd=folder, check=True, capture_output=True)
    commands: dict[str, Sequence[Any]] = {
        port: [proxy.with_name(f"swift-{kind}-server"), _configured(folder, kind, port, [])]
        for kind, port in zip(_KINDS, ports, strict=True)
    }
    commands[asked] = [proxy, _configured(folder, "proxy", asked, _PIPELINE)]
    commands[ahead] = [python, "-c", _AHEAD, proxy, _configured(folder, "proxy", ahead, _PIPELINE)]
    access = {
        "AWS_ACCESS_KEY_ID": "test:tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{asked}",
    }
    with _running(commands, folder, {}):
        boto3.client(
            "s3", region_name="us-east-1", endpoint_url=access["AWS_ENDPOINT_URL"], aws_access_key_id="test:tester",
            aws_secret_access_key=SECRET,
        ).create_bucket(Bucket=BUCKET)  # fmt: skip
        yield Store(
            "s3",
            access,
            lent=access,
            stranger=access | {"AWS_SECRET_ACCESS_KEY": "an0therSecret"},
            late=access | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ahead}"},
            secrets=[SECRET, "an0therSecret"],
        )


def _configured(folder: Path, kind: str, port: str, filters: Sequence[str]) -> Path:
    """The file of settings of one of Swift's servers."""
    text = f"""
[DEFAULT]
swift_dir = {folder}
devices = {folder / "devices"}
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {_user()}
[pipeline:main]
pipeline = {" ".join(filters)} {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
"""
    text += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{_OPTIONS.get(name, '')}\n" for name in filters)
    (path := folder / f"{kind}-{port}.conf").write_text(text)
    return path


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


# ---- Azurite ----------------------------------------------------------------------------------------------------

ACCOUNT, KEY = "tests", base64.b64encode(SECRET.encode()).decode()


@contextmanager
def azurite(folder: Path) -> Iterator[Store]:
    """Microsoft's emulator of Azure's blobs, with an account of its own; it checks signatures and their times."""
    program, (port,) = installed("azurite-blob"), free_ports(1)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    account = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ENDPOINT": endpoint}
    another = base64.b64encode(b"an0therSecret").decode()
    late, lent = (_token(time.time() + seconds) for seconds in (-3600, 3600))
    command = [program, "--blobPort", port, "--location", folder, "--disableTelemetry", "--silent"]
    with _running({port: command}, folder, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}):
        _make_container(endpoint)
        yield Store(
            "az",
            account | {"AZURE_STORAGE_ACCOUNT_KEY": KEY},
            lent=account | {"AZURE_STORAGE_SAS_KEY": lent},
            late=account | {"AZURE_STORAGE_SAS_KEY": late},
            stranger=account | {"AZURE_STORAGE_ACCOUNT_KEY": another},
            secrets=[KEY, another, late.rpartition("sig=")[2], lent.rpartition("sig=")[2]],
        )


def _make_container(endpoint: str) -> None:
    date, version = formatdate(usegmt=True), "2023-11-03"
    signed = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}"]
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{_signature([*signed, 'restype:container'])}",
    }
    url = f"{endpoint}/{BUCKET}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()


def _token(end: float) -> str:
    """A shared access signature of the container up to a time. (One of the whole account deletes nothing in Azurite,
    which answers 500 to a batch.)"""
    rights, expiry, version = "rwdlc", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end)), "2023-11-03"
    signature = _signature([rights, "", expiry, f"/blob/{ACCOUNT}/{BUCKET}", "", "", "", version, "c", *[""] * 7])
    return f"sv={version}&sr=c&sp={rights}&se={quote(expiry)}&sig={quote(signature, safe='')}"


def _signature(lines: Sequence[str]) -> str:
    digest = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


SERVERS: dict[str, Callable[[Path], Any]] = {"swift": swift, "azurite": azurite}
