"""Every call to the file system fails once, and from then on: what is committed stays, a rerun gives the same bytes."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graphbuild.errors import GraphError
from graphbuild.store.verify import verify
from tests.support.annotators import build, complete, leftovers, tree

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
