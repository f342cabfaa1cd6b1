"""Annotations that somebody else made of a graph's items, brought in as if an annotator had made them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from graphbuild.annotators.base import Annotator, Derived, Request, Skip, parameter
from graphbuild.errors import GraphError, MissingWeights, UnusableImage
from graphbuild.hashing import digest_of
from graphbuild.images.cleaning import fitted
from graphbuild.images.codecs import DRAWN, codec_of, is_codec
from graphbuild.images.decode import suffixes
from graphbuild.kinds.registry import KINDS, Kind
from graphbuild.sources.base import Unusable
from graphbuild.sources.places import Place
from graphbuild.sources.tables import Tables, opened

KEPT = ("source", "jpeg", "jpeg444", "png", "jpeg_gray")
"""Codecs of kinds whose files are stored as they come; those of others are brought to what the kind promises."""

KEYS = ("key", "file_name", "item_id")
"""Columns of a table that may say which item a row is of."""

_SHAPE = 0.02  # how far the ratio of the sides may be from the picture's


class Files(NamedTuple):
    """Where the values of items are, and the tables among them."""

    known: Mapping[str, tuple[str, int]]
    tables: Tables


@dataclass(frozen=True, kw_only=True)
class Imported(Annotator):
    """Files of a folder, or rows of Parquet files, that belong to items by their key: `a/b.png`, `a/b.jpg.png` or a row
    whose `key`, `file_name` or `item_id` is `a/b.jpg` are of the item `a/b.jpg`. Rows in the order of the items, also
    dealt out to several tables, are read without going back in a row group. Items without one are skipped
    (`not_given`). Values are cleaned as those of sources are, or refused (`bad_values`); a picture has to have the
    shape of the item's. Attrs: `imported`, the data set and its revision.

    Args:
        kind: what they are.
        path: the folder.
        store: the codec, of a kind that is not in `graphbuild.KINDS`.
        column: of the tables, with the pictures or values; by default the one named like the kind, else `image`.
        labels: names of the values of a label map.
        dataset, revision: where they come from.
    """

    code_version: ClassVar[int] = 1
    item_facts: ClassVar[tuple[str, ...]] = ()
    kind: str
    path: str = parameter("", output=False, trusted=True)
    store: str | None = None
    column: str | None = None
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        declared = KINDS.get(self.kind)
        if declared is not None and declared.codec is None:
            raise GraphError(f"import: {self.kind} is computed on read; import {', '.join(declared.parents)}")
        if declared is None and (self.store is None or not is_codec(self.store)):
            raise GraphError(f"import: {self.kind!r} is no kind of graphbuild: say with --codec how it is stored")
        own = declared or Kind(name=self.kind, family="condition", codec=self.store, description="")
        object.__setattr__(self, "makes", (own,))  # another for each instance

    def codec(self, kind: Kind) -> str:
        """Files that are kept are checked when they are read, as those of a source."""
        assert kind.codec is not None
        return "source" if kind.codec in KEPT else kind.codec

    def missing(self) -> list[str]:
        return [] if self._files() else [f"import: no files of {self.kind} under {self.path}; give --from FOLDER"]

    def identity(self) -> str:
        """A digest of the files' names, sizes and times."""
        if lines := self.missing():
            raise MissingWeights(lines[0])
        return f"files:{digest_of(self._files())}"

    def load(self, device: str) -> Files:
        """What items may be called -> (file, row), row -1 for a file of its own."""
        place, index = self._place(), dict[str, tuple[str, int]]()
        for file, _ in self._files():
            if file.endswith(".parquet"):
                index |= {key: (file, row) for row, key in _keys(place, file)}
            else:
                index[posixpath.splitext(file)[0]] = (file, -1)
        return Files(index, Tables(place))

    def annotate(self, batch: Sequence[Request], model: Files) -> list[Any]:
        return [self._one(request, model) for request in batch]

    def _one(self, request: Request, files: Files) -> Derived | Skip | Exception:
        item = request.item
        names = (item.key, posixpath.splitext(item.key)[0], item.item_id)
        where = next((files.known[name] for name in names if name in files.known), None)
        if where is None:
            return Skip("not_given")
        data = self._read(*where, files.tables)
        if data is None:
            return Skip("not_given")
        if isinstance(data, Unusable):
            return UnusableImage(data.reason, data.detail)
        try:
            return self._fitted(data, request)
        except UnusableImage as error:
            return error

    def _fitted(self, data: bytes, request: Request) -> Derived:
        (kind,) = self.makes
        assert isinstance(kind, Kind) and kind.codec is not None
        promised = kind.codec if kind.codec == "jpeg_gray" else self.codec(kind)
        encoded, picture = fitted(promised, data, {"labels": list(self.labels)} if self.labels else {})
        if picture is not None and kind.family in ("condition", "degradation"):
            _check_shape(picture.shape, request.inputs["image"].array().shape)
        codec = self.codec(kind)
        value = data if codec == "source" else codec_of(codec).values(encoded.data, encoded.format)
        origin = {"dataset": self.dataset, "revision": self.revision}
        known = {name: said for name, said in origin.items() if said is not None}
        return Derived({kind.name: value}, attrs={**encoded.attrs, "imported": known})

    def _place(self) -> Place:
        return Place.at(self.path, "import")

    def _files(self) -> list[tuple[str, str]]:
        return self._place().listing([*suffixes(), ".txt", ".json", ".parquet"]) if self.path else []

    def _read(self, file: str, row: int, tables: Tables) -> bytes | Unusable | None:
        place = self._place()
        if row < 0:
            return place.read(file)
        rows = tables[file]
        tops = {leaf.partition(".")[0] for leaf in rows.columns}
        column = self.column or next((name for name in (self.kind, "image") if name in tops), None)
        if column not in tops:
            raise GraphError(f"{file} has no column {column or self.kind!r}; say which with --column: {sorted(tops)}")
        ((_, values),) = rows.read([row], [leaf for leaf in rows.columns if leaf.partition(".")[0] == column])
        value = values[str(column)]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            codec = self.codec(self.makes[0])  # type: ignore[arg-type]
            return value.encode() if codec in ("text", "json", *DRAWN) else place.read(value)
        return value if isinstance(value, bytes) or value is None else Unusable("bad_values", type(value).__name__)


def imported(kind: str, path: str, **fields: Any) -> Imported:
    """The annotator that brings in `path`; the name of its folder stands for a data set that is not named.

    Raises:
        GraphError, ValueError: it cannot be.
    """
    made = Imported(kind=kind, path=path, **fields)
    return made if made.dataset else replace(made, dataset=posixpath.basename(path.rstrip("/")) or None)


def _keys(place: Place, file: str) -> Iterator[tuple[int, str]]:
    """Row -> the key of its item."""
    with opened(place, file) as rows:
        column = next((name for name in KEYS if name in rows.columns), None)
        if column is None:
            raise GraphError(f"{file} does not say which item a row is of: it needs a column {', '.join(KEYS)}")
        for row, values in rows.read(range(rows.num_rows), [column]):
            yield row, str(values[column])


def _check_shape(ours: Sequence[int], theirs: Sequence[int]) -> None:
    if abs((ours[1] / ours[0]) / (theirs[1] / theirs[0]) - 1) > _SHAPE:
        raise UnusableImage(
            "bad_values", f"{ours[1]}x{ours[0]} beside a picture of {theirs[1]}x{theirs[0]}: another picture's?"
        )
