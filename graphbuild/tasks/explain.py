"""Explanations of task lists, walks and nodes, as JSON documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphbuild.errors import GraphError, MissingNode
from graphbuild.kinds.registry import kind_of, parents_of
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_lineage
from graphbuild.store.parts import read_table
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import phrase_of
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import PathSet, load
from graphbuild.tasks.pools import Stock
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk

Document = dict[str, Any]

# ---- task lists ------------------------------------------------------------------------------------------------


def tasks(paths: str) -> list[Document]:
    """The paths of a list: name, type, kinds, number of cells and probability."""
    listed = load(paths)
    names = (path.name for path in listed.paths)
    return _rows(listed, dict(zip(names, listed.probabilities().tolist(), strict=True)))


class ServedTasks(NamedTuple):
    """What a graph can serve of a task list.

    Attributes:
        rows: documents as of `tasks`, with the number of items that serve each path; probabilities are those after
            dropping the paths that none serves.
        bridging: items that no task uses, because they link items of both sides of the split.
        error: why no path is served; empty if one is.
    """

    rows: list[Document]
    bridging: int
    error: str


def served_tasks(graph: Graph, paths: str, config: SamplerConfig) -> ServedTasks:
    """What a graph can serve of a task list, under the filters of a configuration."""
    listed = load(paths)
    try:
        sampler = PathSampler(graph, listed, on_missing="drop", config=config)
    except GraphError as error:
        stock = Stock(graph, listed, config)
        items = {path.name: stock.served(path).pool.size for path in listed.paths}
        return ServedTasks(_rows(listed, {}, items), stock.bridging, str(error))
    items = {name: counts["all"] for name, counts in sampler.coverage().items()}
    return ServedTasks(_rows(listed, sampler.probabilities(), items), sampler.stock.bridging, "")


def _rows(listed: PathSet, chances: Mapping[str, float], items: Mapping[str, int] | None = None) -> list[Document]:
    rows: list[Document] = [
        {
            "name": path.name,
            "cells": len(path.cells),
            "kinds": list(path.kinds),
            "type": path.type,
            "probability": chances.get(path.name, 0.0),
        }
        for path in listed.paths
    ]
    return rows if items is None else [{**row, "items": items[row["name"]]} for row in rows]


# ---- one walk --------------------------------------------------------------------------------------------------


def sample(sampler: PathSampler, chosen: int | Walk) -> Document:
    """What a grid task, or that of a walk, is made of, and why. Opens only label maps whose names are in the words."""
    walk = chosen if isinstance(chosen, Walk) else sampler.walk(chosen)
    task = sampler.task(walk)
    return {
        "index": walk.index,
        "snapshot": sampler.graph.digest,
        "paths": sampler.listed.name,
        "seed": sampler.seed,
        "path_repeat": sampler.path_repeat,
        "switches": sampler.drawing.switches,
        "path": walk.path.name,
        "type": walk.path.type,
        "chance": sampler.probabilities().get(walk.path.name, 0.0),
        "columns": [_column(sampler, walk, column) for column in range(len(walk.kinds))],
        "rows": [_row(sampler, walk, row) for row in range(len(walk.rows))],
        "mask": _mask(sampler.config, walk),
        "words": _words(task),
    }


def _column(sampler: PathSampler, walk: Walk, column: int) -> Document:
    kind = walk.kinds[column]
    return {
        "kind": kind,
        "cell": walk.path.cells[walk.columns[column]],
        "target": column in walk.targets,
        "hole": column in walk.holes,
        "phrase": phrase_of(walk.path.declared[walk.columns[column]], column, sampler.drawing.pick(walk.index)),
    }


def _row(sampler: PathSampler, walk: Walk, row: int) -> Document:
    graph, item_ix = sampler.graph, walk.rows[row]
    cells = [_cell(graph, *cell, walk.seeds[row]) for cell in zip(walk.kinds, walk.variants[row], strict=True)]
    role = "query" if row == len(walk.rows) - 1 else "example"
    return {"role": role, "item_ix": item_ix, "key": key_of(graph, item_ix), "cells": cells}


def _cell(graph: Graph, kind: str, variant: int, seed: int) -> Document:
    if kind in graph.head:
        return {"kind": kind, "variant": variant, "version": graph.head[kind].version}
    made_of = {parent: graph.live(parent).version for parent in parents_of(kind)}
    return {"kind": kind, "variant": variant, "computed_from": made_of, "seed": seed}


def _mask(config: SamplerConfig, walk: Walk) -> Document:
    cells = frozenset(walk.columns[column] for column in walk.holes)
    chance = dict(masks(walk.path, config)).get(cells, 0.0)
    if cells == set(walk.path.targets):
        why = "what the path declares as target"
    elif config.mask == "paper":
        why = "a drawn mask: one more hole beside the target (paper)"
    else:
        why = "a drawn mask: one column in place of the target (code)"
    kinds = [walk.kinds[column] for column in walk.holes]
    return {"holes": list(walk.holes), "kinds": kinds, "chance": chance, "why": f"{why}; chance {chance:.3g}"}


def _words(task: GridTask) -> Document:
    kept, full = task.instruction, task.instruction_full
    parts = {}
    for part in ("layout", "task", "content"):
        text = getattr(kept, part)
        parts[part] = {"text": text or getattr(full, part), "kept": bool(text) or not getattr(full, part)}
    return {**parts, "prompt": kept.text}


# ---- one node --------------------------------------------------------------------------------------------------


def node(graph: Graph, item: str, kind: str, variant: int = 0) -> Document:
    """The edge of a node, where it lies and what made it; of a computed kind the nodes it is computed from.

    Args:
        item: its number, or its key.

    Raises:
        GraphError: no such item, kind or node.
    """
    item_ix = _item(graph, item)
    place = {"item_ix": item_ix, "key": key_of(graph, item_ix), "kind": kind}
    if kind not in graph.head and kind_of(kind).is_computed:
        if variant:
            raise MissingNode(f"item {item_ix} has no {kind} variant {variant}; it is computed and has no variants")
        return {**place, "computed_from": [node(graph, str(item_ix), parent) for parent in parents_of(kind)]}
    rows = graph.rows(item_ix, kind)
    at = rows.find(item_ix, kind, variant)
    if at is None:
        raise MissingNode(rows.why_missing(at, item_ix, kind, variant))
    (edge,) = rows.table.slice(at, 1).to_pylist()
    live = graph.live(kind)
    made = read_lineage(graph.fs, live.version).model_dump(include={"annotator", "params", "model"})
    return {**place, "variant": variant, "version": live.version, **made, "edge": edge}


# ---- items -----------------------------------------------------------------------------------------------------


def key_of(graph: Graph, item_ix: int) -> str:
    """The key of an item, from its shard's part of the spine."""
    shard = graph.shard_of(item_ix)
    for commit in graph.source_commits:
        if commit.document.unit.shard == shard and commit.document.items:
            table = read_table(graph.fs, commit.document.items.name, ["item_ix", "key"])
            return str(dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))[item_ix])
    raise MissingNode(f"no item {item_ix}")


def _item(graph: Graph, item: str) -> int:
    if item.isdecimal():
        return int(item)
    table = graph.items()
    keys = table["key"].to_pylist()
    if item not in keys:
        raise GraphError(f"{graph.url} has no item with the key {item!r}; allowed: keys, or 0 to {graph.num_items - 1}")
    return int(table["item_ix"][keys.index(item)].as_py())
