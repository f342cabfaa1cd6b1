"""Samples in tar files, as WebDataset lays them out and img2dataset writes them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

from graphbuild.contracts import MAX_BYTES
from graphbuild.errors import counted
from graphbuild.sources.base import Entry, Listing, SourceItem, Unusable
from graphbuild.sources.columns import Mapped
from graphbuild.sources.places import Place

Members = Mapping[str, tuple[int, int]]
"""Ending -> (offset, size) of the members of one sample."""

_IMG2DATASET = {"image": "jpg;jpeg;png;webp"}
_CAPTION = {"caption": "txt"}


@dataclass(frozen=True, kw_only=True)
class WebDataset(Mapped):
    """Every sample of the `.tar` files under `path`: members that share a name up to its first dot. Key: `tar#name`.

    A column is an ending: `jpg`, `seg.png`, `txt`; `jpg;png` the first that is there; `json.caption` a value of the
    JSON member. By default the picture is `image` and `txt` its caption, which is what img2dataset writes: the way from
    a list of addresses to a graph. Members are read at their offsets; nothing is unpacked.
    """

    name: ClassVar[str] = "webdataset"
    nodes: Mapping[str, Any] = field(default_factory=lambda: dict(_IMG2DATASET))
    facts: Mapping[str, Any] = field(default_factory=lambda: dict(_CAPTION))

    def listing(self) -> Listing:
        """Every sample with the picture's ending, from the headers of the tar files; others are counted.

        Raises:
            ValueError: no samples, or a file is no tar.
        """
        place = Place.at(self.path, self.name)
        picture = self.declared()[0].of[0].split(";")
        entries, without = list[Entry](), list[str]()
        for file, stamp in place.listing([".tar"]):
            for sample, members in _index(str(self.path), file, stamp).items():
                key = f"{file}#{sample}"
                if any(ending.partition(".")[0] in members or ending in members for ending in picture):
                    entries.append(Entry(key, stamp, nbytes=sum(size for _, size in members.values())))
                else:
                    without.append(key)
        if not entries:
            raise ValueError(
                f"source {self.name!r}: no samples with {' or '.join(picture)} in .tar files under {self.path}; give "
                "--path, or say in nodes which ending the picture has"
            )
        left = f"left out: {counted(len(without), 'sample')} without a picture ({without[0]!r})" if without else ""
        return Listing(tuple(sorted(entries, key=lambda entry: entry.key)), (left,) if left else ())

    def entries(self) -> Sequence[Entry]:
        """Those of the listing."""
        return tuple(self.listing().entries)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The samples, in order.

        Raises:
            ValueError: a tar is gone or damaged, or has no such sample any more.
        """
        place = Place.at(self.path, self.name)
        for file, group in groupby(keys, key=lambda key: key.rpartition("#")[0]):
            samples = _index(str(self.path), file, place.stamp(file))
            with place.open(file) as handle:
                for key in group:
                    sample = key.rpartition("#")[2]
                    if sample not in samples:
                        raise ValueError(f"source {self.name!r}: {file} has no sample {sample!r} any more")
                    row = {ending: _bytes(handle, *where) for ending, where in samples[sample].items()}
                    yield self.item(key, {**row, "__file__": file, "__key__": sample}, place.read)


def _bytes(handle: Any, offset: int, size: int) -> bytes | Unusable:
    if size > MAX_BYTES:
        return Unusable("too_large", f"{size} bytes, the limit is {MAX_BYTES}")
    handle.seek(offset)
    data: bytes = handle.read(size)
    return data if len(data) == size else Unusable("damaged", f"{len(data)} of {size} bytes")


@lru_cache(maxsize=64)
def _index(root: str, file: str, stamp: str) -> Mapping[str, Members]:
    # Remembered, because sources are read unit by unit; another stamp is another tar.
    place = Place.at(root, WebDataset.name)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with place.open(file) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                folder, slash, base = member.name.rpartition("/")
                name, dot, ending = base.partition(".")
                if member.isfile() and dot and name:
                    sample = found.setdefault(f"{folder}{slash}{name}", {})
                    sample.setdefault(ending.lower(), (member.offset_data, member.size))
    except (FileNotFoundError, tarfile.TarError) as error:
        raise ValueError(f"source {WebDataset.name!r}: {file} cannot be read ({error}); fetch it again") from error
    return found
