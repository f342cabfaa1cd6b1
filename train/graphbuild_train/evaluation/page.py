"""An evaluation as one HTML page: its tables, and the pictures behind them."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence

from graphbuild.tasks.walk import Walk
from graphbuild_train.evaluation.figures import Figure
from graphbuild_train.evaluation.methods import TITLES, WITHOUT_ROWS
from graphbuild_train.evaluation.run import Evaluation, shown_file
from graphbuild_train.evaluation.tables import notes, tables

SHOWN = 8
"""Walks of each task on the page; the pictures of all lie in the folder."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 100em; padding: 0 1em; }
table { border-collapse: collapse; } th, td { padding: .2em .7em; text-align: left; white-space: nowrap; }
tr { border-bottom: 1px solid #ddd; } section { overflow-x: auto; }
.walk { display: flex; gap: .6em; margin: .6em 0; } figure { margin: 0; text-align: center; font-size: 12px; }
img { width: 128px; image-rendering: auto; display: block; } .truth img { outline: 3px solid #c00; }
"""


def page(evaluation: Evaluation, figures: Sequence[Figure], left_out: Mapping[str, str]) -> str:
    """The whole page; pictures are named relative to the evaluation's folder."""
    body = [f"<section>{table.html()}</section>" for table in tables(figures)]
    body += [f"<p>{_lines(note)}</p>" for note in notes(figures, left_out)]
    body += ["<p>Below: the query row, the truth framed; then each method with its number of context rows.</p>"]
    body += [*_pictures(evaluation)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Evaluation</h1>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _pictures(evaluation: Evaluation) -> Iterator[str]:
    by_task: dict[str, dict[int, list[str]]] = {}
    walks: dict[int, Walk] = {}
    for answer in evaluation.answers():
        rows = "" if answer.method in WITHOUT_ROWS else f", {answer.context}"
        title = f"{TITLES[answer.method]}{rows}"
        walks[answer.walk.index] = answer.walk
        shown = by_task.setdefault(answer.walk.path.name, {}).setdefault(answer.walk.index, [])
        shown.append(_figure(answer.file, title))
    for task, found in by_task.items():
        yield f"<h2>{html.escape(task)}</h2>"
        for index in sorted(found)[:SHOWN]:
            yield f'<section class="walk">{"".join([*_query(walks[index]), *found[index]])}</section>'


def _query(walk: Walk) -> Iterator[str]:
    for column, kind in enumerate(walk.kinds):
        yield _figure(shown_file(walk, column), kind, "truth" if column in walk.holes else "")


def _figure(file: str, title: str, name: str = "") -> str:
    told = html.escape(title)
    return f'<figure class="{name}"><img loading="lazy" src="{html.escape(file)}" alt="{told}">{told}</figure>'


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
