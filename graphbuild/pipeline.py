"""Pipelines: a YAML file that names a source, annotators and paths; or the same from a command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphbuild.annotators import DEFAULT_FOR, recorded, resolve
from graphbuild.annotators.base import Annotator
from graphbuild.contracts import CommitDocument, RunReport
from graphbuild.errors import GraphError
from graphbuild.lookup import look_in, short_name, suggestion
from graphbuild.sources import SOURCES
from graphbuild.sources import resolve as resolve_source
from graphbuild.sources.base import Source
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.strict_yaml import Strict, build, reading


@dataclass(frozen=True, kw_only=True)
class PipelineDocument(Strict):
    """The file: `source: {use: ..., <field>: ...}`, `annotators: [name, {use: ..., <field>: ...}]`, `paths: name`."""

    source: str | dict[str, Any]
    annotators: tuple[str | dict[str, Any], ...] = ()
    paths: str = "graph200k"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A source and annotators, ready to run."""

    source: Source
    annotators: tuple[Annotator, ...]
    paths: str = "graph200k"


def load_pipeline(name_or_file: str | os.PathLike[str], **location: Any) -> Pipeline:
    """A pipeline by name or from a `.yaml` file; `location` overrides fields of its source.

    Raises:
        GraphError: no such pipeline, an unknown key, or a bad value; the message names file, key and what is valid.
    """
    with reading(pipeline_file(name_or_file)) as said:
        document = build(PipelineDocument, said)
        use, config = _entry(document.source)
        return Pipeline(
            source=resolve_source(use, **{**config, **location}),
            annotators=_resolved(document),
            paths=document.paths,
        )


def load_annotators(name_or_file: str | os.PathLike[str]) -> tuple[Annotator, ...]:
    """The annotators of a pipeline; its source may be anywhere.

    Raises:
        GraphError: as `load_pipeline`.
    """
    with reading(pipeline_file(name_or_file)) as said:
        return _resolved(build(PipelineDocument, said))


def _resolved(document: PipelineDocument) -> tuple[Annotator, ...]:
    return tuple(resolve(*_entry(entry)) for entry in document.annotators)


def assemble(
    source: str | None, path: str | None, pipeline: str | None, annotators: str | None, out: Path | None
) -> tuple[Source, list[Annotator], Path]:
    """Source, annotators and graph folder behind the options that `run` and `plan` share.

    Raises:
        GraphError, ValueError: the options say too little, or name what does not exist.
    """
    look_in(os.getcwd())
    if source is None and pipeline is None:
        raise GraphError("say where items come from: --source NAME (sample, folder, subjects200k) or --pipeline FILE")
    location = {} if path is None else {"path": path}
    named = resolve_source(source, **location) if source is not None else None
    if pipeline is None and annotators is None and source not in pipeline_names():
        raise GraphError(
            f"there is no pipeline named {source!r}; give --annotators a,b "
            f"or --pipeline (one of {', '.join(pipeline_names())})"
        )
    # A source beside a pipeline replaces the pipeline's; alone it has the fields of the pipeline that bears its name.
    file = pipeline or (source if source in pipeline_names() else None)
    loaded = load_pipeline(file, **({} if named and pipeline else location)) if file else None
    chosen = loaded.source if loaded and not (named and pipeline) else named
    assert chosen is not None
    where = out or Path(f"{chosen.name}-graph")
    if annotators is None:
        return chosen, list(loaded.annotators if loaded else ()), where
    return chosen, choose_annotators([name.strip() for name in annotators.split(",") if name.strip()], where), where


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
    """The file behind a pipeline's name; a name that ends in .yaml is a file of one's own."""
    text = os.fspath(name_or_file)
    candidates = [Path(text)] if text.endswith((".yaml", ".yml")) else [f / f"{text}.yaml" for f in pipeline_folders()]
    for candidate in candidates:
        if candidate.is_file():
            look_in(candidate.parent, os.getcwd())
            return candidate
    known = f"there are {', '.join(pipeline_names())}, or the name of a .yaml file"
    raise GraphError(f"no pipeline {text!r}{suggestion(text, pipeline_names())}; {known}")


def choose_annotators(names: Sequence[str], out: str | os.PathLike[str]) -> list[Annotator]:
    """Annotators from a command line: bare names keep the parameters that an existing graph has live.

    A name is an annotator's, or a kind's, which stands for the kind's live annotator, else its default.

    Raises:
        ValueError: unknown name.
    """
    live = _live_commits(out)
    # The one of the image last, so that it wins: `canny` is not the `canny` of an edit.
    live.sort(key=lambda commit: commit.lineage.params.get("of", "image") == "image")
    by_name = {name: commit for commit in live for name in (commit.unit.annotator, commit.use)}
    by_kind = {kind: commit for commit in live for kind in commit.lineage.codec}
    chosen = []
    for name in dict.fromkeys(names):
        known = by_name.get(name) or by_kind.get(name) or by_name.get(DEFAULT_FOR.get(name, ""))
        chosen.append(recorded(known.use, known.config, named=known.use == name) if known else resolve(name))
    return list(dict.fromkeys(chosen))


def live_annotators(out: str | os.PathLike[str]) -> tuple[list[Annotator], list[str]]:
    """The annotators that made the live kinds of a graph, with the parameters they had; none for a new graph.

    Returns:
        the annotators, and for each that may not be taken from a graph why.
    """
    found, refused = [], []
    for commit in _live_commits(out):
        try:
            found.append(recorded(commit.use, commit.config))
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def _live_commits(out: str | os.PathLike[str]) -> list[CommitDocument]:
    """One commit of every live annotator."""
    if not Files(out).exists("graph.json"):
        return []
    graph = Graph.open(out)
    live = dict.fromkeys((live.annotator, live.version) for live in graph.head.values())
    found = (graph.unit_commits(*producer) for producer in live if not producer[0].startswith("source:"))
    return [commits[0].document for commits in found if commits]


def live_source(out: str | os.PathLike[str], path: str | None = None) -> Source | None:
    """The source of an existing graph, at `path` or where its last run found it; None if it is not there any more, or
    is not one of ours: its class is not imported because a graph names it."""
    graph = Graph.open(out)
    location = {"path": path} if path is not None else last_location(graph)
    if not graph.source_commits:
        return None
    try:
        use = short_name("source", graph.source_commits[0].document.use, SOURCES)
        source = resolve_source(use, **graph.document.source.params, **location)
        source.entries()
    except ValueError:
        if path is not None:
            raise
        return None
    return source


def last_location(graph: Graph) -> dict[str, Any]:
    """Where the source was in the last finished run: its root is not part of the graph."""
    for run in reversed(graph.fs.names("runs")):
        name = f"runs/{run}/report.json"
        if graph.fs.exists(name):
            report = RunReport.model_validate_json(graph.fs.read(name))
            if report.source_args:
                # A graph may come from anybody: nothing is fetched from an address because it says so.
                return {key: value for key, value in report.source_args.items() if "://" not in str(value)}
    return {}
