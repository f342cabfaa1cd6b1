"""Training recipes: YAML files that say a `TrainConfig`; those of `pipelines/train/` also by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from graphbuild.errors import GraphError
from graphbuild.pipeline import pipeline_folders
from graphbuild.tasks.paths.reader import refuse_repeated_keys
from graphbuild_train.config import TrainConfig, config_from

SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """The recipes that come with graphbuild."""
    return sorted({file.stem for folder in pipeline_folders() for file in (folder / "train").glob("*.yaml")})


def recipe_file(name_or_file: str) -> Path:
    """The file behind a recipe's name; a name that ends in .yaml is a file of one's own.

    Raises:
        GraphError: there is none; the message lists what there is.
    """
    if name_or_file.endswith(SUFFIXES):
        candidates = [Path(name_or_file)]
    else:
        candidates = [folder / "train" / f"{name_or_file}.yaml" for folder in pipeline_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise GraphError(f"no recipe {name_or_file!r}; there are {', '.join(recipe_names())}, or the name of a .yaml file")


def read_recipe(file: Path) -> dict[str, Any]:
    """What a recipe says; a task list that it names and that lies beside it by its whole path.

    Raises:
        ValueError: not YAML, or a key used twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    listed = str(document.get("paths")) if isinstance(document, dict) else ""
    if listed.endswith(SUFFIXES) and (file.parent / listed).is_file():
        document["paths"] = str((file.parent / listed).resolve())
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
        _override(document, name.split("."), yaml.safe_load(value))
    return config_from(document)


def _override(document: dict[str, Any], names: Sequence[str], value: object) -> None:
    first, *rest = names
    if not rest:
        document[first] = value
        return
    inner = document.get(first)
    document[first] = dict(inner) if isinstance(inner, Mapping) else {}
    _override(document[first], rest, value)
