"""Subjects200K: pairs of pictures of one subject, side by side on one canvas, in Parquet shards."""

from __future__ import annotations

import posixpath
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from graphbuild.errors import GraphError, Unreachable, UnusableImage
from graphbuild.images.codecs import Pixels, check_image
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location
from graphbuild.store.buckets import filesystem_at

if TYPE_CHECKING:
    import pyarrow.parquet as pq

COLUMNS = ("image.bytes", "collection", "quality_assessment", "description")
"""What is read of each row; other columns of a shard are left alone."""

_REQUIRED = {*COLUMNS, "description.description_0", "description.description_1"}
# Rows decoded at once, and bytes of a column read at once: with them it is the pages, not the row groups, that take
# memory (a row group of 341 MB: 16 MB held; with pyarrow's defaults 356 MB).
_BATCH_ROWS = 16
_BUFFER = 1 << 20
# Where the file systems of fsspec put something that changes with a file's content.
_CONTENT_IDS = ("blob_id", "ETag", "etag", "md5Hash", "content_md5")


class Box(NamedTuple):
    """A rectangle in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def squares(width: int, height: int) -> tuple[Box, Box] | None:
    """The left and the right square of a canvas, or None if it cannot hold two.

    W = 2s + 3p and H = s + 2p for side s and padding p, hence p = 2H - W and s = 2W - 3H.
    """
    padding, side = 2 * height - width, 2 * width - 3 * height
    if padding < 0 or side <= 0:
        return None
    bottom, second = padding + side, 2 * padding + side
    return Box(padding, padding, bottom, bottom), Box(second, padding, second + side, bottom)


@dataclass(frozen=True, kw_only=True)
class Subjects200K(Source):
    """Subjects200K (Tan et al., OminiControl, arXiv 2411.15098): 206,841 pairs, 10.6 GB, Apache-2.0.

    The left square of a canvas, with `description_0`, is `image`; the right one, with `description_1`, is
    `reference`. Captions are `item + " " + description`, as VisualCloze trains them: a description alone ("this item
    is photographed up close") need not name its subject. The squares are worked out for every row, because the
    collections differ in padding. Nothing is filtered: `quality_assessment` goes to `meta` as it is, null included.

    A shard that is gone or damaged stops the read instead of failing its thousands of rows: it can be fetched again.

    Attributes:
        path: a folder of Parquet shards, local or any fsspec URL; it may pin a commit (`...Subjects200K@<commit>`).
    """

    name: ClassVar[str] = "subjects200k"
    makes: ClassVar[tuple[str, ...]] = ("image", "reference")
    path: Any = location("hf://datasets/Yuanshi/Subjects200K")

    def entries(self) -> Sequence[Entry]:
        """Every row of every shard, from the footers alone."""
        shards = _Shards.at(self.path)
        entries: list[Entry] = []
        for file, stamp in shards.listing():
            with shards.open(file) as parquet:
                _check_columns(parquet, file)
                entries += [Entry(f"{file}#{row:07d}", stamp) for row in range(parquet.metadata.num_rows)]
        if not entries:
            raise ValueError(f"source 'subjects200k': no Parquet rows in {self.path}; give the folder with the shards")
        return sorted(entries, key=lambda entry: entry.key)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The pairs, cut out of their canvases. Only row groups with wanted rows are read, a few rows at a time.

        Raises:
            ValueError: a shard is gone, is not Parquet, or has fewer rows than it had when it was listed.
            OSError: a shard is damaged inside, or its file system failed.
        """
        shards = _Shards.at(self.path)
        for file, numbered in groupby(keys, key=lambda key: key.rpartition("#")[0]):
            rows = [int(key.rpartition("#")[2]) for key in numbered]
            with shards.open(file) as parquet:
                for run in _runs(parquet, rows):
                    for row, values in _values(parquet, run):
                        yield _item(f"{file}#{row:07d}", values)

    def codec(self, kind: Kind) -> str:
        """Crops are encoded anew, in full colour resolution."""
        return "jpeg444"


@dataclass(frozen=True, slots=True)
class _Shards:
    """The Parquet files below `root` of an fsspec file system."""

    fs: Any
    root: str

    @classmethod
    def at(cls, path: Any) -> _Shards:
        fs, root = filesystem_at(str(path))
        return cls(fs, root.rstrip("/"))

    def listing(self) -> list[tuple[str, str]]:
        """(file relative to the root, stamp), sorted; hidden files are left out."""
        self.fs.invalidate_cache()  # a listing remembered from an earlier call hides new shards
        try:
            found = self.fs.find(self.root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            found = {}
        except (GraphError, Unreachable):
            raise
        except Exception as error:  # every remote file system has errors of its own for a network that is down
            raise ValueError(
                f"source 'subjects200k': {self.root} cannot be listed ({type(error).__name__}: {error}); check the "
                "network, or give --path with a local copy"
            ) from error
        files = {posixpath.relpath(path, self.root): info for path, info in found.items() if path.endswith(".parquet")}
        return [(file, self._stamp(files[file])) for file in sorted(files) if "/." not in f"/{file}"]

    @contextmanager
    def open(self, file: str) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self.fs.open(posixpath.join(self.root, file), "rb") as handle:
                # By default a whole row group, with all its images, is read ahead.
                yield pq.ParquetFile(handle, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)
        except (FileNotFoundError, pa.ArrowException) as error:
            raise ValueError(f"source 'subjects200k': {file} cannot be read ({error}); fetch it again") from error
        except Unreachable:
            raise
        except OSError as error:
            raise OSError(f"source 'subjects200k': {file}: {error}") from error

    def _stamp(self, info: Mapping[str, Any]) -> str:
        if info.get("islink"):  # a listing describes the link, not the file behind it
            info = self.fs.info(info["name"])
        changes = next((info[name] for name in (*_CONTENT_IDS, "mtime", "created") if info.get(name)), "")
        return f"{info['size']}-{changes}"


class _Run(NamedTuple):
    """Ascending rows of one row group; `start` is the group's first row. All are counted from the file's start."""

    group: int
    start: int
    rows: list[int]


def _check_columns(parquet: pq.ParquetFile, file: str) -> None:
    schema = parquet.metadata.schema
    leaves = [schema.column(index).path for index in range(len(schema))]
    found = {".".join(path.split(".")[:depth]) for path in leaves for depth in (1, 2)}
    missing = sorted(_REQUIRED - found)
    if missing:
        raise ValueError(
            f"source 'subjects200k': {file} lacks the columns {', '.join(missing)}; it has {', '.join(leaves)}"
        )


def _runs(parquet: pq.ParquetFile, rows: Sequence[int]) -> Iterator[_Run]:
    footer = parquet.metadata
    starts = [0, *accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))]
    run: _Run | None = None
    for row in rows:
        group = bisect_right(starts, row) - 1
        if group == footer.num_row_groups:
            raise ValueError(f"source 'subjects200k': row {row} asked of a shard with {starts[-1]}; it was replaced")
        if run is not None and run.group == group and run.rows[-1] < row:
            run.rows.append(row)
            continue
        if run is not None:
            yield run
        run = _Run(group, starts[group], [row])
    if run is not None:
        yield run


def _values(parquet: pq.ParquetFile, run: _Run) -> Iterator[tuple[int, dict[str, Any]]]:
    start = run.start
    batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[run.group], columns=list(COLUMNS), use_threads=False)
    for batch in batches:
        stop = start + batch.num_rows
        for row in run.rows[bisect_left(run.rows, start) : bisect_left(run.rows, stop)]:
            yield row, {name: batch.column(name)[row - start].as_py() for name in batch.schema.names}
        if run.rows[-1] < stop:
            return  # the rest of the row group is not wanted
        start = stop


def _item(key: str, values: Mapping[str, Any]) -> SourceItem:
    canvas = (values["image"] or {}).get("bytes")
    description = values["description"] or {}
    left, right = _pair(canvas)
    return SourceItem(
        key=key,
        uri=key,
        original=canvas,
        nodes={"image": left, "reference": right},
        licence="Apache-2.0",
        attribution="Yuanshi/Subjects200K",
        caption=_caption(description, "description_0"),
        reference_caption=_caption(description, "description_1"),
        subject=description.get("item") or None,
        category=description.get("category") or None,
        meta={
            "collection": values["collection"],
            "quality_assessment": values["quality_assessment"],
            "description_valid": description.get("description_valid"),
        },
    )


def _caption(description: Mapping[str, Any], side: str) -> str | None:
    words = description.get(side)
    return " ".join(filter(None, (description.get("item"), words))) if words else None


def _pair(canvas: bytes | None) -> tuple[Pixels, Pixels] | tuple[Unusable, Unusable]:
    if canvas is None:
        return (Unusable("undecodable", "null image"),) * 2
    try:
        _, pixels = check_image(canvas)
    except UnusableImage as error:
        return (Unusable(error.reason, str(error)),) * 2
    height, width = pixels.shape[:2]
    boxes = squares(width, height)
    if boxes is None:
        return (Unusable("bad_geometry", f"{width}x{height}"),) * 2
    return _crop(pixels, boxes[0]), _crop(pixels, boxes[1])


def _crop(pixels: Pixels, box: Box) -> Pixels:
    return np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
