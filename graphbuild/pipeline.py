"""Pipelines: YAML files that name a source and annotators."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator
from graphbuild.config.lookup import look_in, suggestion
from graphbuild.config.strict_yaml import Strict, build, reading
from graphbuild.errors import GraphError
from graphbuild.sources import resolve as resolve_source
from graphbuild.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class PipelineDocument(Strict):
    """The file: `source: {use: ..., <field>: ...}`, `annotators: [name, {use: ..., <field>: ...}]`."""

    source: str | dict[str, Any]
    annotators: tuple[str | dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A source and annotators, ready to run."""

    source: Source
    annotators: tuple[Annotator, ...]


def load_pipeline(name_or_file: str | os.PathLike[str], **location: Any) -> Pipeline:
    """A pipeline by name or from a `.yaml` file; `location` overrides fields of its source.

    Raises:
        GraphError: no such pipeline, an unknown key, or a bad value; the message names file, key and what is valid.
    """
    with reading(pipeline_file(name_or_file)) as said:
        document = build(PipelineDocument, said)
        use, config = _entry(document.source)
        return Pipeline(source=resolve_source(use, **{**config, **location}), annotators=_resolved(document))


def load_annotators(name_or_file: str | os.PathLike[str]) -> tuple[Annotator, ...]:
    """The annotators of a pipeline; its source may be anywhere.

    Raises:
        GraphError: as `load_pipeline`.
    """
    with reading(pipeline_file(name_or_file)) as said:
        return _resolved(build(PipelineDocument, said))


def _resolved(document: PipelineDocument) -> tuple[Annotator, ...]:
    return tuple(resolve(*_entry(entry)) for entry in document.annotators)


def _entry(entry: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    config = dict(entry)
    if not isinstance(config.get("use"), str):
        raise ValueError(f"{dict(entry)} does not say what to use; write it as use: <name>")
    return config.pop("use"), config


def pipeline_folders() -> list[Path]:
    """Where named pipelines lie: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "pipelines", package.parent / "pipelines") if folder.is_dir()]


def pipeline_names() -> list[str]:
    """The pipelines that come with graphbuild."""
    return sorted({file.stem for folder in pipeline_folders() for file in folder.glob("*.yaml")})


def pipeline_file(name_or_file: str | os.PathLike[str]) -> Path:
    """The file behind a pipeline's name; a name that ends in .yaml is the user's own file."""
    text = os.fspath(name_or_file)
    own = text.endswith((".yaml", ".yml"))
    for candidate in [Path(text)] if own else [folder / f"{text}.yaml" for folder in pipeline_folders()]:
        if candidate.is_file():
            look_in(candidate.parent, os.getcwd())
            return candidate
    known = f"there are {', '.join(pipeline_names())}, or the name of a .yaml file"
    where = f": no such file in {Path(text).absolute().parent}" if own else suggestion(text, pipeline_names())
    raise GraphError(f"no pipeline {text!r}{where}; {known}")
