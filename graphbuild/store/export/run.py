"""An export: shard by shard, several at once, continued where it stopped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from graphbuild.config.lookup import suggestion
from graphbuild.contracts import Shard
from graphbuild.errors import GraphError, counted
from graphbuild.hashing import canonical_json
from graphbuild.store.export.croissant import Croissant
from graphbuild.store.export.items import Selection
from graphbuild.store.export.layouts import Coco, Datasets, Folder, Layout, WebDataset
from graphbuild.store.export.visualcloze import VisualCloze
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_lineage

_ABOUT = """{items} with their annotations, exported from a graph of graphbuild (snapshot `{digest}`). Items come from
the source {source}.
"""
_LICENCES = """
## Licences

Of the pictures, as their source states them. Annotations fall under the terms of what they were made from, and of the
models that made them.

| licence | items |
|---|---|"""

LAYOUTS: Mapping[str, type[Layout]] = {
    "datasets": Datasets,
    "webdataset": WebDataset,
    "folder": Folder,
    "coco": Coco,
    "visualcloze": VisualCloze,
    "croissant": Croissant,
}

STATE = "export.json"
"""What was asked for, and which shards are written."""
NOTES = (STATE, ".*", ".*/*")
"""Patterns of the files that an export needs to go on, which are no part of the data."""


def export(
    graph: Graph,
    to: Path,
    form: str,
    *,
    kinds: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    split: str | None = None,
    progress: Callable[[str], None] = lambda label: None,
) -> Path:
    """Write the chosen part of a graph into the folder `to`. An export that was stopped goes on with missing shards.

    Args:
        form: `datasets, webdataset, folder, coco, visualcloze` or `croissant`.
        kinds: which kinds; by default all that are stored.
        where: conditions on items, as in a task list.
        split: only items of this split of the source.
        progress: called with the label of each shard that is done.

    Raises:
        GraphError: no such format or kind, no item meets the conditions, or `to` holds something else.
    """
    if form not in LAYOUTS:
        raise GraphError(f"export: no format {form!r}{suggestion(form, LAYOUTS)}; allowed: {', '.join(LAYOUTS)}")
    conditions = {**(where or {}), **({} if split is None else {"split": split})}
    selection = Selection.of(graph, kinds, conditions)
    if not selection.rows:
        raise GraphError(f"{graph.url}: no item to export meets {canonical_json(conditions)}")
    asked = {"format": form, "snapshot": graph.digest, "kinds": list(selection.kinds), "where": conditions,
             "excluded": len(graph.excluded_items)}  # fmt: skip
    done = _begun(to, asked)
    to.mkdir(parents=True, exist_ok=True)
    layout = LAYOUTS[form](selection, to)
    shards = _shards(selection)
    _write_state(to, asked, done)
    missing = [shard for shard in shards if shard.label not in done]
    with ThreadPoolExecutor(_threads(selection)) as pool:
        written = pool.map(lambda shard: layout.write(shard.label, selection.items(shard)), missing)
        for shard, names in zip(missing, written, strict=True):
            done[shard.label] = names
            _write_state(to, asked, done)
            progress(shard.label)
    layout.finish([shard.label for shard in shards])
    (to / "README.md").write_text(card(selection, layout, to.name), encoding="utf-8")
    return to


def _threads(selection: Selection) -> int:
    """Shards that are written at once. Copying from one disk to another, threads would wait for each other."""
    waits = selection.encodes or selection.graph.fs.remote
    return min(4, os.cpu_count() or 1) if waits else 1


def _shards(selection: Selection) -> list[Shard]:
    """Those that hold an item to export."""
    return [shard for shard in selection.graph.shards if selection.rows_of(shard)]


def _begun(to: Path, asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """The shards that an earlier call for the same has written."""
    if not to.exists() or not any(to.iterdir()):
        return {}
    try:
        state = json.loads((to / STATE).read_text(encoding="utf-8"))
        before, done = state["asked"], state["done"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GraphError(f"{to} is neither empty nor an export; give another --to") from error
    if before != asked:
        other = [name for name in asked if before.get(name) != asked[name]]
        raise GraphError(
            f"{to} holds an export with another {', '.join(other)} "
            f"({', '.join(canonical_json(before.get(name)) for name in other)}); give another --to"
        )
    return {label: names for label, names in done.items() if all((to / name).exists() for name in names)}


def _write_state(to: Path, asked: Mapping[str, Any], done: Mapping[str, Sequence[str]]) -> None:
    partial = to / f".{STATE}.part"
    partial.write_text(canonical_json({"asked": asked, "done": done}), encoding="utf-8")
    partial.replace(to / STATE)


def card(selection: Selection, layout: Layout, name: str) -> str:
    """README.md: licences, where the items come from, how each kind was made, and how many there are."""
    graph, rows = selection.graph, selection.rows
    licences = Counter(row["licence"] or "not stated" for row in rows)
    credited = Counter(row["attribution"] for row in rows if row["attribution"])
    counts = selection.counts()
    table = [f"| {kind} | {counts[kind]} | {_origin(graph, kind)} |" for kind in selection.kinds]
    source = graph.document.source
    about = f"`{source.name}` {canonical_json(source.params)}" if source.params else f"`{source.name}`"
    front = layout.features()
    text = [
        f"---\n{canonical_json(front)}\n---\n" if front else "",  # JSON is YAML
        f"# {name}\n",
        _ABOUT.format(items=counted(len(rows), "item"), digest=graph.digest, source=about),
        "| kind | nodes | made by |\n|---|---|---|",
        *table,
        _LICENCES,
        *(f"| {licence} | {count} |" for licence, count in licences.most_common()),
        *(["\nCredits:\n"] if credited else []),
        *(f"- {who} ({counted(count, 'item')})" for who, count in credited.most_common(100)),
    ]
    return "\n".join(part for part in text if part) + "\n"


def _origin(graph: Graph, kind: str) -> str:
    if kind not in graph.head:
        return "computed from stored kinds"
    live = graph.live(kind)
    lineage = read_lineage(graph.fs, live.version)
    model = f", model `{lineage.model}`" if lineage.model else ""
    return f"`{live.annotator}` {live.version}{model}"
