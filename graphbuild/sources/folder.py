"""Photographs in a folder, with captions beside them or in tables."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from graphbuild.contracts import MAX_BYTES
from graphbuild.errors import counted
from graphbuild.images.decode import suffixes
from graphbuild.sources.base import (
    Entry,
    Listing,
    Source,
    SourceItem,
    Unusable,
    columns_of,
    facts_digest,
    location,
)
from graphbuild.sources.captions import (
    MAX_TEXT,
    TABLES,
    CaptionError,
    Row,
    Tables,
    caption_of,
    shown,
    too_long,
)
from graphbuild.sources.places import nbytes_of
from graphbuild.sources.remote import SCHEMES, mirror_of, scheme_of

_PLUGINS = {
    ".heic": "graphbuild[heif]",
    ".heif": "graphbuild[heif]",
    ".hif": "graphbuild[heif]",
    ".jxl": "pillow-jxl-plugin",
}
_FOLLOW = "--follow-links reads what links lead to"


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Every image file under `path`, at any depth, whose suffix the installed Pillow can read. Hidden files,
    hidden folders and graphs are left out.

    The caption of `a/b.jpg` is `a/b.txt`; without that, its row in a table (`captions` or `metadata`, as `.jsonl`,
    `.csv` or `.parquet`, in its folder or one above; columns `file` or `file_name`, `caption` or `text`, and if wanted
    `licence`, `attribution`, `group`, `split`; further ones go to `meta`).

    Attributes:
        path: the folder, on this machine, in an object store (`s3://bucket/photos`) or on the Hub (`hf://...`).
        follow_links: also read links that lead out of the folder, and linked folders.
    """

    name: ClassVar[str] = "folder"
    path: str | os.PathLike[str] | None = location()
    follow_links: bool = location(False)

    def listing(self) -> Listing:
        """Every image file, sorted by its path below the folder, and what else was seen. Captions are read, images
        are not."""
        try:
            root, seen = self._seen()
            tables = Tables(root, follow_links=self.follow_links)
            keys = sorted(seen.images)
            rows = ((key, self._row(root, key, tables, walked=seen)) for key in keys)
            stamps = seen.images
            entries = [Entry(key, stamps[key], _facts(key, row), nbytes_of(stamps[key])) for key, row in rows]
            notes = [*seen.notes(), *(tables.notes(seen.tables, keys[0]) if keys else ())]
        except CaptionError as error:
            raise ValueError(f"source 'folder': {error}") from error
        if not entries:
            listed = "".join(f"; {note}" for note in notes)
            raise ValueError(
                f"source 'folder': no image files under {self.path}{listed}; give another path (looked for "
                f"{' '.join(sorted(suffixes()))})"
            )
        return Listing(tuple(entries), tuple(notes))

    def entries(self) -> Sequence[Entry]:
        """The entries of `listing`."""
        return tuple(self.listing().entries)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The files' bytes, unchecked; a file that is missing or unreadable has `Unusable` nodes."""
        if scheme_of(self.path):
            yield from self._read_remote(keys)
            return
        root = self._root()
        tables = Tables(root, follow_links=self.follow_links)
        for key in keys:
            yield _item(key, self._row(root, key, tables), self._read(root, key))

    def out_of_reach(self, key: str | None) -> str | None:
        """A folder that is not there, or another one: an empty mount point, say."""
        try:
            if scheme_of(self.path):
                here = key is None or mirror_of(str(self.path)).place.stamp(key) != "missing"
            else:
                here = key is None or (self._root() / key).exists()
        except ValueError as error:
            return str(error)
        return None if here else f"source 'folder': {key} was listed and is not in {self.path} here: is it mounted?"

    def _seen(self) -> tuple[Path, _Seen]:
        """What there is, and the folder on this machine where captions can be read."""
        if not scheme_of(self.path):
            return (root := self._root()), _Seen.walked(root, self.follow_links)
        if (scheme := scheme_of(self.path)) not in SCHEMES:
            allowed = ", ".join(f"{name}://" for name in SCHEMES)
            raise ValueError(f"source 'folder': {self.path}: {scheme}:// is not supported; give a path, or {allowed}")
        mirror = mirror_of(str(self.path))
        seen = _Seen.listed(mirror.root, dict(mirror.place.listing([""])))
        tables = [f"{folder}/{name}".lstrip("/") for folder in seen.tables for name in TABLES]
        mirror.renew([*tables, *(f"{os.path.splitext(key)[0]}.txt" for key in seen.captioned)])
        return mirror.root, seen

    def _read_remote(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        mirror = mirror_of(str(self.path))
        mirror.ask(keys)
        tables = Tables(mirror.root, follow_links=True)
        for key, image in zip(keys, mirror.read(keys), strict=True):
            yield _item(key, self._row(mirror.root, key, tables), image)

    def _root(self) -> Path:
        if self.path is None:
            raise ValueError("source 'folder' needs a path: the folder with the images (--path FOLDER)")
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"source 'folder': {self.path} is not a folder; give the folder with the images")
        return root.resolve()

    def _row(self, root: Path, key: str, tables: Tables, *, walked: _Seen | None = None) -> Row:
        """What text file and tables say of an image; `walked` knows which images have a text file."""
        row, name = tables.row(key), f"{os.path.splitext(key)[0]}.txt"
        if walked is not None and key not in walked.captioned:
            return row
        data = self._read(root, name)
        if isinstance(data, bytes) and len(data) <= MAX_TEXT:
            caption = caption_of(data, name)
            return {**row, "caption": caption} if caption else row
        if isinstance(data, bytes) or data.reason == "too_large":
            return {"refused": too_long(name, os.path.getsize(root / name))}
        if data.reason == "missing":
            return row
        raise CaptionError(f"{name}: {data.detail}; make it readable, or move it away")

    def _read(self, root: Path, key: str) -> bytes | Unusable:
        path = root / key
        try:
            asked = not self.follow_links and not _is_plain(root, key)  # resolving takes long
            if asked and not path.resolve().is_relative_to(root):
                return Unusable("unreadable", "a link that leaves the folder")
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return Unusable("unreadable", "not a regular file")  # opening a pipe would never return
            if found.st_size > MAX_BYTES:
                return Unusable("too_large", f"{found.st_size} bytes, the limit is {MAX_BYTES}")
            return path.read_bytes()
        except FileNotFoundError:
            return Unusable("missing")
        except (OSError, RuntimeError) as error:  # pathlib reports a link to itself as RuntimeError
            return Unusable("unreadable", getattr(error, "strerror", None) or type(error).__name__)


def _item(key: str, row: Row, image: bytes | Unusable) -> SourceItem:
    refused = row.get("refused")
    return SourceItem(
        key=key,
        uri=key,
        original=None if isinstance(image, Unusable) else image,
        nodes={"image": Unusable("too_large", refused) if refused else image},
        licence=row.get("licence"),
        attribution=row.get("attribution"),
        split=row.get("split"),
        group=row.get("group"),
        caption=row.get("caption"),
        meta={"refused": refused} if refused else row.get("meta", {}),
    )


def _facts(key: str, row: Row) -> str:
    return facts_digest(columns_of(_item(key, row, Unusable("missing"))))


@dataclass
class _Seen:
    """What a walk over a folder finds. Each file is an image, belongs to one, or is counted.

    Attributes:
        images: key -> stamp.
        captioned: the images with a text file beside them.
        tables: the folders with a table of captions, "" for `root` itself.
        others: files that are neither images nor belong to one.
    """

    root: Path
    follow_links: bool
    images: dict[str, str] = field(default_factory=dict)
    captioned: set[str] = field(default_factory=set)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    undecodable: list[bytes] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    linked_folders: list[str] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @classmethod
    def walked(cls, root: Path, follow_links: bool) -> _Seen:
        seen, visited = cls(root, follow_links), set[tuple[int, int]]()
        for folder, folders, files in os.walk(root, onerror=_raise, followlinks=follow_links):
            relative = Path(folder).relative_to(root)
            if "graph.json" in files and _is_graph(Path(folder)):
                seen.graphs.append(relative.as_posix())
                folders.clear()
                continue
            if follow_links and _is_again(folder, visited):
                folders.clear()
                continue
            folders[:] = [name for name in sorted(folders) if seen._enters(Path(folder, name))]
            seen._add(relative.as_posix(), files, lambda key: _stamp(f"{root}/{key}"))
        return seen

    @classmethod
    def listed(cls, root: Path, stamps: Mapping[str, str]) -> _Seen:
        """The same of a folder elsewhere, of which hidden files are not listed."""
        seen = cls(root, follow_links=True)
        folders: dict[str, list[str]] = {}
        for file in stamps:
            folder, _, name = file.rpartition("/")
            folders.setdefault(folder or ".", []).append(name)
        for folder, names in sorted(folders.items()):
            above = [folder, *(parent.as_posix() for parent in Path(folder).parents)]
            if graph := next((parent for parent in above if "graph.json" in folders.get(parent, ())), None):
                seen.graphs += [graph] if graph == folder else []
            else:
                seen._add(folder, names, stamps.__getitem__)
        return seen

    def _enters(self, folder: Path) -> bool:
        if folder.name.startswith("."):
            return False
        if folder.is_symlink() and not self.follow_links:
            self.linked_folders.append(folder.relative_to(self.root).as_posix())
            return False
        return True

    def _add(self, folder: str, files: Sequence[str], stamp: Callable[[str], str]) -> None:
        readable = suffixes()
        texts = {name.removesuffix(".txt") for name in files if name.endswith(".txt")}
        stems = {os.path.splitext(name)[0] for name in files if _suffix(name) in readable}
        for name in sorted(files):
            stem, key = os.path.splitext(name)[0], f"{folder}/{name}".removeprefix("./")
            if not _is_utf8(key):
                self.undecodable.append(os.fsencode(key))
            elif name.startswith("."):
                self.hidden += [key] if _suffix(name) in readable else []
            elif not (_suffix(name) in readable or name in TABLES):
                self.others += [] if name.endswith(".txt") and stem in stems else [key]
            elif not self.follow_links and _leads_out(f"{self.root}/{key}", self.root):
                self.links.append(key)
            elif name in TABLES:
                self.tables.append(folder.removeprefix("."))
            else:
                self.images[key] = stamp(key)
                self.captioned |= {key} if stem in texts else set()

    def notes(self) -> Iterator[str]:
        """One line for each kind of thing that is no item."""
        if self.others:
            yield _others(self.others)
        if self.hidden:
            yield f"left out: {counted(len(self.hidden), 'hidden image file')} ({shown(self.hidden)})"
        if self.undecodable:
            names = ", ".join(map(repr, self.undecodable[:3]))
            files = "1 file whose name is" if len(self.undecodable) == 1 else f"{len(self.undecodable)} files, names"
            yield f"left out: {files} not UTF-8 ({names}): rename"
        if self.links:
            yield f"left out: {counted(len(self.links), 'link')} out of the folder ({shown(self.links)}): {_FOLLOW}"
        if self.linked_folders:
            folders = counted(len(self.linked_folders), "linked folder")
            yield f"left out: {folders} ({shown(self.linked_folders)}): {_FOLLOW}"
        if self.graphs:
            yield f"left out: {counted(len(self.graphs), 'graph')} ({shown(self.graphs)})"


def _others(files: Sequence[str]) -> str:
    endings = Counter(map(_ending, files))
    listed = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(8))
    more = f" and {len(endings) - 8} more endings" if len(endings) > 8 else ""
    plugins = sorted({_PLUGINS[ending] for ending in endings if ending in _PLUGINS})
    fix = f": pip install {' '.join(map(repr, plugins))}" if plugins else ""
    return f"left out: {counted(len(files), 'file')} with other endings ({listed}{more}: {shown(files)}){fix}"


def _raise(error: OSError) -> None:
    # os.walk would pass over a folder it may not list, and its images would be lost without a word.
    raise ValueError(f"source 'folder': cannot list {error.filename}: {error.strerror}") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _ending(name: str) -> str:
    """The ending to count a file under: a short word, or none."""
    ending = _suffix(name)
    return ending if ending.removeprefix(".").isalnum() and len(ending) <= 12 else "no ending"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_graph(folder: Path) -> bool:
    try:
        document = json.loads((folder / "graph.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"format", "shard_size", "source"} <= document.keys()


def _is_again(folder: str, visited: set[tuple[int, int]]) -> bool:
    """Whether links led to a folder that was walked before."""
    found = os.stat(folder)
    place = (found.st_dev, found.st_ino)
    if place in visited:
        return True
    visited.add(place)
    return False


def _leads_out(path: str, root: Path) -> bool:
    try:
        return os.path.islink(path) and not Path(path).resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        return False  # a link to itself is an item: its edge says what is wrong


def _is_plain(root: Path, key: str) -> bool:
    """Whether nothing on the way from the root to a file is a link, or leads up."""
    parts = key.split("/")
    ways = accumulate(parts, "{}/{}".format, initial=str(root))
    return ".." not in parts and not any(map(os.path.islink, ways))


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "unreadable"  # a link to nothing is still an item: its edge says what is wrong
    return f"{found.st_size}-{found.st_mtime_ns}"
