"""Annotators by name. Nothing is imported until it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from graphbuild.annotators.base import Annotator

BUILTIN: Mapping[str, str] = {
    "canny": "graphbuild.annotators.canny:Canny",
    "lsd": "graphbuild.annotators.lsd:Lsd",
    "grabcut": "graphbuild.annotators.grabcut:Grabcut",
    "source_caption": "graphbuild.annotators.source_caption:SourceCaption",
}
DEFAULT_FOR: Mapping[str, str] = {
    "canny": "canny",
    "lines": "lsd",
    "foreground_mask": "grabcut",
    "caption": "source_caption",
}
"""Kind -> the annotator that makes it unless a pipeline says otherwise."""

GROUP = "graphbuild.annotators"


def resolve(use: str, config: Mapping[str, Any] | None = None) -> Annotator:
    """An annotator from its name (`canny`), a kind it is the default for (`lines`), or `module:Class`.

    Raises:
        ValueError: no such annotator, an unknown parameter, or a value of the wrong type; the message lists what is
            valid.
    """
    cls = load_class(use)
    config = dict(config or {})
    valid = [f.name for f in fields(cls)]
    if unknown := sorted(set(config) - set(valid)):
        raise ValueError(f"annotator {use!r} has no parameter {unknown[0]!r}; it has: {', '.join(valid) or 'none'}")
    try:
        checked = TypeAdapter(cls).validate_python(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"annotator {use!r}: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from error
    return checked


def load_class(use: str) -> type[Annotator]:
    """The class behind a name; entry points of the group `graphbuild.annotators` are read only for unknown names."""
    name = DEFAULT_FOR.get(use, use)
    target = BUILTIN.get(name) or (name if ":" in name else _from_entry_points(name))
    module, _, attribute = target.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"annotator {use!r}: cannot load {target} ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, Annotator)):
        raise ValueError(f"annotator {use!r}: {target} is not an Annotator class")
    return cls


def _from_entry_points(name: str) -> str:
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in found:
        return found[name]
    known = sorted({*BUILTIN, *DEFAULT_FOR, *found})
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(f"unknown annotator {name!r}{hint} Known: {', '.join(known)}, or module:Class")
