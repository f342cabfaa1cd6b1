"""Files of a graph, and the one way to add to it: no-clobber publishing. Only `LocalFiles` assumes POSIX: `Files` asks
for no rename, no times of files and no folders."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

import pyarrow as pa
import xxhash

from graphbuild.errors import GraphError, writing

OPEN_FILES = 256
MOST_BYTES = 4 << 30
"""Of a file that is read whole."""

_BLOCK = 1 << 22
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


Span = tuple[str, int, int]
"""Name, offset and length in bytes."""


class AlreadyPublished(GraphError):
    """The name exists with other bytes; whoever published first has won."""


class Scratch(Protocol):
    """Where files are built before they are published."""

    def temp(self) -> str:
        """A path on this machine that does not exist yet."""


class Held(Protocol):
    """A lock, held until it is closed, the last reference to it goes, or this process ends."""

    def close(self) -> None: ...


class Files(Protocol):
    """The files of one graph. Names are relative, with `/`; everything published is final. What is read may be
    somebody else's: no name leads out of the graph, and only regular files are opened (else a GraphError).

    A folder is what the names in it have in common: it need not be made before a file is published in it. An OSError
    says nothing of what a file holds.
    """

    @property
    def url(self) -> str:
        """Where the graph is: opens it again, here or in another process."""

    @property
    def remote(self) -> bool:
        """Whether every read is a request: coming ones are worth telling of, and forked processes cannot make any."""

    def path(self, name: str) -> str:
        """What other readers open, a path or a URL. A name that leads out of the graph is refused with a GraphError."""

    def writable(self) -> bool:
        """Whether files can be added."""

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int:
        """In bytes."""

    def names(self, folder: str) -> list[str]:
        """Sorted entry names directly inside `folder`; empty when it does not exist."""

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """A whole file; one of more than `most` bytes is refused with a GraphError."""

    def tail(self, name: str, nbytes: int) -> bytes:
        """The last `nbytes` of a file, or all of a smaller one."""

    def pread(self, name: str, offset: int, nbytes: int) -> bytes:
        """`nbytes` from `offset`; meant for many reads at random. A place beyond the end is a GraphError."""

    def will_read(self, spans: Sequence[Span]) -> None:
        """Tell of coming `pread`s, so that they can be answered together."""

    def map(self, name: str) -> pa.Buffer:
        """A whole file as a buffer that takes no memory of the process for long: pages of a file on this machine."""

    def checksum(self, name: str) -> str:
        """xxh3_128 of a whole file."""

    def publish(self, name: str, data: bytes, scratch: Scratch) -> bool:
        """Give `data` its final name. True if this call created it, False if equal bytes were already there.

        Raises:
            AlreadyPublished: other bytes have that name.
        """

    def publish_file(self, temp: str, name: str) -> bool:
        """The same for a finished temporary file, which is gone afterwards."""

    def replace(self, name: str, data: bytes, scratch: Scratch) -> None:
        """Atomically overwrite; only for what is not part of the format (the dataset card, reports)."""

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Add lines to an event file that no other process writes."""

    def remove(self, name: str) -> None:
        """Delete a file or a folder; one that is already gone is fine."""

    # ---- for the workspaces of runs ----------------------------------------------------------------------------

    def make_folder(self, name: str) -> None:
        """A folder that must not exist yet.

        Raises:
            GraphError: two runs could overwrite each other's files here; the message says why.
        """

    def temp(self, folder: str) -> str:
        """A path on this machine for a new file that will be published, in this folder if that is on this machine."""

    def lock(self, name: str) -> Held | None:
        """Hold a file, which is made if need be; None if another holds it.

        Raises:
            NotImplementedError: there are no locks here.
        """

    def touch(self, name: str) -> None:
        """Make an existing folder new again, for `age`."""

    def age(self, name: str) -> float | None:
        """Seconds since a folder was made or touched, by the clock of the file system; None if it is gone."""


class _OpenFile:
    """A descriptor that closes when its last user lets go, so that cache eviction cannot close it under a reader."""

    def __init__(self, fd: int) -> None:
        self.fd, self.size = fd, os.fstat(fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    __del__ = close


class LocalFiles:
    """`Files` in a folder on a local or shared file system."""

    remote = False

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self._folder = os.path.join(self.root, "")
        self._real = os.path.realpath(self.root)
        self._plain: set[str] = set()  # folders that are neither links nor behind one
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[str]]:
        return (LocalFiles, (str(self.root),))

    @property
    def url(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        path = os.path.join(self._folder, name)  # as text: pathlib takes ten times as long, and this is on every path
        if "\0" in name or ".." in name.split("/") or not path.startswith(self._folder):
            raise GraphError(f"{name!r}: leads out of the graph {self.root}")
        if os.path.islink(path) or self._behind_a_link(os.path.dirname(path)):
            raise GraphError(
                f"{path}: is a link, or lies behind one; a graph is read and written without links, as they lead out "
                f"of it: put a copy in its place (cp -rL {self.root} COPY)"
            )
        return path

    def _behind_a_link(self, folder: str) -> bool:
        if folder in self._plain:
            return False
        inside = os.path.relpath(folder, self.root)
        if os.path.realpath(folder) != os.path.normpath(os.path.join(self._real, inside)):
            return True
        if os.path.isdir(folder):
            self._plain.add(folder)
        return False

    def exists(self, name: str) -> bool:
        path = self.path(name)
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False  # any other error of the disk does not say that it is not there
        return True

    def writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    def size(self, name: str) -> int:
        return os.stat(self.path(name)).st_size

    def age(self, name: str) -> float | None:
        try:
            return time.time() - os.stat(self.path(name)).st_mtime
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root if folder == "." else self.path(folder)))
        except FileNotFoundError:
            return []

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        with self._file(name) as file:
            if (nbytes := os.fstat(file.fileno()).st_size) > most:
                raise GraphError(f"{self.path(name)}: {nbytes} bytes, of which at most {most} are read")
            return file.read()

    def tail(self, name: str, nbytes: int) -> bytes:
        with self._file(name) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - nbytes))
            return file.read()

    def pread(self, name: str, offset: int, nbytes: int) -> bytes:
        """Descriptors are kept open, the least recently used are closed."""
        with self._lock:
            handle = self._open.pop(name, None) or _OpenFile(self._opened(name))
            self._open[name] = handle
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        if not 0 <= offset <= offset + nbytes <= handle.size:
            raise GraphError(f"{self.path(name)}: has {handle.size} bytes, not {nbytes} from {offset} on")
        return os.pread(handle.fd, nbytes, offset)

    def will_read(self, spans: Sequence[Span]) -> None:
        """The file system reads ahead by itself."""

    def map(self, name: str) -> pa.Buffer:
        os.close(self._opened(name))
        return pa.memory_map(self.path(name)).read_buffer()

    def _file(self, name: str) -> BinaryIO:
        return os.fdopen(self._opened(name), "rb")

    def _opened(self, name: str) -> int:
        fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe nobody writes to blocks
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise GraphError(f"{self.path(name)}: is not a regular file")
        return fd

    def checksum(self, name: str) -> str:
        with self._file(name) as file:
            return checksum_of(iter(lambda: file.read(_BLOCK), b""))

    def publish(self, name: str, data: bytes, scratch: Scratch) -> bool:
        _write(temp := scratch.temp(), data)
        return self.publish_file(temp, name)

    def publish_file(self, temp: str, name: str) -> bool:
        target = self.path(name)
        _sync(temp)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            created = _link_no_clobber(temp, target)
            if not created and file_checksum(temp) != file_checksum(target):
                raise AlreadyPublished(f"{name}: already published with other bytes")
        finally:
            _unlink(temp)
        _sync(os.path.dirname(target))
        return created

    def replace(self, name: str, data: bytes, scratch: Scratch) -> None:
        temp, target = scratch.temp(), self.path(name)
        _write(temp, data)
        _sync(temp)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(temp, target)

    def append(self, name: str, lines: Sequence[str]) -> None:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with writing(self.path(name)), open(self.path(name), "a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def make_folder(self, name: str) -> None:
        os.makedirs(self.path(name))

    def temp(self, folder: str) -> str:
        return self.path(f"{folder}/{uuid.uuid4().hex}")

    def lock(self, name: str) -> Held | None:
        file = _OpenFile(os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            raise NotImplementedError(f"{self.path(name)}: {error.strerror}") from error
        return file

    def touch(self, name: str) -> None:
        os.utime(self.path(name))

    def remove(self, name: str) -> None:
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            _unlink(path)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """A new file that takes its name when it is whole; for what is written outside a graph."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with writing(path), open(partial, "wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_checksum(path: str) -> str:
    """xxh3_128 of a file, 32 hex digits."""
    with open(path, "rb") as file:
        return checksum_of(iter(lambda: file.read(_BLOCK), b""))


def checksum_of(blocks: Iterable[bytes]) -> str:
    """The same of bytes that come one block after the other."""
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _link_no_clobber(temp: str, target: str) -> bool:
    try:
        os.link(temp, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
    return _rename_no_replace(temp, target)


def _rename_no_replace(temp: str, target: str) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(_AT_FDCWD, temp.encode(), _AT_FDCWD, target.encode(), _RENAME_NOREPLACE) == -1:
        code = ctypes.get_errno()
        if rename is not None and code == errno.EEXIST:
            return False
        raise GraphError(
            f"{target}: this file system supports neither hard links nor RENAME_NOREPLACE, so two runs could "
            "overwrite each other; put the graph on another file system"
        )
    return True


def _write(path: str, data: bytes) -> None:
    with writing(path), open(path, "xb") as file:
        file.write(data)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
