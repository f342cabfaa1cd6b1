"""Strict YAML reader of task lists: errors name the file, path, value and allowed values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphbuild.config.lookup import suggestion
from graphbuild.config.strict_yaml import mapping, reading
from graphbuild.kinds.registry import KINDS, Kind, kind_of
from graphbuild.store.locations import local_path
from graphbuild.tasks.paths.path import DEFAULT_TYPE, Content, PathSet, TaskPath, role_kind

_SHOWN_KEYS = ("layout", "order", "words")
_FILE_KEYS = ("paths", "types", "content", "kinds", *_SHOWN_KEYS)
_PATH_KEYS = ("name", "type", "cells", "target", "weight", "where", "content", "canvas", "views", "token", *_SHOWN_KEYS)
_OWN_KEYS = ("kinds", "cells", "canvas", "target", "caption", "holes", *_SHOWN_KEYS)
_CONTENT_KEYS = ("from", "of")
_KIND_KEYS = ("codec", "phrases", "family", "description", "where")
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class OwnTask:
    """A task that somebody wrote down to use a model once.

    Attributes:
        caption: what its target shows; empty for none.
        holes: cells of the query row that are to be made; empty for those without a picture.
    """

    path: TaskPath
    caption: str = ""
    holes: tuple[str, ...] = ()


def shipped() -> tuple[str, ...]:
    """The names of the lists that come with the library, sorted."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.yaml")))


def load(name_or_file: str | os.PathLike[str]) -> PathSet:
    """A shipped list by name (`graph200k`), or a custom list by the name of its `.yaml` file.

    Raises:
        ValueError: no list of that name, or the file breaks a rule.
        OSError: the file cannot be read.
        GraphError: a URL of another scheme than `file`.
    """
    where = os.fspath(name_or_file)
    if not where.endswith(_SUFFIXES) and where not in shipped():
        known = f"shipped: {', '.join(shipped())}; or the name of a .yaml file"
        raise ValueError(f"no task list {where!r}{suggestion(where, shipped())}; {known}")
    file = local_path(where) if where.endswith(_SUFFIXES) else Path(__file__).with_name(f"{where}.yaml")
    with reading(file) as document:
        return path_set(file.stem, document)


def load_task(file: str | os.PathLike[str]) -> OwnTask:
    """One task from a YAML file: `cells` or a `canvas`, and perhaps `target`, `layout`, `order`, `words` and `kinds` as
    in a list, a `caption` and `holes`.

    Raises:
        ValueError: the file breaks a rule.
        OSError: the file cannot be read.
    """
    where = local_path(os.fspath(file))
    with reading(where) as document:
        fields = _mapping("the file", document, _OWN_KEYS)
        entry = {name: value for name, value in fields.items() if name not in ("kinds", "caption", "holes")}
        kinds = {"kinds": fields["kinds"]} if "kinds" in fields else {}
        (path,) = path_set("own", {"paths": [{"name": where.stem, **entry}], **kinds}).paths
        caption = fields.get("caption") or ""
        holes = fields.get("holes", [])
        chosen = (holes,) if isinstance(holes, str) else _roles("holes", holes) if holes else ()
        return OwnTask(path, _text("caption", caption) if caption else "", chosen)


def path_set(name: str, value: object) -> PathSet:
    """A list from the contents of a file.

    Raises:
        ValueError: they break a rule.
    """
    document = _mapping("the file", value, _FILE_KEYS, needed=("paths",))
    own, kind_where = _kinds(document.get("kinds", {}))
    default = _content(document.get("content"))
    if default is not None:
        default.check(own)
    entries = document["paths"]
    if not isinstance(entries, list):
        raise ValueError(f"paths: {entries!r}; allowed: a list of entries")
    shown = {name: document[name] for name in _SHOWN_KEYS if name in document}
    paths = tuple(_path(number, entry, default, own, shown) for number, entry in enumerate(entries))
    if unused := [kind for kind in kind_where if not any(kind in path.nodes for path in paths)]:
        raise ValueError(f"kinds: {unused[0]}: where: no path has this kind; allowed: kinds of cells")
    weights = _type_weights(document.get("types"), paths)
    return PathSet(name=name, paths=paths, type_weights=weights, kind_where=kind_where)


def _kinds(value: object) -> tuple[tuple[Kind, ...], dict[str, dict[str, Any]]]:
    """Custom kinds, and conditions on these or on built-in kinds."""
    own, conditions = [], {}
    for name, entry in _mapping("kinds", value, None).items():
        label = f"kinds: {name}"
        fields = _mapping(label, _with_family(entry), _KIND_KEYS)
        if "where" in fields:
            conditions[name] = _mapping(f"{label}: where", fields.pop("where"), None)
        if name in KINDS and set(fields) == {"phrases"}:
            own.append(replace(KINDS[name], phrases=_phrases(label, fields["phrases"])))
        elif fields or name not in conditions:
            own.append(_kind(label, name, fields))
    for name in conditions:
        kind_of(name, own)
    return tuple(own), conditions


def _with_family(entry: object) -> object:
    """`family` was `group` in earlier task lists."""
    if isinstance(entry, dict) and "group" in entry and "family" not in entry:
        return {"family" if key == "group" else key: value for key, value in entry.items()}
    return entry


def _kind(label: str, name: str, entry: dict[str, Any]) -> Kind:
    fields = {"family": "condition", "description": "", **_mapping(label, entry, _KIND_KEYS, needed=("codec",))}
    return Kind(name=name, phrases=_phrases(label, fields.pop("phrases", [])), **fields)


def _phrases(label: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{label}: phrases: {value!r}; allowed: a list of noun phrases")
    return tuple(value)


def _path(
    number: int, entry: object, default: Content | None, own: Sequence[Kind], shown: Mapping[str, Any]
) -> TaskPath:
    label = f"path {entry['name']!r}" if isinstance(entry, dict) and "name" in entry else f"paths[{number}]"
    drawn = isinstance(entry, dict) and "canvas" in entry
    fields = {**shown, **_mapping(label, entry, _PATH_KEYS, needed=("name",) if drawn else ("name", "cells"))}
    name = _text(f"{label}: name", fields["name"])
    canvas = _canvas(label, fields.get("canvas"))
    cells = _roles(
        f"{label}: cells", fields.get("cells", list(dict.fromkeys(role for line in canvas for role in line)))
    )
    targets = tuple(sorted(_position(label, role, cells) for role in _target_roles(label, fields, cells)))
    options = {key: fields[key] for key in ("weight", "where", *_SHOWN_KEYS) if key in fields}
    if "token" in fields:
        options["token"] = _text(f"{label}: token", fields["token"])
    if "views" in fields:
        options["views"] = _pair(f"{label}: views", fields["views"])
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
        canvas=canvas,
        **options,
    )


def _canvas(label: str, value: object) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{label}: canvas: {value!r}; allowed: a list of lines, such as [[canny, canny], [canny, image]]"
        )
    return tuple(_roles(f"{label}: canvas", line) for line in value)


def _pair(label: str, value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value):
        return value[0], value[1]
    raise ValueError(f"{label}: {value!r}; allowed: the fewest and the most items, such as [2, 5]")


def _used(own: Sequence[Kind], cells: Sequence[str], content: Content | None) -> tuple[Kind, ...]:
    """The custom kinds that a path uses; a path that uses none does not depend on the declarations."""
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
    try:
        return mapping(value, allowed, needed)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
