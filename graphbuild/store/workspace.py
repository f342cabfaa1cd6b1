"""Who is building what: the folder of each run under `_tmp/`, its heartbeat, and what dead runs left."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from graphbuild.store.files import Files

STALE_SECONDS = 600.0
"""A run on another host, or in another container, whose heartbeat is older than this is dead."""


class Workspace:
    """The folder under `_tmp/` in which one run builds files. Its name says who owns it: others can tell the dead."""

    def __init__(self, files: Files, name: str) -> None:
        self.files = files
        self.name = name

    @classmethod
    def create(cls, files: Files, run_id: str) -> Workspace:
        workspace = cls(files, "+".join([run_id, _host(), _boot(), str(os.getpid()), _started(os.getpid())]))
        files.make_folder(f"_tmp/{workspace.name}")
        return workspace

    def temp(self) -> str:
        """A fresh path in the workspace. The folder is never recreated: if it is gone, this run was declared dead."""
        return self.files.path(f"_tmp/{self.name}/{uuid.uuid4().hex}")

    def beat(self) -> None:
        """Tell other hosts that this run is alive."""
        self.files.touch(f"_tmp/{self.name}")

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
    age = files.age(f"_tmp/{name}")
    return age is not None and age < STALE_SECONDS


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
