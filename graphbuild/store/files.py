"""Files of a graph folder, and the one way to add to it: no-clobber publishing. Only this module assumes POSIX."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import pyarrow as pa
import xxhash

from graphbuild.errors import GraphError

OPEN_FILES = 256
STALE_SECONDS = 600.0
"""A run on another host whose heartbeat is older than this is dead."""

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class AlreadyPublished(GraphError):
    """The name exists with other bytes; whoever published first has won."""


class _OpenFile:
    """A descriptor that closes when its last user lets go, so that cache eviction cannot close it under a reader."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Files:
    """A graph folder on a local or shared file system. Names are relative, with `/`; everything published is final.

    Args:
        url: a path, or a `file://` URL.

    Raises:
        GraphError: another URL scheme.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if "://" in text and not text.startswith("file://"):
            raise GraphError(f"{text}: graphs live on a local or shared file system in this release; give a path")
        self.root = Path(text.removeprefix("file://")).absolute()
        self._folder = os.path.join(self.root, "")
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Files], tuple[str]]:
        return (Files, (str(self.root),))

    def path(self, name: str) -> str:
        """What other readers open: an absolute path. A name that leads out of the graph is refused."""
        path = os.path.join(self._folder, name)  # as text: pathlib takes ten times as long, and this is on every path
        if ".." in name.split("/") or not path.startswith(self._folder):
            raise GraphError(f"{name}: leads out of the graph {self.root}")
        return path

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path(name))

    def size(self, name: str) -> int:
        return os.stat(self.path(name)).st_size

    def names(self, folder: str) -> list[str]:
        """Sorted entry names directly inside `folder`; empty when it does not exist."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        return Path(self.path(name)).read_bytes()

    def tail(self, name: str, nbytes: int) -> bytes:
        """The last `nbytes` of a file, or all of a smaller one."""
        with open(self.path(name), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - nbytes))
            return file.read()

    def pread(self, name: str, offset: int, nbytes: int) -> bytes:
        """`nbytes` from `offset`; descriptors are kept open, the least recently used are closed."""
        with self._lock:
            handle = self._open.pop(name, None) or _OpenFile(Path(self.path(name)))
            self._open[name] = handle
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return os.pread(handle.fd, nbytes, offset)

    def map(self, name: str) -> pa.Buffer:
        """A whole file as a buffer, of which only what is touched is read."""
        return pa.memory_map(self.path(name)).read_buffer()

    def open(self, name: str) -> BinaryIO:
        """A file to seek and read in."""
        return open(self.path(name), "rb")

    def checksum(self, name: str) -> str:
        """xxh3_128 of a whole file."""
        return file_checksum(self.path(name))

    def publish(self, name: str, data: bytes, workspace: Workspace) -> bool:
        """Give `data` its final name. True if this call created it, False if equal bytes were already there.

        Raises:
            AlreadyPublished: other bytes have that name.
        """
        temp = workspace.temp()
        with open(temp, "xb") as file:
            file.write(data)
        return self.publish_file(temp, name)

    def publish_file(self, temp: str, name: str) -> bool:
        """The same for a finished temporary file, which is gone afterwards."""
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

    def replace(self, name: str, data: bytes, workspace: Workspace) -> None:
        """Atomically overwrite; only for what is not part of the format (the dataset card, reports)."""
        temp, target = workspace.temp(), self.path(name)
        with open(temp, "xb") as file:
            file.write(data)
        _sync(temp)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(temp, target)

    def append(self, name: str, line: str) -> None:
        """Add one line to an event file of a run."""
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "a") as file:
            file.write(line + "\n")

    def remove(self, name: str) -> None:
        """Delete a file or a folder; one that is already gone is fine."""
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            _unlink(path)


class Workspace:
    """The folder under `_tmp/` in which one run builds files. Its name says who owns it: others can tell the dead."""

    def __init__(self, files: Files, name: str) -> None:
        self.files = files
        self.name = name

    @classmethod
    def create(cls, files: Files, run_id: str) -> Workspace:
        workspace = cls(files, "+".join([run_id, _host(), _boot(), str(os.getpid()), _started(os.getpid())]))
        os.makedirs(files.path(f"_tmp/{workspace.name}"))
        return workspace

    def temp(self) -> str:
        """A fresh path in the workspace. The folder is never recreated: if it is gone, this run was declared dead."""
        return self.files.path(f"_tmp/{self.name}/{uuid.uuid4().hex}")

    def beat(self) -> None:
        """Tell other hosts that this run is alive."""
        os.utime(self.files.path(f"_tmp/{self.name}"))

    def close(self) -> None:
        self.files.remove(f"_tmp/{self.name}")


def remove_dead_workspaces(files: Files) -> None:
    """Remove what killed runs left under `_tmp/`: same host and boot with the process gone, else no heartbeat."""
    for name in files.names("_tmp"):
        if not _alive(files, name):
            files.remove(f"_tmp/{name}")


def _alive(files: Files, name: str) -> bool:
    parts = name.split("+")
    if len(parts) == 5 and parts[1:3] == [_host(), _boot()]:
        return parts[4] == _started(int(parts[3])) != ""
    try:
        return time.time() - os.stat(files.path(f"_tmp/{name}")).st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def file_checksum(path: str) -> str:
    """xxh3_128 of a file, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
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


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _host() -> str:
    return socket.gethostname().replace("+", "-").replace("/", "-")


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "unknown"


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" when it is gone. Guards against a reused pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _signal_answer(pid) if not os.path.exists("/proc/self/stat") else ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _signal_answer(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
