"""The contract of sources as a check that their authors run in their own tests."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from graphbuild.errors import GraphError, UnusableImage
from graphbuild.hashing import canonical_json
from graphbuild.images.cleaning import fitted
from graphbuild.images.codecs import codec_of
from graphbuild.kinds.registry import KINDS
from graphbuild.sources.base import (
    Content,
    Entry,
    Given,
    Source,
    SourceItem,
    Unusable,
    columns_of,
    facts_digest,
    source_params,
)


class SourceCheckError(GraphError):
    """A source breaks its contract. `problems` says how; the message has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_source(source: Source, *, most: int = 50) -> None:
    """List a source, read its first items, and see whether it keeps its contract.

    Its configuration has to survive a pickle and JSON; kinds are declared, variants counted; keys are different and
    relative, sorted unless the source says otherwise; two listings agree. `read` has to give one item for each key in
    order, the same again, also one by one and from the middle; contents that their codecs store, no more variants than
    were counted, only kinds of the source; facts that are text, and the digest that the listing gave.

    Args:
        most: items that are read.

    Raises:
        SourceCheckError: it breaks the contract; every problem found is listed.
    """
    problems = list(_problems(source, most))
    if problems:
        raise SourceCheckError([f"{source.name}: {problem}" for problem in problems])


def _problems(source: Source, most: int) -> Iterator[str]:
    yield from _configuration(source)
    yield from _kinds(source)
    try:
        entries = list(source.listing().entries)
        again = list(source.listing().entries)
    except Exception as error:
        yield f"listing() raised {type(error).__name__}: {error}"
        return
    yield from _listing(entries, again, source.by_key)
    taken = entries[:most]
    try:
        items = list(source.read([entry.key for entry in taken]))
        late = list(source.read([entry.key for entry in taken[len(taken) // 2 :]]))
        alone = [item for entry in taken[:3] for item in source.read([entry.key])]
    except Exception as error:
        yield f"read() raised {type(error).__name__}: {error}; an item that cannot be read has Unusable nodes"
        return
    yield from _reading(taken, items, late, alone)
    for entry, item in zip(taken, items, strict=False):
        yield from (f"{item.key}: {problem}" for problem in _item(source, entry, item))


def _configuration(source: Source) -> Iterator[str]:
    if not (is_dataclass(source) and source.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        yield "it is no frozen dataclass: write @dataclass(frozen=True, kw_only=True) above the class"
        return
    try:
        if pickle.loads(pickle.dumps(source)) != source:  # noqa: S301 - what was made here
            yield "a pickled copy differs: workers would read another source"
    except Exception as error:
        yield f"it cannot be sent to a worker ({type(error).__name__}: {error})"
    try:
        params = json.loads(canonical_json(source_params(source)))
    except (TypeError, ValueError) as error:
        places = ", ".join(f.name for f in fields(source) if f.metadata.get("output", True))
        yield f"its fields ({places}) cannot be recorded as JSON ({error}); declare places with location()"
        return
    if replace(source, **params) != source:
        yield f"its recorded configuration {params} makes another source"


def _kinds(source: Source) -> Iterator[str]:
    names = [kind.name for kind in source.kinds()]
    if not names:
        yield "it has no kinds: makes is empty"
    if len(set(names)) < len(names):
        yield f"a kind is declared twice: {names}"
    for kind in source.kinds():
        if KINDS.get(kind.name, kind) != kind:
            yield f"it declares {kind.name!r} otherwise than graphbuild.KINDS does: write its name alone, or rename it"
        if kind.codec is None:
            yield f"{kind.name!r} is computed on read and cannot be given"
    if unknown := sorted(source.variants().keys() - set(names)):
        yield f"variants() names {unknown}, which are not among its kinds {names}"


def _listing(entries: Sequence[Entry], again: Sequence[Entry], by_key: bool) -> Iterator[str]:
    keys = [entry.key for entry in entries]
    if not entries:
        yield "it lists no items and raises nothing: say where they are missing"
    if by_key and keys != sorted(keys):
        yield "its entries are not sorted by key; if another order is meant, declare by_key = False"
    if len(set(keys)) < len(keys):
        yield f"a key is listed twice: {next(key for key in keys if keys.count(key) > 1)!r}"
    if wrong := [key for key in keys if key.startswith("/") or ".." in key.split("/") or "://" in key]:
        yield f"a key is no name relative to the source's place: {wrong[0]!r}"
    if list(entries) != list(again):
        yield "a second listing differs: a stamp may change only when the data changes"


def _reading(
    entries: Sequence[Entry], items: Sequence[SourceItem], late: Sequence[SourceItem], alone: Sequence[SourceItem]
) -> Iterator[str]:
    wanted, got = [entry.key for entry in entries], [item.key for item in items]
    if wanted != got:
        first = next((pair for pair in zip(wanted, got, strict=False) if pair[0] != pair[1]), None)
        what = f"{first[1]!r} in place of {first[0]!r}" if first else f"{len(got)} items for {len(wanted)} keys"
        yield f"read() gave {what}"
        return
    parts = (("from the middle", items[len(items) // 2 :], late), ("one by one", items[:3], alone))
    for how, whole, part in parts:
        if len(whole) != len(part) or not all(map(_same, whole, part)):
            yield f"read() gives other items {how} than all at once"


def _same(one: SourceItem, other: SourceItem) -> bool:
    return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Given) and isinstance(other, Given):
        return _equal(one.value, other.value) and one.attrs == other.attrs
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _item(source: Source, entry: Entry, item: SourceItem) -> Iterator[str]:
    try:
        columns = columns_of(item)
    except Exception as error:
        yield f"its facts cannot be recorded ({type(error).__name__}: {error})"
        return
    if wrong := [name for name, value in columns.items() if not isinstance(value, str | None)]:
        yield f"{wrong[0]} is no text: {columns[wrong[0]]!r}"
    elif entry.facts is not None and entry.facts != facts_digest(columns):
        yield "the listing gives another digest of its facts than facts_digest(columns_of(item))"
    kinds = {kind.name: source.codec(kind) for kind in source.kinds()}
    if unknown := sorted(item.nodes.keys() - kinds.keys()):
        yield f"it gives {unknown}, which is not among its kinds {sorted(kinds)}"
    for name in item.nodes.keys() & kinds.keys():
        given = item.nodes[name]
        contents: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if len(contents) > (count := source.variants().get(name, 1)):
            yield f"{name}: {len(contents)} variants, but variants() says {count}"
        for content in islice(contents, count):
            if problem := _wrong(kinds[name], content):
                yield f"{name}: {problem}"
    if item.original is None and not all(map(_is_nothing, item.nodes.values())):
        yield "it has nodes but no original: the bytes that identify it"


def _is_nothing(given: Any) -> bool:
    several = isinstance(given, list | tuple)
    return all(map(_is_nothing, given)) if several else given is None or isinstance(given, Unusable)


def _wrong(codec: str, content: Content) -> str | None:
    """Why a content cannot be stored; None for one that says itself that there is nothing."""
    attrs: Mapping[str, Any] = {}
    if isinstance(content, Given):
        attrs, content = content.attrs, content.value
    if content is None or isinstance(content, Unusable):
        return None
    try:
        canonical_json(dict(attrs))
        if isinstance(content, bytes):
            fitted(codec, content, attrs)
        else:
            codec_of(codec).encode(content)
    except UnusableImage as error:
        return f"{error.reason}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
