"""The dataset card: `README.md` with one `datasets` configuration per kind. Its last line pins documents of the graph
that nothing else names, so that `verify` sees when they change."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

import yaml
from pydantic import Field, ValidationError

from graphbuild.contracts import Document, GraphDocument
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, checksum
from graphbuild.store.exclusions import exclusion_names, newest_name
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import head_names
from graphbuild.store.parts import read_table
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

_MOST_LICENCES = 10
_EXCLUDED = """
**{count} must not be used**: their `item_id` and why are in `{name}`.
"""


_FIGURES = """
## Figures

| kind | skipped | failed | size |
|---|---|---|---|
{rows}

Licences: {licences}.
"""

SHEET = "sheet.jpg"
"""A picture of nodes beside the card, which shows it; `graphbuild report --card` draws it."""

_LAST_LINE = re.compile(r"<!-- graphbuild (.*) -->\n")


class CardCheck(Document):
    """The last line of a card: the graph's document, the checksums of its exclusions, its heads and the card's own
    text, and the snapshot that the card describes."""

    graph: GraphDocument
    exclusions: dict[str, str]
    heads: dict[str, str] = Field(default_factory=dict)
    snapshot: str
    text: str


def write_card(graph: Graph, workspace: Workspace) -> None:
    """Replace the card, unless the graph is empty or the card is up to date. Checksums of immutable files that the old
    card pins are kept."""
    if not graph.shards:
        return
    text, (found, check) = card_text(graph), _found(graph.fs)
    if found == text and check is None:
        return  # of a release that pinned nothing
    if check is not None and graph.fs.exists(SHEET) and set(exclusion_names(graph.fs)) - set(check.exclusions):
        graph.fs.remove(SHEET)  # it may show what is excluded now
    text += _figures(graph)
    check = CardCheck(
        graph=check.graph if check else graph.document,
        exclusions=_pinned(graph.fs, exclusion_names(graph.fs), check.exclusions if check else {}),
        heads=_pinned(graph.fs, head_names(graph.fs), check.heads if check else {}),
        snapshot=graph.digest,
        text=checksum(text.encode()),
    )
    last = canonical_json(check.model_dump(mode="json")).replace(">", "\\u003e")
    data = f"{text}<!-- graphbuild {last} -->\n".encode()
    if not graph.fs.exists("README.md") or graph.fs.read("README.md") != data:
        graph.fs.replace("README.md", data, workspace)


def _pinned(files: Files, names: Iterable[str], before: Mapping[str, str]) -> dict[str, str]:
    return {**before, **{name: checksum(files.read(name)) for name in names if name not in before}}


def renew_card(out: str | os.PathLike[str]) -> None:
    """Update the card to the current state of the graph."""
    graph = Graph.open(out)
    with closing(Workspace.create(graph.fs, "card")) as workspace:
        write_card(graph, workspace)


def read_card(files: Files) -> tuple[str, CardCheck | None]:
    """The text of the card, and what its last line pins; None for a card of a release that pinned nothing.

    Raises:
        GraphError: the card was altered since it was written.
    """
    text = files.read("README.md").decode(errors="replace")
    kept, line, rest = text.rpartition("\n<!-- graphbuild")
    if not line:
        return text, None
    try:
        match = _LAST_LINE.fullmatch(line[1:] + rest)
        check = CardCheck.model_validate_json(match[1] if match else "")
    except ValidationError as error:
        raise GraphError("its last line was altered") from error
    if checksum(f"{kept}\n".encode()) != check.text:
        raise GraphError("its text was altered since it was written")
    return f"{kept}\n", check


def _found(files: Files) -> tuple[str, CardCheck | None]:
    try:
        return read_card(files)
    except (GraphError, OSError):
        return "", None  # to be written


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


def _figures(graph: Graph) -> str:
    """What is not there, what it takes, under which licences; and the sheet, if there is one."""
    rows = []
    for kind in sorted(graph.head, key=lambda kind: (kind != "image", kind)):
        documents = [commit.document for commit in graph.commits(kind)]
        lost = [sum(document.counts[kind].get(status, 0) for document in documents) for status in ("skipped", "failed")]
        nbytes = sum(part.nbytes for document in documents for part in document.parts if part.kind == kind)
        rows.append(f"| {kind} | {lost[0]} | {lost[1]} | {nbytes / 1e6:.1f} MB |")
    said = Counter(
        licence
        for name in graph.names_of("items")
        for licence in read_table(graph.fs, name, ["licence"])[0].to_pylist()
    )
    named = ", ".join(f"{_words(licence)} ({count})" for licence, count in said.most_common(_MOST_LICENCES))
    sheet = f"\n![Nodes of the first items]({SHEET})\n" if graph.fs.exists(SHEET) else ""
    return _FIGURES.format(rows="\n".join(rows), licences=named or "no items") + sheet


def _words(licence: str | None) -> str:
    """A licence as text of Markdown: it may be anybody's."""
    shown = re.sub(r"[^\w .,:;/()+-]", " ", licence or "not said").strip()
    return shown[:80] or "not said"


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
