"""Who is building what: the folder of each run under `_tmp/`, its lock and heartbeat, and what dead runs left."""

from __future__ import annotations

import re
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from graphbuild.errors import GraphError
from graphbuild.store.files import Files, Held

_OURS = re.compile(r"[^+]+\+[^+]+\+[^+]+(\+\d+\+[^+]*)?")  # five fields in graphs of before locks
STALE_SECONDS = 600.0
"""A run on another machine, or on a file system without locks, whose heartbeat is older than this is dead."""

GC = "gc"
"""The run id of `gc`: no workspace is made beside its own."""

_TRIES = 5


class Workspace:
    """The folder under `_tmp/` in which one run builds files. A living run holds a lock in it, which others on the same
    machine see, whatever container they are in; those on other machines see its heartbeat."""

    def __init__(self, files: Files, name: str, lock: Held | None = None) -> None:
        self.files = files
        self.name = name
        self._lock = lock

    @classmethod
    def create(cls, files: Files, run_id: str) -> Workspace:
        """A new folder, locked where the file system has locks; its name begins with `run_id`.

        Raises:
            GraphError: something removes folders under `_tmp/` at once.
        """
        for _ in range(_TRIES):
            name = f"{run_id}+{_machine()}+{uuid.uuid4().hex[:6]}"
            files.make_folder(f"_tmp/{name}")
            try:
                lock = files.lock(f"_tmp/{name}/lock")
            except NotImplementedError:
                return cls(files, name)._unless_collected()
            except FileNotFoundError:
                continue  # taken for dead before it was locked
            if lock is not None and files.exists(f"_tmp/{name}"):
                return cls(files, name, lock)._unless_collected()
        raise GraphError(f"{files.path('_tmp')}: what is made there is removed at once; what is cleaning it?")

    def _unless_collected(self) -> Workspace:
        """This workspace, unless `gc` is at work: both look for the other only after they can be seen themselves."""
        for name in self.files.names("_tmp"):
            if name.startswith(f"{GC}+") and name != self.name and not _remove_if_dead(self.files, name):
                self.close()
                raise GraphError(f"{self.files.url}: graphbuild gc is at work on this graph; wait until it has ended")
        return self

    def temp(self) -> str:
        """A path on this machine for a file to publish. If its folder is gone, this run was declared dead."""
        return self.files.temp(f"_tmp/{self.name}")

    def beat(self) -> None:
        """Tell other machines that this run is alive."""
        self.files.touch(f"_tmp/{self.name}")

    def close(self) -> None:
        """Remove the folder and release the lock."""
        self.files.remove(f"_tmp/{self.name}")
        if self._lock is not None:
            self._lock.close()


def remove_dead_workspaces(files: Files) -> list[str]:
    """Remove what killed runs left under `_tmp/`, and say what went; folders that no run made stay."""
    return [name for name in files.names("_tmp") if _OURS.fullmatch(name) and _remove_if_dead(files, name)]


def at_work(files: Files) -> list[str]:
    """Workspaces of living runs, after those of dead ones are removed."""
    remove_dead_workspaces(files)
    return [name for name in files.names("_tmp") if _OURS.fullmatch(name)]


def refuse_foreign(files: Files) -> None:
    """Refuse to begin a graph in a folder that holds anything but hidden files, workspaces of killed runs, or a graph
    that another run has just begun.

    Raises:
        GraphError: something else is there; the message names it.
    """
    names = [name for name in files.names(".") if not name.startswith(".") and name != "_tmp"]
    if "graph.json" in names:
        return
    names += [f"_tmp/{name}" for name in files.names("_tmp") if not _OURS.fullmatch(name)]
    if {"edges", "heads", "lineage"} & set(names):
        raise GraphError(
            f"{files.url}: a graph without its graph.json; bring that back from a copy, or give another --out"
        )
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise GraphError(
            f"{files.url} is no graph and not empty ({', '.join(names[:3])}{more}); give another --out, such as a new "
            "folder inside it"
        )


def _remove_if_dead(files: Files, name: str) -> bool:
    folder = f"_tmp/{name}"
    if name.split("+")[1:2] == [_machine()]:
        with suppress(OSError, NotImplementedError):  # another user's, or no locks: its heartbeat tells
            if lock := files.lock(f"{folder}/lock"):
                files.remove(folder)
                lock.close()
            return lock is not None
    age = files.age(folder)
    dead = age is not None and age >= STALE_SECONDS
    if dead:
        files.remove(folder)
    return dead


def _machine() -> str:
    """The boot id of the kernel: containers on one machine share its locks, but not host names or process tables."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname().replace("+", "-").replace("/", "-")
