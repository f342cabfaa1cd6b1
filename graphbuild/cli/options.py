"""What the options of a command name: sources, annotators, and what an existing graph was made with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from graphbuild.annotators import DEFAULT_FOR, recorded, resolve
from graphbuild.annotators.base import Annotator, name_of
from graphbuild.config.lookup import look_in, short_name
from graphbuild.config.strict_yaml import parse_yaml
from graphbuild.contracts import CommitDocument, RunReport
from graphbuild.engine.imported import Imported
from graphbuild.errors import GraphError
from graphbuild.pipeline import load_annotators, load_pipeline, pipeline_names
from graphbuild.sources import SOURCES
from graphbuild.sources import resolve as resolve_source
from graphbuild.sources.base import Source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at


def assemble(
    source: str | None,
    path: str | None,
    pipeline: str | None,
    annotators: str | None,
    out: str | None,
    *,
    follow_links: bool = False,
    nodes: str | None = None,
    facts: str | None = None,
) -> tuple[Source, list[Annotator], str]:
    """Source, annotators and graph folder behind the options that `run` and `plan` share.

    A source given with a pipeline replaces the pipeline's; without one, the pipeline of the same name is used, if any.
    `nodes` and `facts` are YAML: the maps of a source whose files have columns of any name.

    Raises:
        GraphError, ValueError: an option is missing, or names what does not exist.
    """
    for option, text in {"--path": path, "--out": out, "--annotators": annotators}.items():
        if text is not None and not text.strip(" ,"):
            raise GraphError(f"{option} {text!r} is empty: a shell variable that is not set? Give a value")
    look_in(os.getcwd())
    location: dict[str, Any] = {} if path is None else {"path": path}
    location |= {"follow_links": True} if follow_links else {}
    location |= {name: parse_yaml(text) for name, text in (("nodes", nodes), ("facts", facts)) if text is not None}
    file = pipeline or (source if source in pipeline_names() else None)
    if source is not None and source != file:
        chosen = resolve_source(source, **location)
    elif file is not None:
        chosen = load_pipeline(file, **location).source
    else:
        raise GraphError(f"say where items come from: --source NAME ({', '.join(SOURCES)}) or --pipeline FILE")
    where = out or f"{chosen.name}-graph"
    if annotators is not None:
        return chosen, choose_annotators([name.strip() for name in annotators.split(",") if name.strip()], where), where
    if file is None and len(chosen.kinds()) > 1:
        return chosen, [], where  # a data set that comes with its annotations
    if file is None:
        raise GraphError(
            f"source {source!r} has no pipeline of its own: say what to make with --annotators canny,hed or --pipeline "
            f"NAME ({', '.join(pipeline_names())}), and where its items are with --path"
        )
    return chosen, list(load_annotators(file)), where


def folder_alone(
    folder: str | None, source: str | None, path: str | None, out: str | None
) -> tuple[str | None, str | None, str | None]:
    """Source, path and graph folder where a folder may stand for all three: `photos/` is the source `folder` there and
    the graph `photos-graph` here.

    Raises:
        GraphError: source or path are given beside it.
    """
    if folder is None:
        return source, path, out
    if source is not None or path is not None:
        option = "--source" if source is not None else "--path"
        raise GraphError(f"{folder!r} and {option}: a folder alone is of the source `folder`; give one of the two")
    name = os.path.basename(os.path.abspath(folder)) if "://" not in folder else folder.rstrip("/").rpartition("/")[2]
    return "folder", folder, out or f"{name}-graph"


def choose_annotators(names: Sequence[str], out: str | os.PathLike[str]) -> list[Annotator]:
    """Annotators named on a command line, with the parameters that are live in an existing graph.

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
        if commit.unit.annotator == name_of(Imported):
            (kind,) = commit.lineage.codec
            if not any(each.document.retriable_rows for each in Graph.open(out).commits(kind)):
                continue
            again = f"graphbuild import {shlex.quote(os.fspath(out))} --kind {kind} --from FOLDER --retry"
            refused.append(f"{kind} was imported, from a folder that a graph does not name; {again}")
            continue
        try:
            found.append(recorded(commit.use, commit.config))
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def _live_commits(out: str | os.PathLike[str]) -> list[CommitDocument]:
    """One commit of every live annotator."""
    if not files_at(out).exists("graph.json"):
        return []
    graph = Graph.open(out)
    live = dict.fromkeys((live.annotator, live.version) for live in graph.head.values())
    found = (graph.unit_commits(*producer) for producer in live if not producer[0].startswith("source:"))
    return [commits[0].document for commits in found if commits]


def live_source(out: str | os.PathLike[str], path: str | None = None, *, trust: bool = False) -> Source | None:
    """The source of an existing graph, at `path` or, if the graph is trusted, where its last run found it; None if it
    is not there, or is not one of ours: nothing is imported or read because a graph names it."""
    graph = Graph.open(out)
    location = {**(last_location(graph) if trust else {}), **({} if path is None else {"path": path})}
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
