"""What a source is: a listing of keys, and a way to read the items behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np

from graphbuild.contracts import encodable
from graphbuild.hashing import canonical_json, digest_of
from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import Kind, kind_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a listing, found without opening it.

    Attributes:
        key: stable and relative to the source's root.
        stamp: changes when the bytes may have changed: size and mtime, or an ETag.
        facts: `facts_digest` of the item, where the listing knows its caption, licence and so on; else they are looked
            at when the stamp changes.
        nbytes: about how large the files are, where the listing knows it: shards of large files have fewer items.
    """

    key: str
    stamp: str
    facts: str | None = None
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source found.

    Attributes:
        entries: every item, in order; read once, so that an iterator holds one at a time.
        notes: one line for each kind of thing that was seen and is no item: how many, and what to do about it. Read
            after the entries.
    """

    entries: Iterable[Entry]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """An image a source could not deliver: the reason its failed edge records, and a detail without paths."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """A value with facts about it.

    Attributes:
        attrs: such as `palette` (RGB colours, 0..255) and `labels` (names) of a label map.
        parents: kind -> the variant of the same item that this one was made from: a stylised picture and its reference.
            A task that shows both takes those that belong together.
    """

    value: bytes | Pixels | str | Mapping[str, Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, int] = field(default_factory=dict)


Content = bytes | Pixels | str | Mapping[str, Any] | Given | Unusable | None
"""What a source gives for one node: the bytes of a file, an array, text or JSON as the codec of the kind stores it
(arrays are uint8: H x W x 3 RGB, or H x W), or why there is nothing. None: the item has no such node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceItem:
    """One item as read.

    Attributes:
        original: the bytes whose sha256 identifies the item; None if they could not be read.
        nodes: kind -> its content, or a list of contents, one for each variant. Files of kinds with the codec `source`
            are stored as they are; those of other kinds are fitted to their codec, or fail (`bad_values`). A kind that
            is left out is skipped (`not_given`), but the picture, the first kind, fails (`missing`).
        meta: JSON-ready facts of the source that have no column.
    """

    key: str
    uri: str
    original: bytes | None
    nodes: Mapping[str, Content | Sequence[Content]]
    licence: str | None = None
    attribution: str | None = None
    split: str | None = None
    group: str | None = None
    caption: str | None = None
    reference_caption: str | None = None
    subject: str | None = None
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


FACTS = ("licence", "attribution", "split", "group", "caption", "reference_caption", "subject", "category", "meta")
"""Columns of the items table that may be corrected while the picture stays."""


def columns_of(item: SourceItem) -> dict[str, str | None]:
    """The columns of the items table that an item's source gives."""
    texts = {name: encodable(getattr(item, name)) for name in ("key", "uri", *FACTS) if name != "meta"}
    return {**texts, "meta": encodable(canonical_json(dict(item.meta))) if item.meta else None}


def facts_digest(columns: Mapping[str, str | None]) -> str:
    """A digest of an item's facts, equal for the source's item and its row in the items table."""
    return digest_of([columns[name] for name in FACTS])


def location(default: str | bool | None = None) -> Any:
    """A source field that says where the data is; it is not part of the source's fingerprint."""
    return field(default=default, metadata={"output": False})


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Subclass, name what it `makes`, and write `entries` and `read`. The fields are the configuration.

    Class variables:
        makes: kinds given, by name, or as a `Kind` of your own; the picture of the item comes first.
        code_version: bump it when the same files give other values.
        by_key: whether it lists its items sorted by key; False: in another order, always the same. New items get their
            places in a graph in that order.

    Args:
        colours: `srgb`: readers convert pictures with another ICC profile to sRGB; `stored`: they leave the numbers of
            the file as they are. Stored bytes are the file's in both cases.
    """

    name: ClassVar[str]
    makes: ClassVar[tuple[str | Kind, ...]] = ("image",)
    code_version: ClassVar[int] = 1
    by_key: ClassVar[bool] = True
    colours: Literal["srgb", "stored"] = field(default="srgb", metadata={"added": True})

    def __post_init__(self) -> None:
        if self.colours not in ("srgb", "stored"):
            raise ValueError(f"colours: {self.colours!r}; allowed: srgb, stored")

    @abstractmethod
    def entries(self) -> Sequence[Entry]:
        """Every item, in order. Cheap: no image is opened.

        Raises:
            ValueError: nothing is there; the message names the place and the fix.
        """

    def listing(self) -> Listing:
        """The entries, with notes on what was left out. Override it in a source that leaves something out.

        Raises:
            ValueError: as `entries`.
        """
        return Listing(self.entries())

    @abstractmethod
    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The items behind `keys`, in that order, exactly one per key; an unreadable one has `Unusable` nodes."""

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of this instance: `makes`, unless its fields say more. The picture of the item comes first."""
        return tuple(kind_of(kind) for kind in self.makes)

    def variants(self) -> Mapping[str, int]:
        """Kind -> how many nodes of it an item has at most; 1 for kinds that are left out."""
        return {}

    def out_of_reach(self, key: str | None) -> str | None:
        """Why items cannot be read on this machine, in one line; None if they can, as far as a cheap look tells.

        Args:
            key: of an item that was just listed, on another machine perhaps.
        """
        return None

    def codec(self, kind: Kind) -> str:
        """The codec a made kind is stored with; the kind's own unless overridden."""
        assert kind.codec is not None
        return kind.codec


def source_params(source: Source) -> dict[str, Any]:
    """The fields in the source's fingerprint. A field added after the first release is left out while it has its
    default, so that existing graphs stay valid."""
    return {
        f.name: getattr(source, f.name)
        for f in fields(source)
        if f.metadata.get("output", True)
        and not (f.metadata.get("added", False) and getattr(source, f.name) == f.default)
    }


def phash(pixels: Pixels) -> int:
    """64-bit perceptual hash of an RGB or grey picture as a signed int64: the signs of the 8 x 8 lowest DCT terms of
    the 32 x 32 grey picture against their median (C. Zauner, "Implementation and Benchmarking of Perceptual Image
    Hash Functions", 2010). Pictures whose hashes differ in a few bits look alike.
    """
    import cv2

    small = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY) if small.ndim == 3 else small
    low = cv2.dct(grey.astype(np.float32))[:8, :8]
    terms = low.ravel()
    below, above = np.sort(terms)[31:33]  # np.median takes as long as all the rest
    bits = np.packbits(terms > (below + above) / 2)
    return int(bits.view(">i8")[0])
