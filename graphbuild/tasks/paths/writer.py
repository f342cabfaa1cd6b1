"""Task lists as documents, which the reader makes the same list of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphbuild.kinds.registry import KINDS, Kind
from graphbuild.tasks.paths.path import PathSet, TaskPath


def document_of(listed: PathSet) -> dict[str, Any]:
    """A list as its YAML file would say it, as JSON values; `path_set` reads it."""
    own = {kind.name: _kind(kind) for path in listed.paths for kind in path.own}
    for name, where in listed.kind_where.items():
        own[name] = {**own.get(name, {}), "where": dict(where)}
    used = dict.fromkeys(path.type for path in listed.paths)
    weights = {name: listed.type_weights.get(name, 1.0) for name in used} if listed.type_weights else None
    return {
        "paths": [_path(path) for path in listed.paths],
        **({"types": weights} if weights else {}),
        **({"kinds": own} if own else {}),
    }


def _path(path: TaskPath) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": path.name,
        "type": path.type,
        "cells": list(path.cells),
        "target": [path.cells[target] for target in path.targets],
        "weight": path.weight,
        "content": path.content and {"from": path.content.source, "of": path.content.of},
    }
    others: Mapping[str, Any] = {
        "where": dict(path.where) if path.where else None,
        "layout": path.layout,
        "canvas": [list(line) for line in path.canvas] or None,
        "views": path.views and list(path.views),
        "order": path.order,
        "words": path.words,
        "token": path.token,
    }
    return said | {name: value for name, value in others.items() if value is not None}


def _kind(kind: Kind) -> dict[str, Any]:
    if kind.name in KINDS:
        return {"phrases": list(kind.phrases)}
    return {"codec": kind.codec, "family": kind.family, "description": kind.description, "phrases": list(kind.phrases)}
