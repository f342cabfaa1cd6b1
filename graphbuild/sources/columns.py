"""From a row, a tar sample or matched files to an item: which columns are nodes, and which are facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from graphbuild.config.strict_yaml import mapping
from graphbuild.hashing import canonical_json
from graphbuild.images.cleaning import DISTANCE
from graphbuild.images.codecs import DRAWN, is_codec
from graphbuild.kinds.registry import KINDS, Kind, kind_of
from graphbuild.sources.base import FACTS, Content, Given, Source, SourceItem, Unusable, location

Row = Mapping[str, Any]
Open = Callable[[str], bytes | Unusable]

PHOTOS = ("jpeg", "jpeg444", "png")
"""Codecs of pictures that annotators make: a file that comes with a data set keeps its bytes instead."""

_DEFAULTS = ("licence", "attribution")
"""Facts that a source may say of all items."""
_KEYS = ("of", "codec", "variants", "palette", "labels", "with", "values")
_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Node:
    """One kind and where it is found.

    Attributes:
        of: a column for each variant, or one whose list has them.
        variants: how many are planned.
        attrs: facts of every node: `palette` and `labels` of label maps without them, `values` of depth.
        parents: kind -> its variant that variant 0 of this one was made from; the next from the next.
    """

    kind: Kind
    of: tuple[str, ...]
    codec: str
    variants: int
    attrs: Mapping[str, Any]
    parents: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def declared(cls, name: str, entry: Any) -> Node:
        """From the entry of a map: a column, a list of columns, or a mapping with the keys `of`, `codec` and so on.

        Raises:
            ValueError: an unknown key or codec, or a kind of one's own without a codec.
        """
        said: dict[str, Any] = (
            {"of": entry} if isinstance(entry, str | list | tuple) else mapping(entry, _KEYS, ("of",))
        )
        of = [said["of"]] if isinstance(said["of"], str) else list(said["of"])
        codec = said.get("codec")
        if name not in KINDS and codec is None:
            raise ValueError(f"{name} is no kind of graphbuild: say how it is stored, {{of: {of[0]}, codec: source}}")
        if codec is not None and not is_codec(codec):
            raise ValueError(f"{name}: codec: {codec!r}; allowed: {', '.join(_codecs())}")
        kind = kind_of(name) if name in KINDS else Kind(name=name, family=_family(codec), codec=codec, description="")
        codec = codec or ("source" if kind.codec in PHOTOS else kind.codec)
        attrs: dict[str, Any] = {key: said[key] for key in ("palette", "labels", "values") if key in said}
        if attrs.get("values", DISTANCE) != DISTANCE or ("values" in attrs and codec != "png8"):
            raise ValueError(f"{name}: values: {attrs['values']!r}; allowed: {DISTANCE}, for kinds of codec png8")
        count, parents = int(said.get("variants", len(of))), mapping(said.get("with", {}), None)
        return cls(kind, tuple(map(str, of)), codec or "source", count, attrs, parents)


@dataclass(frozen=True, kw_only=True)
class Mapped(Source):
    """A source whose files have columns of any name.

    Args:
        path: a folder, a file or an address.
        nodes: kind -> the column it comes from, or a list of columns for its variants, or `{of: column, codec: ...,
            variants: ..., labels: [...], palette: [[r, g, b], ...], values: distance, with: {style_reference: 0}}`. A
            column of a structure is `outer.inner`. The picture of the item comes first. A kind of your own needs a
            codec. `values: distance` turns maps of distances into depth. `with` says which variant of another kind the
            first one was made from; the next belongs to the next.
        facts: caption, reference_caption, group, split, licence, attribution, subject or category -> a column, or a
            text with `{columns}` in it; `meta` -> a list of columns.
        dataset, revision: the name and version of the data set, recorded with everything that is made from it.
        licence, attribution: of items whose facts do not say.
    """

    path: Any = location()
    nodes: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    revision: str | None = None
    licence: str | None = None
    attribution: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            for name in ("nodes", "facts"):  # as a graph records them: lists, no tuples
                object.__setattr__(self, name, json.loads(canonical_json(mapping(getattr(self, name), None))))
            mapping(self.facts, FACTS)
            self.declared()
        except (TypeError, ValueError) as error:
            raise ValueError(f"source {self.name!r}: {error}") from error

    def declared(self) -> tuple[Node, ...]:
        """The map of nodes, read once; the picture first."""
        return self._declared

    @cached_property
    def _declared(self) -> tuple[Node, ...]:
        return self._read_map()

    def _read_map(self) -> tuple[Node, ...]:
        order = sorted(self.nodes, key=lambda kind: kind != "image")
        return tuple(Node.declared(kind, self.nodes[kind]) for kind in order)

    def kinds(self) -> tuple[Kind, ...]:
        return tuple(node.kind for node in self.declared())

    def variants(self) -> Mapping[str, int]:
        return {node.kind.name: node.variants for node in self.declared() if node.variants > 1}

    def codec(self, kind: Kind) -> str:
        return next(node.codec for node in self.declared() if node.kind.name == kind.name)

    def columns(self) -> set[str]:
        """Every column that the maps name."""
        meta = self.facts.get("meta") or []
        texts = [text for name, text in self.facts.items() if name != "meta"]
        named = {name for text in texts for name in (_SLOT.findall(text) if "{" in text else [text])}
        return named | {column for node in self.declared() for column in node.of} | set(meta)

    def item(self, key: str, row: Row, opened: Open) -> SourceItem:
        """The item of one row; `opened` reads the files that columns name."""
        nodes = {node.kind.name: _contents(node, row, opened) for node in self._declared}
        kind, picture = next(iter(nodes.items()))
        first = picture[0] if isinstance(picture, list) else picture
        data = first.value if isinstance(first, Given) else first
        facts = {name: self._fact(name, row) for name in self.facts if name != "meta"}
        meta = {column.rpartition(".")[2]: _plain(look_up(row, column)) for column in self.facts.get("meta") or ()}
        return SourceItem(
            key=key,
            uri=key,
            original=data if isinstance(data, bytes) else None if _is_nothing(data) else canonical_json(data).encode(),
            nodes={**nodes, kind: Unusable("missing")} if picture is None else nodes,
            meta={name: value for name, value in meta.items() if value is not None},
            **{"licence": self.licence, "attribution": self.attribution, **facts},
        )

    def _fact(self, name: str, row: Row) -> str | None:
        told = self.facts[name]
        text = _SLOT.sub(lambda slot: _text(look_up(row, slot[1])), told) if "{" in told else _text(look_up(row, told))
        return " ".join(text.split()) or (getattr(self, name) if name in _DEFAULTS else None)


def look_up(row: Row, column: str) -> Any:
    """The value of `outer.inner`; of `png;jpg` the first that is there; None if there is none."""
    if ";" in column:
        return next((found for name in column.split(";") if (found := look_up(row, name)) is not None), None)
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    value = row.get(head) if dot else None
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [look_up(each, rest) for each in value]
    return look_up(value, rest) if isinstance(value, Mapping) else None


def _contents(node: Node, row: Row, opened: Open) -> Content | list[Content]:
    if node.variants == 1 and len(node.of) == 1 and not node.parents:
        return _content(node, look_up(row, node.of[0]), opened)
    values = [look_up(row, column) for column in node.of]
    if len(node.of) == 1:
        values = list(values[0]) if isinstance(values[0], list | tuple) else values
    contents = [_content(node, value, opened) for value in values[: node.variants]]
    if not node.parents:
        return contents
    return [_linked(content, node.parents, at) for at, content in enumerate(contents)]


def _linked(content: Content, first: Mapping[str, int], at: int) -> Content:
    """A content with its parents: those of variant 0, `at` further."""
    parents = {kind: variant + at for kind, variant in first.items()}
    if content is None or isinstance(content, Unusable):
        return content
    return replace(content, parents=parents) if isinstance(content, Given) else Given(content, parents=parents)


def _content(node: Node, value: Any, opened: Open) -> Content:
    """A cell as the content of a node: bytes, a path, `{bytes, path}` of an Image feature, text, or JSON."""
    is_picture = node.codec not in ("text", "json", *DRAWN)
    if is_picture and isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if value is None or (value == "" and is_picture):
        return None
    if is_picture and isinstance(value, str):
        value = opened(value)
    elif node.codec == "text":
        value = value.strip() if isinstance(value, bytes) else _text(value).strip() or None
    elif isinstance(value, str):
        value = value.encode()
    if is_picture and not isinstance(value, bytes | Unusable):
        return Unusable("bad_values", f"a {type(value).__name__} where a picture is promised")
    return Given(value, node.attrs) if node.attrs and not _is_nothing(value) else value


def _is_nothing(value: Any) -> bool:
    return value is None or isinstance(value, Unusable)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    return json.loads(json.dumps(value, default=_text))


def _family(codec: str | None) -> Any:
    return "text" if codec == "text" else "condition"


def _codecs() -> Sequence[str]:
    from graphbuild.images.codecs import CODECS

    return tuple(CODECS)
