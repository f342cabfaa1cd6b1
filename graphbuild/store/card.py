"""The dataset card: `README.md` with one `datasets` configuration per kind."""

from __future__ import annotations

from typing import Any

import yaml

from graphbuild.store.exclusions import newest_name
from graphbuild.store.graph import Graph
from graphbuild.store.workspace import Workspace

_TEXT = """
# {name}

A graph of annotations made by graphbuild: {items} items from source `{source}`.
Plain Parquet; `datasets.load_dataset("{path}", "<kind>")` reads one kind.

| kind | nodes | annotator | version |
|---|---|---|---|
{rows}

`items` is the spine, `edges` says how every node was made or why it is missing. Join them on `item_ix`
(and `variant`). Licences and attributions are columns of `items`.
"""

_EXCLUDED = """
**{count} must not be used**: their `item_id` and why are in `{name}`.
"""


def write_card(graph: Graph, workspace: Workspace) -> None:
    """Replace the card; nothing is written while the graph is empty or the card is already right."""
    if not graph.shards:
        return
    data = card_text(graph).encode()
    if not graph.fs.exists("README.md") or graph.fs.read("README.md") != data:
        graph.fs.replace("README.md", data, workspace)


def card_text(graph: Graph) -> str:
    """The whole card. A folder that holds nothing but live parts is listed by a glob, else part by part."""
    counts = graph.kinds()
    names = sorted((kind for kind, count in counts.items() if count), key=lambda kind: (kind != "image", kind))
    configs = [_config(graph, what) for what in (*names, "items", "edges")]
    rows = [f"| {k} | {counts[k]} | {graph.head[k].annotator} | {graph.head[k].version} |" for k in names]
    front = yaml.safe_dump({"configs": configs}, sort_keys=False)
    name = graph.fs.url.rpartition("/")[2]
    text = _TEXT.format(
        name=name, path=name, items=graph.num_items, source=graph.document.source.name, rows="\n".join(rows)
    )
    return f"---\n{front}---\n{text}{_excluded(graph)}"


def _excluded(graph: Graph) -> str:
    count = len(graph.excluded_items)
    if not count:
        return ""
    return _EXCLUDED.format(count="1 item" if count == 1 else f"{count} items", name=newest_name(graph.fs))


def _config(graph: Graph, what: str) -> dict[str, Any]:
    return {"config_name": what, "data_files": [{"split": "train", "path": _patterns(graph, graph.names_of(what))}]}


def _patterns(graph: Graph, live: list[str]) -> list[str]:
    """A glob for every folder of which all files are live, else the files."""
    by_folder: dict[str, list[str]] = {}
    for name in live:
        by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    patterns = []
    for folder, names in by_folder.items():
        whole = len(graph.fs.names(folder)) == len(names)
        patterns += [f"{folder}/*.parquet"] if whole else names
    return patterns
