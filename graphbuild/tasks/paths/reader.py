"""Read a task list from YAML, strictly: what is not understood is an error that names file, path, value and choices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

import yaml

from graphbuild.kinds.registry import Kind
from graphbuild.tasks.paths.path import DEFAULT_TYPE, Content, PathSet, TaskPath, role_kind

_FILE_KEYS = ("paths", "types", "content", "kinds")
_PATH_KEYS = ("name", "type", "cells", "target", "weight", "where", "content")
_CONTENT_KEYS = ("from", "of")
_KIND_KEYS = ("codec", "phrases", "group", "description")
_SUFFIXES = (".yaml", ".yml")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is absent where libyaml was


def shipped() -> tuple[str, ...]:
    """The names of the lists that come with the library, sorted."""
    files = resources.files("graphbuild.tasks.paths").iterdir()
    return tuple(sorted(PurePath(file.name).stem for file in files if file.name.endswith(".yaml")))


def load(name_or_file: str | os.PathLike[str]) -> PathSet:
    """A shipped list by name (`graph200k`), or a list of one's own by the name of its `.yaml` file.

    Raises:
        ValueError: no list of that name, or the file breaks a rule.
        OSError: the file cannot be read.
    """
    where = os.fspath(name_or_file)
    if where.endswith(_SUFFIXES):
        with open(where, "rb") as file:
            data = file.read()
    elif where in shipped():
        data = resources.files("graphbuild.tasks.paths").joinpath(f"{where}.yaml").read_bytes()
    else:
        raise ValueError(f"no path list {where!r}; shipped: {', '.join(shipped())}; or the name of a .yaml file")
    try:
        return _path_set(PurePath(where).name.removesuffix(".yaml").removesuffix(".yml"), data.decode())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{where}: {error}") from error


def _path_set(name: str, text: str) -> PathSet:
    refuse_repeated_keys(yaml.compose(text, Loader=_LOADER))
    document = _mapping("the file", yaml.load(text, Loader=_LOADER), _FILE_KEYS, needed=("paths",))
    own = _kinds(document.get("kinds", {}))
    default = _content(document.get("content"))
    if default is not None:
        default.check(own)
    entries = document["paths"]
    if not isinstance(entries, list):
        raise ValueError(f"paths: {entries!r}; allowed: a list of entries")
    paths = tuple(_path(number, entry, default, own) for number, entry in enumerate(entries))
    return PathSet(name=name, paths=paths, type_weights=_type_weights(document.get("types"), paths))


def _kinds(value: object) -> tuple[Kind, ...]:
    return tuple(_kind(name, entry) for name, entry in _mapping("kinds", value, None).items())


def _kind(name: str, entry: object) -> Kind:
    label = f"kinds: {name}"
    fields = {"group": "condition", "description": "", **_mapping(label, entry, _KIND_KEYS, needed=("codec",))}
    phrases = fields.pop("phrases", [])
    if not isinstance(phrases, list):
        raise ValueError(f"{label}: phrases: {phrases!r}; allowed: a list of noun phrases")
    return Kind(name=name, phrases=tuple(phrases), **fields)


def _path(number: int, entry: object, default: Content | None, own: Sequence[Kind]) -> TaskPath:
    label = f"path {entry['name']!r}" if isinstance(entry, dict) and "name" in entry else f"paths[{number}]"
    fields = _mapping(label, entry, _PATH_KEYS, needed=("name", "cells"))
    name = _text(f"{label}: name", fields["name"])
    cells = _roles(f"{label}: cells", fields["cells"])
    targets = tuple(sorted(_position(label, role, cells) for role in _target_roles(label, fields, cells)))
    options = {key: fields[key] for key in ("weight", "where") if key in fields}
    if "where" in options:
        options["where"] = _mapping(f"{label}: where", options["where"], None)
    if default is not None and default.of not in {cells[target] for target in targets}:
        default = None
    try:
        content = _content(fields["content"]) if "content" in fields else default
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    type_name = _text(f"{label}: type", fields.get("type", DEFAULT_TYPE))
    return TaskPath(
        name=name,
        type=type_name,
        cells=cells,
        targets=targets,
        content=content,
        own=_used(own, cells, content),
        **options,
    )


def _used(own: Sequence[Kind], cells: Sequence[str], content: Content | None) -> tuple[Kind, ...]:
    """The declarations that a path needs: a list of one's own kinds changes no path without them."""
    words = {word for role in cells for word in role_kind(role).split(".")}
    return tuple(kind for kind in own if kind.name in words or (content is not None and kind.name == content.source))


def _content(value: object) -> Content | None:
    if value is None:
        return None
    fields = _mapping("content", value, _CONTENT_KEYS, needed=_CONTENT_KEYS)
    return Content(source=_text("content: from", fields["from"]), of=_text("content: of", fields["of"]))


def _target_roles(label: str, fields: Mapping[str, Any], cells: tuple[str, ...]) -> tuple[str, ...]:
    target = fields.get("target", cells[-1])
    return (target,) if isinstance(target, str) else _roles(f"{label}: target", target)


def _position(label: str, role: str, cells: tuple[str, ...]) -> int:
    if role not in cells:
        raise ValueError(f"{label}: target: {role!r} is not a cell; allowed: {', '.join(cells)}")
    return cells.index(role)


def _roles(label: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{label}: {value!r}; allowed: a list of kinds, or kind:name")
    return tuple(_text(label, role) for role in value)


def _type_weights(value: object, paths: Iterable[TaskPath]) -> dict[str, float]:
    """Weights as written, checked against the types in use; a weight without a path would have no effect."""
    used = tuple(dict.fromkeys(path.type for path in paths))
    if value is None:
        return {}
    return dict(_mapping("types", value, used, needed=used))


def _text(label: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{label}: {value!r}; allowed: text (put it in quotes)")
    return value


def _mapping(
    label: str, value: object, allowed: tuple[str, ...] | None, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`value` as a mapping with text keys out of `allowed` (None: any), with all of `needed`."""
    choices = "any" if allowed is None else ", ".join(allowed)
    if not isinstance(value, dict):
        raise ValueError(f"{label}: {value!r}; allowed: a mapping with the keys {choices}")
    if unknown := [key for key in value if not isinstance(key, str) or (allowed is not None and key not in allowed)]:
        raise ValueError(f"{label}: unknown key {unknown[0]!r}; allowed: {choices}")
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{label}: {missing[0]!r} is missing; allowed: {choices}")
    return value


def refuse_repeated_keys(node: yaml.Node | None) -> None:
    """PyYAML keeps the last of two equal keys without a word; one of the two settings would have no effect."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            refuse_repeated_keys(child)
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"line {node.start_mark.line + 1}: key {twice[0]!r} used twice; allowed: once")
        for _, child in node.value:
            refuse_repeated_keys(child)
