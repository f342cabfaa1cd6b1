"""Object stores as a file system of fsspec, read only, with the credentials, retries and errors of graphs there."""

from __future__ import annotations

import io
import os
from functools import cache
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from graphbuild.store.locations import STORES
from graphbuild.store.objects import ObjectFiles


def filesystem_at(path: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path on it."""
    scheme, found, rest = path.partition("://")
    if found and scheme in STORES:
        return _Buckets(scheme), rest.rstrip("/")
    return url_to_fs(path)  # type: ignore[no-any-return]


class _Buckets(AbstractFileSystem):  # type: ignore[misc]
    """Paths begin with the bucket."""

    cachable = False

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol = scheme
        self._files = cache(lambda bucket: ObjectFiles(f"{scheme}://{bucket}"))

    def _at(self, path: str) -> tuple[ObjectFiles, str]:
        bucket, _, name = path.partition("/")
        return self._files(bucket), name

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        """All files below a path."""
        (files, name), bucket = self._at(path), path.partition("/")[0]
        return {f"{bucket}/{found.name}": self._info(f"{bucket}/{found.name}", found) for found in files.walk(name)}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and ETag of a file."""
        files, name = self._at(path)
        return self._info(path, files.found(name))

    def cat_file(self, path: str, **_: Any) -> bytes:
        """A whole file."""
        files, name = self._at(path)
        return files.read(name)

    def _open(self, path: str, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(*self._at(path)), 1 << 20)

    def _info(self, path: str, found: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": found.size, "ETag": found.stamp}


class _Reader(io.RawIOBase):
    """A file of a store to seek in; what is read in order is read ahead."""

    def __init__(self, files: ObjectFiles, name: str) -> None:
        self._files, self._name, self._at, self._size = files, name, 0, files.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        nbytes = max(0, min(len(buffer), self._size - self._at))
        buffer[:nbytes] = self._files.pread(self._name, self._at, nbytes)
        self._at += nbytes
        return nbytes
