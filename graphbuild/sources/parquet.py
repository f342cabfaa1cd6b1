"""Tables of pictures: Parquet files as the Hub has them, and data sets that `datasets` saved to disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from graphbuild.config.lookup import suggestion
from graphbuild.errors import counted
from graphbuild.sources.base import Entry, SourceItem
from graphbuild.sources.columns import Mapped
from graphbuild.sources.places import Place
from graphbuild.sources.tables import ENDINGS, listed, rows_of

_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|val|valid|test|dev)(?=[/_.-])")
_LONGER = {"val": "validation", "valid": "validation"}
_GENERATED = ("__file__", "__split__")


@dataclass(frozen=True, kw_only=True)
class Parquet(Mapped):
    """Every row of the `.parquet` and `.arrow` files under `path`: any image data set of the Hub (`hf://datasets/...`),
    a folder of `save_to_disk`, or tables of one's own. Key: `file#row`.

    A column of a picture is an Image feature (bytes, or a path relative to `path`), bytes, or a path. Addresses are not
    fetched. `__split__` stands for the split that a file's name says, `__file__` for the name. Only row groups with
    wanted rows are read, a few rows at a time, and once for all units of one process; an Arrow file is read from its
    start.
    """

    name: ClassVar[str] = "parquet"

    def entries(self) -> Sequence[Entry]:
        """Every row of every file, from the footers alone.

        Raises:
            ValueError: no rows, or a file lacks a column that is asked for.
        """
        entries = listed(Place.at(self.path, self.name), ENDINGS, self._check_columns)
        if not entries:
            raise ValueError(f"source {self.name!r}: no rows of .parquet or .arrow files in {self.path}; give --path")
        return entries

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The rows, in order.

        Raises:
            ValueError: a file is gone, is no table, or has fewer rows than when it was listed.
        """
        place = Place.at(self.path, self.name)
        for file, key, values in rows_of(place, keys, self._projected):
            yield self.item(key, {**values, **_generated(file)}, place.read)

    def _projected(self, leaves: Sequence[str]) -> list[str]:
        """The columns of a file that the maps use."""
        asked = {name for column in self.columns() for name in column.split(";")}
        return [leaf for leaf in leaves if any(_within(leaf, name) for name in asked)]

    def _check_columns(self, leaves: Sequence[str], file: str) -> None:
        asked = self.columns() - set(_GENERATED)
        for column in sorted(asked):
            if not any(_within(leaf, name) for leaf in leaves for name in column.split(";")):
                tops = list(dict.fromkeys(leaf.partition(".")[0] for leaf in leaves))
                more = f" and {counted(len(tops) - 20, 'more column')}" if len(tops) > 20 else ""
                raise ValueError(
                    f"source {self.name!r}: {file} has no column {column!r}{suggestion(column, tops)}; it has "
                    f"{', '.join(tops[:20])}{more}"
                )


@lru_cache(maxsize=64)
def _generated(file: str) -> Mapping[str, str | None]:
    split = _SPLIT.search(file)
    return {"__file__": file, "__split__": _LONGER.get(split[1], split[1]) if split else None}


def _within(leaf: str, column: str) -> bool:
    """Whether a leaf of the schema lies in a column: `a.b` in `a` and in `a.b`; lists are looked through."""
    plain = leaf.replace(".list.element", "").replace(".list.item", "")
    return plain == column or plain.startswith(f"{column}.")
