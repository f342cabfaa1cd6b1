"""A graph in one file to send or keep: coverage, failures, sizes and speeds, scores, pictures, provenance, licences."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from importlib.resources import files as package_files
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from graphbuild import __version__
from graphbuild.errors import CorruptNode, GraphError, MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.store.card import SHEET, renew_card
from graphbuild.store.graph import Graph
from graphbuild.store.parts import read_table
from graphbuild.store.workspace import Workspace
from graphbuild.tasks import sheet
from graphbuild.tasks.config import SamplerConfig
from graphbuild.view.charts import Chart, histogram
from graphbuild.view.draws import Draws
from graphbuild.view.html import render
from graphbuild.view.item import ItemGraph, NodeBox, item_graph, mend
from graphbuild.view.look import Look
from graphbuild.view.outcomes import STATUSES, Reason
from graphbuild.view.picture import WORDS, Address, encoded, small, stored
from graphbuild.view.query import Hit, Query, find
from graphbuild.view.runs import pace, reports, versions

_SIZE = 160  # longest side of a picture in the file
_ITEMS, _KINDS, _FAILURES, _PICTURES, _CHARTS, _LICENCES = 8, 12, 20, 4, 12, 30
_TASKS, _CELL = 3, 160


class Shown(NamedTuple):
    """A node in a sheet: a picture as a data address, or words, or why there is neither."""

    picture: str
    words: str
    missing: str


def report(graph: Graph, paths: str | None = None) -> str:
    """The report as HTML that needs nothing else: pictures and styles are in it, no script is.

    Args:
        graph: at the state that is reported.
        paths: the task list of the sample tasks; None for every shipped path that the graph serves.
    """
    look = Look(graph)
    outcomes, found = look.outcomes, reports(graph.fs)
    kinds = list(outcomes.counts())
    style = (package_files("graphbuild.view") / "static" / "style.css").read_text(encoding="utf-8")
    return render(
        "report.html", style=Markup(style), version=__version__, name=graph.url.rstrip("/").rpartition("/")[2],
        num_items=graph.num_items, origin=graph.document.source, excluded=len(graph.excluded), digest=graph.digest,
        counts=outcomes.counts(), nbytes=outcomes.nbytes(), pace=pace(found), live=graph.head, statuses=STATUSES,
        failures=[_failure(look, reason) for reason in outcomes.reasons()[:_FAILURES]], charts=_charts(look, kinds),
        sheet=_rows(look, kinds[:_KINDS]), sheet_kinds=kinds[:_KINDS], tasks=_tasks(graph, paths),
        drawn=_graph_of_one(look),
        reports=found, versions=versions(graph), licences=_licences(graph), source=lambda box: _box(look, box).picture,
        words=lambda box: _box(look, box).words,
    )  # fmt: skip


def _failure(look: Look, reason: Reason) -> dict[str, Any]:
    """One reason: the command that mends it, and the pictures of a few items that it happened to."""
    hits = _allowed(look, Query(kind=reason.kind, status="failed", reason=reason.reason), _PICTURES)
    shown = [(hit, _shown(look, Address(hit.item_ix, "image"))) for hit in hits]
    fix = mend(look.graph, look.graph.live(reason.kind).annotator, "failed", reason.reason)
    return {"reason": reason, "hits": shown, "mend": fix}


def _allowed(look: Look, query: Query, most: int) -> list[Hit]:
    """The first nodes of a query, without those of excluded items."""
    hits = find(look, query, limit=most).hits if query.kind in look.graph.head else []
    return [hit for hit in hits if look.why_excluded(hit.facts) is None]


def _charts(look: Look, kinds: Sequence[str]) -> list[Chart]:
    drawn = (histogram(f"Scores of {kind}", look.scores(kind)[:, 2].tolist()) for kind in kinds)
    return [chart for chart in drawn if chart is not None][:_CHARTS]


def _rows(look: Look, kinds: Sequence[str]) -> list[tuple[int, str, list[Shown]]]:
    """Item, key and nodes of the first items that have a picture."""
    hits = _allowed(look, Query(status="ok"), _ITEMS)
    return [(hit.item_ix, str(hit.facts["key"]), [_shown(look, Address(hit.item_ix, kind)) for kind in kinds])
            for hit in hits]  # fmt: skip


def write_sheet(url: str) -> None:
    """Draw the nodes of the first items as a picture beside the dataset card, which shows it from now on."""
    look = Look(Graph.open(url))
    kinds = [kind for kind in look.kinds if kind in look.graph.head and look.lineage(kind).codec[kind] not in WORDS]
    hits = _allowed(look, Query(status="ok"), _ITEMS)
    if not hits:
        raise GraphError(f"{url}: no picture to draw a sheet of")
    cells = [[_square(look, Address(hit.item_ix, kind)) for kind in kinds[:_KINDS]] for hit in hits]
    drawn = sheet.draw(cells, [kinds[:_KINDS]] * len(cells), (), [])
    with closing(Workspace.create(look.graph.fs, "sheet")) as workspace:
        look.graph.fs.replace(SHEET, encoded(np.asarray(drawn)), workspace)
    renew_card(url)


def _square(look: Look, place: Address) -> Pixels:
    """A node in the middle of a square, or the empty square where it is not there."""
    square = np.full((_SIZE, _SIZE, 3), 240, np.uint8)
    try:
        pixels = small(stored(look.graph, place), _SIZE)
    except (MissingNode, GraphError):
        return square
    top, left = ((_SIZE - side) // 2 for side in pixels.shape[:2])
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels.reshape(*pixels.shape[:2], -1)
    return square


def _shown(look: Look, place: Address) -> Shown:
    try:
        node = stored(look.graph, place)
        if node.codec in WORDS:
            return Shown("", node.text, "")
        return Shown(data_address(encoded(small(node, _SIZE))), "", "")
    except (MissingNode, CorruptNode, GraphError) as error:
        return Shown("", "", str(error).rpartition(": ")[2])


def _box(look: Look, box: NodeBox) -> Shown:
    return _shown(look, Address(box.edge["item_ix"], box.kind, box.variant))


def _tasks(graph: Graph, paths: str | None) -> list[tuple[str, str]]:
    """(name, picture) of the first grid tasks; none where the graph serves no path."""
    try:
        draws = Draws(graph, paths, SamplerConfig())
        tasks = [draws.task(0, index, None, _CELL) for index in range(_TASKS)]
    except GraphError:
        return []
    return [(task.walk.path.name, data_address(encoded(np.asarray(task.image())))) for task in tasks]


def _graph_of_one(look: Look) -> ItemGraph | None:
    """The graph of the item with the most nodes among the first."""
    hits = _allowed(look, Query(status="ok"), _ITEMS)
    drawn = [item_graph(look, hit.item_ix) for hit in hits]
    return max(drawn, key=lambda each: sum(box.ok for box in each.boxes), default=None)


def _licences(graph: Graph) -> list[tuple[str, str, int]]:
    """(licence, attribution, items), the commonest first; empty texts where the source does not say."""
    found: Counter[tuple[str, str]] = Counter()
    for name in graph.names_of("items"):
        rows = read_table(graph.fs, name, ["licence", "attribution"])
        found.update((row["licence"] or "", row["attribution"] or "") for row in rows.to_pylist())
    return [(*said, count) for said, count in found.most_common(_LICENCES)]


def data_address(jpeg: bytes) -> Markup:
    """A JPEG file as an address that holds it, of letters and digits alone."""
    return Markup(f"data:image/jpeg;base64,{b64encode(jpeg).decode()}")
