"""The files of a source: a local folder, or any address that fsspec opens."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graphbuild.contracts import MAX_BYTES
from graphbuild.errors import GraphError, Unreachable
from graphbuild.sources.base import Unusable
from graphbuild.store.buckets import filesystem_at

# Where the file systems of fsspec put something that changes with a file's content.
_CONTENT_IDS = ("blob_id", "ETag", "etag", "md5Hash", "content_md5")


@dataclass(frozen=True, slots=True)
class Place:
    """The files below `root` of an fsspec file system; `source` is named in messages."""

    fs: Any
    root: str
    source: str

    @classmethod
    def at(cls, path: Any, source: str) -> Place:
        """Raises:
        ValueError: no path is given.
        """
        if path is None or path == "":
            raise ValueError(f"source {source!r} needs a path: where its files are (--path)")
        fs, root = filesystem_at(os.path.expanduser(str(path)))
        return cls(fs, root.rstrip("/"), source)

    def listing(self, endings: Sequence[str]) -> list[tuple[str, str]]:
        """(file relative to the root, stamp) of files with one of the endings, in lower case, sorted; hidden files are
        left out. A root that is a file lists itself.

        Raises:
            ValueError: it cannot be listed.
        """
        self.fs.invalidate_cache()  # a listing remembered from an earlier call hides new files
        try:
            found = self.fs.find(self.root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            found = {}
        except (GraphError, Unreachable):
            raise
        except Exception as error:  # every remote file system has errors of its own for a network that is down
            raise ValueError(
                f"source {self.source!r}: {self.root} cannot be listed ({type(error).__name__}: {error}); check the "
                "network, or give --path with a local copy"
            ) from error
        files = {self._relative(path): info for path, info in found.items() if path.lower().endswith(tuple(endings))}
        return [(file, self._stamp(files[file])) for file in sorted(files) if "/." not in f"/{file}"]

    @contextmanager
    def open(self, file: str) -> Iterator[Any]:
        """The file, opened to read bytes."""
        with self.fs.open(self.path(file), "rb") as handle:
            yield handle

    def read(self, file: str) -> bytes | Unusable:
        """The bytes of a file that somebody else's table names: below the root, or why not."""
        if (refused := self._refused(file)) is not None:
            return refused
        path = self.path(file)
        try:
            size = self.fs.size(path)
            if size is not None and size > MAX_BYTES:
                return Unusable("too_large", f"{size} bytes, the limit is {MAX_BYTES}")
            data: bytes = self.fs.cat_file(path)
            return data
        except FileNotFoundError:
            return Unusable("missing")
        except Unreachable:
            raise
        except OSError as error:
            return Unusable("unreadable", getattr(error, "strerror", None) or type(error).__name__)

    def _refused(self, file: str) -> Unusable | None:
        path = self.path(file)
        if "://" in file:
            return Unusable("unreadable", "an address; fetch it first, with img2dataset, and use the source webdataset")
        real = os.path.realpath(path) if self.local else path
        if not _is_below(path, self.root) or not _is_below(
            real, os.path.realpath(self.root) if self.local else self.root
        ):
            return Unusable("unreadable", "a path that leads out of the folder")
        if self.local and os.path.lexists(path) and not os.path.isfile(path):
            return Unusable("unreadable", "not a regular file")  # opening a pipe would never return
        return None

    def stamp(self, file: str) -> str:
        """Changes when the file may have changed; `missing` if it is not there."""
        try:
            return self._stamp(self.fs.info(self.path(file)))
        except (FileNotFoundError, NotADirectoryError):
            return "missing"

    def path(self, file: str) -> str:
        """The path of a file on its file system."""
        return self.root if not file or file == self.root else posixpath.normpath(posixpath.join(self.root, file))

    @property
    def local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, list | tuple) else [self.fs.protocol])

    def _relative(self, path: str) -> str:
        return posixpath.basename(path) if path == self.root else posixpath.relpath(path, self.root)

    def _stamp(self, info: Mapping[str, Any]) -> str:
        if info.get("islink"):  # a listing describes the link, not the file behind it
            info = self.fs.info(info["name"])
        changes = next((info[name] for name in (*_CONTENT_IDS, "mtime", "created") if info.get(name)), "")
        return f"{info['size']}-{changes}"


def nbytes_of(stamp: str) -> int:
    """The size of a file, which its stamp begins with; 0 if it was not found."""
    size = stamp.partition("-")[0]
    return int(size) if size.isdecimal() else 0


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")
