"""A folder of photographs that is not on this machine: the texts beside them are brought here, the images are read
there."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from graphbuild.sources.base import Unusable
from graphbuild.sources.captions import MAX_TEXT, TABLES
from graphbuild.sources.places import Place
from graphbuild.store.blocks import REQUESTS
from graphbuild.store.locations import STORES

SCHEMES = (*STORES, "hf")


def scheme_of(path: str | os.PathLike[str] | None) -> str:
    """`s3` of `s3://bucket`; empty for a path and for `file://`."""
    scheme, found, _ = str(path).partition("://")
    return scheme if found and scheme != "file" else ""


@cache
def mirror_of(url: str) -> Mirror:
    """The one of this process."""
    return Mirror(url)


class Mirror:
    """Tables of captions and text files of a remote folder, on this machine, as they are asked for.

    Attributes:
        place: the remote folder.
        root: the folder here; it goes with the process.
    """

    def __init__(self, url: str) -> None:
        self.place = Place.at(url, "folder")
        self.root = Path(tempfile.mkdtemp(prefix="graphbuild-captions-")).resolve()
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self._pool = ThreadPoolExecutor(REQUESTS, "graphbuild-read")
        self._asked: set[str] = set()
        self._whole = False

    def renew(self, names: Iterable[str]) -> None:
        """Have these files as they are now, and know that there are no others."""
        for old in self.root.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self._fetch(set(names))
        self._whole = True

    def ask(self, keys: Iterable[str]) -> None:
        """Have what may say something of these images: their text files, and the tables in the folders above."""
        if self._whole:
            return
        names = {f"{os.path.splitext(key)[0]}.txt" for key in keys}
        folders = {folder.as_posix() for key in keys for folder in Path(key).parents}
        names |= {posixpath.normpath(f"{folder}/{table}") for folder in folders for table in TABLES}
        self._fetch(names - self._asked)

    def read(self, names: Iterable[str]) -> Iterator[bytes | Unusable]:
        """The files there, in this order, with several requests at once and few of them ahead of what is used."""
        return self._ahead(self.place.read, names)

    def _ahead(self, read: Callable[[str], bytes | Unusable], names: Iterable[str]) -> Iterator[bytes | Unusable]:
        waiting = []
        for name in names:
            waiting.append(self._pool.submit(read, name))
            if len(waiting) > REQUESTS:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def _fetch(self, names: set[str]) -> None:
        ordered = sorted(names)
        for name, data in zip(ordered, self._ahead(self.place.read, ordered), strict=True):
            if data == Unusable("missing"):
                continue
            (path := self.root / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else b" " * (MAX_TEXT + 1))  # refused by its size
        self._asked |= names
