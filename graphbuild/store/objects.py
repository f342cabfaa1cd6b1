"""Files of a graph in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

A put that is refused where an object is takes the place of links, an object that is written again that of locks.
"""

from __future__ import annotations

import atexit
import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache, cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from graphbuild.errors import GraphError, Unreachable, writing
from graphbuild.hashing import checksum
from graphbuild.store.blocks import Blocks
from graphbuild.store.files import MOST_BYTES, AlreadyPublished, Held, LocalFiles, Scratch, Span, checksum_of
from graphbuild.store.object_errors import NoAnswer, explained
from graphbuild.store.workspace import Workspace, remove_dead_workspaces

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CACHE_VARIABLE, CACHE_BYTES = "GRAPHBUILD_BLOCK_CACHE_BYTES", 256 << 20
REQUEST_SECONDS, UPLOAD_SECONDS = 60, 900
"""After which a request counts as lost."""

RETRY_SECONDS = 120
"""For which a request is repeated that failed on the way, or that the store was too busy for."""

PUT_TRIES = 3
EVENT_BYTES = 64 << 10
"""Objects do not grow: the last object of an event file is written again until it has as many bytes."""

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Where a user says which server is asked."""

_WINDOW = 16 << 20
_ALIVE = "alive"
_asked_by: list[int] = []
"""The process that has asked a store anything: the threads that answer do not survive a fork."""


def open_store(url: str, seconds: float) -> ObjectStore:
    """A client for the bucket and prefix of a URL. Credentials are those of the environment; for `s3://` also those of
    the configuration of the AWS command line, if boto3 is installed.

    Args:
        seconds: after which a request counts as lost.

    Raises:
        GraphError: obstore is not installed, or does not know such a URL.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise GraphError(f"{url}: object stores need obstore: pip install 'graphbuild[cloud]'") from error
    client: Any = {"timeout": f"{seconds}s", "connect_timeout": "10s", "allow_http": _names_plain_http(url)}
    retry: Any = {"retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        provider: Any = _aws_provider() if url.startswith("s3") else None
        return from_url(url, client_options=client, retry_config=retry, credential_provider=provider)
    except (BaseError, ValueError) as error:
        raise explained(error, url, asked=False) from None


def _names_plain_http(url: str) -> bool:
    """Whether the environment names a server without TLS, which is a user's to decide."""
    found = {name: os.environ.get(name) for name in _ENDPOINTS.get(url.partition(":")[0], ())}
    for name, endpoint in found.items():
        if endpoint and not endpoint.startswith(("http://", "https://")):  # obstore panics
            raise GraphError(f"{url}: {name} must begin with https:// or http://")
    return any(endpoint and endpoint.startswith("http://") for endpoint in found.values())


def _aws_provider() -> object | None:
    """What finds profiles and single sign-on, where the environment names no credentials itself."""
    named = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    if any(os.environ.get(name) for name in named) or any(name.startswith("AWS_CONTAINER_") for name in os.environ):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    return Boto3CredentialProvider()


class Found(NamedTuple):
    """An object; its stamp changes with its content."""

    name: str
    size: int
    stamp: str


class ObjectFiles:
    """`Files` under a URL such as `s3://bucket/graph`. A process that was forked after its parent asked a store cannot.

    Reads at random go through a cache of blocks in memory, of `GRAPHBUILD_BLOCK_CACHE_BYTES` bytes in each process.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._events: dict[str, tuple[int, bytes]] = {}  # event file -> number and content of its last object
        self.blocks = Blocks(self._range, int(os.environ.get(CACHE_VARIABLE) or CACHE_BYTES))

    def __reduce__(self) -> tuple[type[ObjectFiles], tuple[str]]:
        return (ObjectFiles, (self.url,))

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self.url, REQUEST_SECONDS)

    @cached_property
    def _uploads(self) -> ObjectStore:
        return open_store(self.url, UPLOAD_SECONDS)

    @contextmanager
    def _asking(self, name: str) -> Iterator[Any]:
        """obstore, whose errors become ours; nothing of its own texts is kept, as they may hold secrets."""
        import obstore

        where = self.path(name)
        if _asked_by and _asked_by[-1] != os.getpid():
            raise GraphError(
                f"{self.url}: a process that was forked after another one read from a store cannot; start it anew, for "
                "a DataLoader with multiprocessing_context='spawn'"
            )
        _asked_by[:] = [os.getpid()]
        try:
            yield obstore
        except obstore.exceptions.AlreadyExistsError:
            raise AlreadyPublished(f"{where}: already published with other bytes") from None
        except FileNotFoundError as error:
            if isinstance(told := explained(error, self.url), GraphError):  # it is the bucket that is not there
                raise told from None
            raise FileNotFoundError(errno.ENOENT, "no such object", where) from None
        except obstore.exceptions.BaseError as error:
            raise explained(error, where) from None

    # ---- reading ---------------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise GraphError(f"{name!r}: leads out of the graph {self.url}")
        return f"{self.url}/{name}".removesuffix("/.")

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        return self.found(name).size

    def names(self, folder: str) -> list[str]:
        with self._asking(folder) as obstore:
            found = obstore.list_with_delimiter(self._store, None if folder == "." else folder)
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted({key.rpartition("/")[2] for key in keys})

    def walk(self, folder: str) -> Iterator[Found]:
        """Every object in a folder, at any depth and in no order."""
        with self._asking(folder) as obstore:
            for page in obstore.list(self._store, folder or None):
                yield from map(_found, page)

    def found(self, name: str) -> Found:
        """One of them."""
        with self._asking(name) as obstore:
            try:
                return _found(obstore.head(self._store, name))
            except obstore.exceptions.PermissionDeniedError:  # an answer to HEAD has no text that says why
                return _found(obstore.get(self._store, name).meta)

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        with self._asking(name) as obstore:
            found = obstore.get(self._store, name)
            if (nbytes := found.meta["size"]) <= most:
                return bytes(found.bytes()) if nbytes <= _WINDOW else b"".join(self._windows(name, nbytes))
        raise GraphError(f"{self.path(name)}: {nbytes} bytes, of which at most {most} are read")

    def tail(self, name: str, nbytes: int) -> bytes:
        with self._asking(name) as obstore:
            try:
                return bytes(obstore.get(self._store, name, options={"range": {"suffix": nbytes}}).bytes())
            except obstore.exceptions.NotSupportedError:  # Azure
                size = int(obstore.head(self._store, name)["size"])
                return self._range(name, max(0, size - nbytes), min(size, nbytes))

    def pread(self, name: str, offset: int, nbytes: int) -> bytes:
        data = self.blocks.read(name, offset, nbytes) if nbytes > 0 <= offset else b""
        if len(data) != nbytes or offset < 0:
            raise GraphError(f"{self.path(name)}: ends before the {nbytes} bytes from {offset} on")
        return data

    def will_read(self, spans: Sequence[Span]) -> None:
        self.blocks.load(spans)

    def map(self, name: str) -> pa.Buffer:
        temp = self.temp("")
        with writing(temp), open(temp, "xb") as file:
            for window in self._windows(name, self.size(name)):
                file.write(window)
        try:
            return pa.memory_map(temp).read_buffer()
        finally:
            os.unlink(temp)  # its pages stay as long as the buffer

    def checksum(self, name: str) -> str:
        return checksum_of(self._windows(name, self.size(name)))

    def _windows(self, name: str, nbytes: int) -> Iterator[bytes]:
        """A whole file by requests of a size that a time limit is right for."""
        for start in range(0, nbytes, _WINDOW):
            yield self._range(name, start, min(_WINDOW, nbytes - start))

    def _range(self, name: str, offset: int, nbytes: int) -> bytes:
        if nbytes == 0:
            return b""
        with self._asking(name) as obstore:
            return bytes(obstore.get_range(self._store, name, start=offset, length=nbytes))

    # ---- publishing ------------------------------------------------------------------------------------------

    def writable(self) -> bool:
        try:
            self.make_folder(folder := f".graphbuild/probe-{time.time_ns()}")
            self.remove(folder)
        except Unreachable:
            return False
        return True

    def publish(self, name: str, data: bytes, scratch: Scratch) -> bool:
        return self._create(name, data)

    def publish_file(self, temp: str, name: str) -> bool:
        try:
            with open(temp, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                return self._create(name, data)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)

    def _create(self, name: str, data: Any) -> bool:
        """Put an object that is not there yet. An answer that was lost on the way is asked for again, and then the
        object may be there."""
        for left in reversed(range(PUT_TRIES)):
            try:
                self._put(name, data, mode="create")
                return True
            except AlreadyPublished:
                if self.checksum(name) != checksum(data):
                    raise
                return False
            except NoAnswer:
                if not left:
                    raise
        raise AssertionError

    def _put(self, name: str, data: Any, mode: str) -> None:
        with self._asking(name) as obstore:
            # In one request, which is all or nothing, where several would leave pieces behind.
            obstore.put(self._uploads, name, data, mode=mode, use_multipart=False)

    def replace(self, name: str, data: bytes, scratch: Scratch) -> None:
        self._put(name, data, mode="overwrite")

    def append(self, name: str, lines: Sequence[str]) -> None:
        """The first object has the name itself, the next ones end in `-00001` and so on."""
        number, content = self._events.get(name, (0, b""))
        if len(content) > EVENT_BYTES:
            number, content = number + 1, b""
        content += "".join(f"{line}\n" for line in lines).encode()
        stem, dot, suffix = name.rpartition(".")
        self._put(f"{stem}-{number:05d}{dot}{suffix}" if number else name, content, mode="overwrite")
        self._events[name] = number, content

    def remove(self, name: str) -> None:
        self._events.pop(name, None)
        self.blocks.forget(name)
        with self._asking(name) as obstore:
            keys = [entry["path"] for entry in obstore.list(self._store, name).collect()]
        for key in [*keys, name]:
            with suppress(FileNotFoundError), self._asking(key) as obstore:
                obstore.delete(self._store, key)

    # ---- for the workspaces of runs --------------------------------------------------------------------------

    def make_folder(self, name: str) -> None:
        """Also finds out whether the store refuses a second put of a name, on which everything rests."""
        self._put(alive := f"{name}/{_ALIVE}", name.encode(), mode="create")
        try:
            self._put(alive, b"again", mode="create")
        except AlreadyPublished:
            return
        self.remove(name)
        raise GraphError(
            f"{self.url}: the store has overwritten an object that it was asked to make only if absent (If-None-Match: "
            "*), so two runs could overwrite each other's work; use a store or a newer release of it that refuses"
        )

    def temp(self, folder: str) -> str:
        return _staging().temp()

    def lock(self, name: str) -> Held | None:
        raise NotImplementedError(f"{self.url}: an object store has no locks")

    def touch(self, name: str) -> None:
        self._put(f"{name}/{_ALIVE}", str(time.time_ns()).encode(), mode="overwrite")

    def age(self, name: str) -> float | None:
        """By the store's clock: from the newest object in the folder to one that is written now."""
        with self._asking(name) as obstore:
            times: list[datetime] = [o["last_modified"] for o in obstore.list(self._store, name).collect()]
        if not times:
            return None
        self._put(clock := f".graphbuild/clock-{time.time_ns()}-{os.getpid()}", b"", mode="overwrite")
        with self._asking(clock) as obstore:
            now: datetime = obstore.head(self._store, clock)["last_modified"]
        self.remove(clock)
        return (now - max(times)).total_seconds()


def _found(entry: Any) -> Found:
    return Found(entry["path"], entry["size"], str(entry["e_tag"] or entry["last_modified"]))


@cache
def _staging() -> Workspace:
    """Where this process builds files; what killed processes left there goes."""
    root = Path(gettempdir(), f"graphbuild-staging-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise GraphError(f"{root}: belongs to another user; set TMPDIR to a folder of your own")
    files = LocalFiles(root)
    remove_dead_workspaces(files)
    workspace = Workspace.create(files, "staging")
    atexit.register(workspace.close)
    return workspace
