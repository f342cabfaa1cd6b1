"""Disks that are full, read-only, without links, or fail at any call: what is committed stays, a rerun gives the same
bytes."""

from __future__ import annotations

import builtins
import ctypes
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.errors import GraphError
from graphbuild.store.verify import verify
from tests.support.annotators import build, complete, leftovers, tree
from tests.support.disks import mounted

LONG = bool(os.environ.get("GRAPHBUILD_LONG"))
EVERY = 1 if LONG else 43
"""Of the calls of one run, these are made to fail."""

CALLS = ("fsync", "link", "makedirs", "unlink", "replace", "open", "utime", "listdir", "stat")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EACCES)


class Disk:
    """Calls to the file system, of which number `first` fails, and those after it if it `stays`."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, first: int, code: int, stays: bool) -> None:
        self.root, self.first, self.code, self.stays = str(root), first, code, stays
        self.made: list[str] = []
        for name in CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))
        patch.setattr(builtins, "open", self._failing("open file", builtins.open))
        patch.setattr(pa, "OSFile", self._failing("OSFile", pa.OSFile))
        patch.setattr(pa, "memory_map", self._failing("memory_map", pa.memory_map))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(target: Any = None, *args: Any, **options: Any) -> Any:
            ours = name == "fsync" or (isinstance(target, str | Path) and str(target).startswith(self.root))
            if ours:
                self.made.append(f"{name} {target}")
                number = len(self.made) - 1
                if number == self.first or (self.stays and number > self.first):
                    raise OSError(self.code, os.strerror(self.code), str(target))
            return call(target, *args, **options)

        return wrapper


def _build(photos: Path, out: Path) -> bool:
    """Whether the graph was finished."""
    try:
        report = build(photos, out, ["canny"], limit=3, shard_size=2, flush_s=0.0)
    except (OSError, GraphError, ValueError):
        return False
    return not report.units_left and not report.errors


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from_then_on"])
def test_errors_of_the_disk(stays: bool, photos: Path, tmp_path: Path) -> None:
    """Guards against a call whose failure is taken for success, publishes half, or cannot be continued."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path / "whole", -1, 0, stays=False)
        assert _build(photos, tmp_path / "whole")
    whole, every = tree(tmp_path / "whole"), disk.made
    assert len(every) > 100
    for number in range(int(stays), len(every), EVERY):
        out, code = tmp_path / f"g{number}", ERRORS[number % len(ERRORS)]
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, out, number, code, stays)
            done = _build(photos, out)
        what = f"call {number} {errno.errorcode[code]} {disk.made[number] if number < len(disk.made) else None}"
        if done:
            assert tree(out) == whole, what
        if (out / "graph.json").exists():
            assert not verify(out).problems, what
        complete(build(photos, out, ["canny"], limit=3, shard_size=2, flush_s=0.0))
        assert tree(out) == whole and leftovers(out) == [], what


# ---- real file systems -------------------------------------------------------------------------------------------


def _command(photos: Path, out: Path, limit: int = 12) -> tuple[int, str]:
    """Exit code and words of a command that builds a graph."""
    argv = ["run", "--source", "folder", "--path", str(photos), "--annotators", "canny", "--limit", str(limit)]
    result = CliRunner().invoke(app, [*argv, "--shard-size", "2", "--executor", "inline", "--out", str(out)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "g"
    assert _command(photos, out)[0] == 0
    return tree(out)


def test_a_full_disk(photos: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """Guards against a message that does not say which disk, and a graph that making room does not mend."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=250k", "tmpfs") as disk:
        code, said = _command(photos, disk / "g")
        assert code == 1 and f"No space left on device: '{disk}/g/" in said
        assert "make room there; what is committed is kept, run the same command again" in said
        assert 0 < len(tree(disk / "g")) < len(whole) and not verify(disk / "g", "full").problems
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert _command(photos, disk / "g")[0] == 0
        assert tree(disk / "g") == whole and leftovers(disk / "g") == []


def test_a_read_only_disk(photos: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """Guards against a traceback, or a graph that cannot be looked at, where nothing can be written."""
    out = tmp_path / "disk/g"
    assert _command(photos, out, limit=4)[0] == 0
    with mounted(tmp_path / "disk", "--bind", str(tmp_path / "disk")) as disk:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
        for place in (disk / "new", out):
            code, said = _command(photos, place)
            assert code == 1 and f"Read-only file system: '{place}" in said and "Traceback" not in said
        assert _command(photos, out, limit=4) == (0, f"{out}: nothing to do, 4 of 4 units are committed\n")
        assert not verify(out, "full").problems
    assert _command(photos, out)[0] == 0 and tree(out) == whole and leftovers(out) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user(photos: Path, whole: dict[str, str]) -> None:
    """Guards against a permission that is missing and not named."""
    shared = Path(tempfile.mkdtemp(prefix="graphbuild-"))  # in `tmp_path` no other user may look
    try:
        shutil.copytree(photos, shared / "photos")
        out = shared / "g"
        assert _command(shared / "photos", out, limit=4)[0] == 0
        shared.chmod(0o755)
        os.seteuid(65534)
        try:
            code, said = _command(shared / "photos", out)
        finally:
            os.seteuid(0)
        assert code == 2 and f"{out}/_tmp" in said and "permission denied; see who may with: ls -ld" in said
        assert _command(shared / "photos", out)[0] == 0 and tree(out) == whole and leftovers(out) == []
    finally:
        shutil.rmtree(shared)


@pytest.mark.parametrize("renames", [True, False])
def test_a_file_system_without_links(
    renames: bool, photos: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against runs that overwrite each other on FAT, exFAT or SMB, which answer like this, and against a wrong
    guess of what they can do. A stand-in: kernels in containers mount none of them."""

    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", source, None, target)

    out = tmp_path / "g"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        if not renames:
            patch.setattr(ctypes, "CDLL", lambda *args, **options: object())
        code, said = _command(photos, out)
        assert code == (0 if renames else 2)
        assert renames or f"{out}/graph.json: this file system supports neither hard links nor" in said
    assert _command(photos, out)[0] == 0 and tree(out) == whole and leftovers(out) == []
