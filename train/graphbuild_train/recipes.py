"""Training recipes: a `TrainConfig` as a YAML file; those in `pipelines/train/` also by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from graphbuild.config.lookup import look_in, suggestion
from graphbuild.config.strict_yaml import mapping, parse_yaml, reading
from graphbuild.errors import GraphError
from graphbuild.pipeline import pipeline_folders
from graphbuild_train.config import TrainConfig, config_from

SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """The recipes that come with graphbuild."""
    return sorted({file.stem for folder in pipeline_folders() for file in (folder / "train").glob("*.yaml")})


def recipe_file(name_or_file: str) -> Path:
    """The file behind a recipe's name; a name that ends in .yaml is a file of your own. Python modules beside it, and
    in the working folder, can be named in it.

    Raises:
        GraphError: there is none; the message lists what there is.
    """
    if name_or_file.endswith(SUFFIXES):
        candidates = [Path(name_or_file)]
    else:
        candidates = [folder / "train" / f"{name_or_file}.yaml" for folder in pipeline_folders()]
    for candidate in candidates:
        if candidate.is_file():
            look_in(candidate.parent, os.getcwd())
            return candidate
    known = f"there are {', '.join(recipe_names())}, or the name of a .yaml file"
    raise GraphError(f"no recipe {name_or_file!r}{suggestion(name_or_file, recipe_names())}; {known}")


def read_recipe(file: Path) -> dict[str, Any]:
    """The contents of a recipe; a task list that lies beside it is named by its full path.

    Raises:
        GraphError: not YAML, a key used twice, or another unknown field.
    """
    with reading(file) as said:
        document = mapping({} if said is None else said, [f.name for f in fields(TrainConfig)])
    data = document.get("data")
    for entry in [document, *(data if isinstance(data, list) else [])]:
        listed = str(entry.get("paths")) if isinstance(entry, dict) else ""
        if listed.endswith(SUFFIXES) and (file.parent / listed).is_file():
            entry["paths"] = str((file.parent / listed).resolve())
    return document


def configured(said: Mapping[str, Any], sets: Sequence[str]) -> TrainConfig:
    """A recipe with overrides like `lora.rank=16`, whose values are YAML.

    Raises:
        ValueError: an unknown field or a bad value.
    """
    document = dict(said)
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: allowed: field=value, such as lora.rank=16")
        _override(document, name.split("."), parse_yaml(value))
    return config_from(document)


def _override(document: dict[str, Any], names: Sequence[str], value: object) -> None:
    first, *rest = names
    if not rest:
        document[first] = value
        return
    inner = document.get(first)
    document[first] = dict(inner) if isinstance(inner, Mapping) else {}
    _override(document[first], rest, value)
