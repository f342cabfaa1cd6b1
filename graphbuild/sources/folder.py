"""Photographs in a folder, with captions beside them or in one table."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from graphbuild.contracts import MAX_BYTES
from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location

EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""What counts as an image file, in any case. Whether it is one shows when it is decoded."""

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")
"""Where a table of captions may be: in the folder itself, at most one of them."""

_COLUMNS = {
    "file": ("file", "file_name"),
    "caption": ("caption", "text"),
    "licence": ("licence", "license"),
    "attribution": ("attribution",),
    "group": ("group",),
    "split": ("split",),
}
_Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Every image file under `path`, at any depth; hidden files and folders are left out.

    The caption of `a/b.jpg` is `a/b.txt`; without that, its row in a table of the folder (one of `TABLES`;
    columns `file` or `file_name`, `caption` or `text`, and if wanted `licence`, `attribution`, `group`, `split`).
    Links to folders are not followed, and a linked file outside the folder is not read.

    The stamp covers the image file, not its caption: items that are already in a graph keep theirs.
    """

    name: ClassVar[str] = "folder"
    path: Any = location()

    def entries(self) -> Sequence[Entry]:
        """Every image file, sorted by its path below the folder; the table is checked, no image is opened."""
        root = self._root()
        entries = sorted(_entries(root), key=lambda entry: entry.key)
        if not entries:
            raise ValueError(
                f"source 'folder': no image files under {self.path} (looked for {' '.join(sorted(EXTENSIONS))}; "
                "links to folders are not followed); give another path"
            )
        _check_table(_table(root), entries)
        return entries

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The files' bytes, whatever is in them; a file that is gone or cannot be read says so."""
        root = self._root()
        rows = _table(root)
        for key in keys:
            yield _item(root, key, rows.get(key, {}))

    def _root(self) -> Path:
        if self.path is None:
            raise ValueError("source 'folder' needs a path: the folder with the images")
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"source 'folder': {self.path} is not a folder; give the folder with the images")
        return root.resolve()


def _entries(root: Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                path = Path(folder, name)
                yield Entry(_key(path.relative_to(root)), _stamp(path))


def _raise(error: OSError) -> None:
    # os.walk would pass over a folder it may not list, and its images would be lost without a word.
    raise ValueError(f"source 'folder': cannot list {error.filename}: {error.strerror}") from error


def _key(relative: Path) -> str:
    key = relative.as_posix()
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"source 'folder': the file name {os.fsencode(key)!r} is not UTF-8; rename it") from error
    return key


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "unreadable"  # a link to nothing is still an item: its edge says what is wrong
    return f"{found.st_size}-{found.st_mtime_ns}"


def _item(root: Path, key: str, row: _Row) -> SourceItem:
    image = _read(root, root / key)
    return SourceItem(
        key=key,
        uri=key,
        original=None if isinstance(image, Unusable) else image,
        nodes={"image": image},
        licence=row.get("licence"),
        attribution=row.get("attribution"),
        split=row.get("split"),
        group=row.get("group"),
        caption=_sidecar(root, (root / key).with_suffix(".txt")) or row.get("caption"),
    )


def _read(root: Path, path: Path) -> bytes | Unusable:
    try:
        if not path.resolve().is_relative_to(root):
            return Unusable("unreadable", "a link that leaves the folder")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return Unusable("unreadable", "not a regular file")  # opening a pipe would wait for ever
        if found.st_size > MAX_BYTES:
            return Unusable("too_large", f"{found.st_size} bytes, the limit is {MAX_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        return Unusable("missing")
    except (OSError, RuntimeError) as error:  # pathlib reports a link to itself as RuntimeError
        return Unusable("unreadable", getattr(error, "strerror", None) or type(error).__name__)


def _sidecar(root: Path, path: Path) -> str | None:
    data = _read(root, path)
    if isinstance(data, Unusable):
        return None
    return data.decode("utf-8-sig", errors="replace").strip() or None


def _table(root: Path) -> Mapping[str, _Row]:
    found = [root / name for name in TABLES if (root / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"source 'folder': {' and '.join(path.name for path in found)}; keep one table of captions")
    return _parsed(found[0], _stamp(found[0])) if found else {}


@lru_cache(maxsize=1)
def _parsed(path: Path, stamp: str) -> Mapping[str, _Row]:
    # Remembered, because `read` is called once per unit; the stamp makes a changed table a new one.
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file) if path.suffix == ".csv" else _json_lines(file, path.name)
            return dict(_row(line, path.name) for line in lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"source 'folder': {path.name}: {error}") from error


def _json_lines(lines: Iterable[str], name: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"source 'folder': {name} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"source 'folder': {name} line {number} is not a JSON object")
        yield row


def _row(line: Mapping[str, Any], name: str) -> tuple[str, _Row]:
    row = {ours: _text(line, theirs, name) for ours, theirs in _COLUMNS.items()}
    if not row["file"]:
        columns = ", ".join(str(column) for column in line)
        raise ValueError(f"source 'folder': a row of {name} has no file or file_name, only {columns}")
    file = PurePosixPath(row.pop("file")).as_posix()
    return file, {column: text for column, text in row.items() if text}


def _text(line: Mapping[str, Any], columns: Sequence[str], name: str) -> str:
    value = next((line[column] for column in columns if line.get(column) not in (None, "")), "")
    if not isinstance(value, str | int | float):
        raise ValueError(f"source 'folder': {name} has {value!r} as {columns[0]}; it must be text")
    return str(value)


def _check_table(rows: Mapping[str, _Row], entries: Sequence[Entry]) -> None:
    # A table that describes none of the files is a mistake (absolute paths, say) that would cost every caption.
    if rows and not any(entry.key in rows for entry in entries):
        raise ValueError(
            f"source 'folder': the table of captions names none of the {len(entries)} images: it has "
            f"{next(iter(rows))!r}, the folder has {entries[0].key!r}"
        )
