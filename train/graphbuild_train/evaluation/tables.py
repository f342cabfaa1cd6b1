"""Figures as the tables of VisualCloze (arXiv 2504.07960): Markdown and HTML from the same rows."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphbuild_train.evaluation.figures import Figure
from graphbuild_train.evaluation.judge import FID
from graphbuild_train.evaluation.methods import TITLES, WITHOUT_ROWS
from graphbuild_train.metrics.table import METRICS

_CONTROL = ("f1", "rmse", "iou", "angular_error", "pck")
LAYOUTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "generation": ("Conditional generation and restoration", (*_CONTROL, FID, "ssim", "clip_score")),
    "subject": ("Subject-driven generation", ("dino", "clip_i", "clip_t")),
    "style": ("Style transfer", ("text", "style")),
    "estimation": ("Estimation of maps", _CONTROL),
}
"""Table -> its title, and the metrics that come first; the others that have figures follow."""


@dataclass(frozen=True)
class Table:
    """One table: a title, the heads of its columns, and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        text = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        return f"### {self.title}\n\n{text}\n"

    def html(self) -> str:
        """As HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        return f"<h2>{html.escape(self.title)}</h2>\n<table>\n<tr>{head}</tr>\n{rows}\n</table>\n"


def tables(figures: Sequence[Figure]) -> Iterator[Table]:
    """The tables that have figures."""
    for name, (title, first) in LAYOUTS.items():
        own = [figure for figure in figures if figure.table == name]
        if own:
            yield _table(title, first, own)


def _table(title: str, first: Sequence[str], figures: Sequence[Figure]) -> Table:
    known = {figure.metric for figure in figures}
    metrics = [name for name in dict.fromkeys((*first, *METRICS)) if name in known]
    rows: dict[tuple[str, str, int], dict[str, Figure]] = {}
    for figure in figures:
        rows.setdefault((figure.task, figure.method, figure.context), {})[figure.metric] = figure
    return Table(title, ("Condition", "Method", "Context", *map(_head, metrics), "Pictures"),
                 [_row(*at, found, metrics) for at, found in rows.items()])  # fmt: skip


def _row(task: str, method: str, context: int, found: Mapping[str, Figure], metrics: Sequence[str]) -> tuple[str, ...]:
    figures = list(found.values())
    cells = [_cell(found[name]) if name in found else "-" for name in metrics]
    told = f"{task} (unseen)" if figures[0].unseen else task
    rows = "" if method in WITHOUT_ROWS else str(context)
    return told, TITLES[method], rows, *cells, str(max(figure.count for figure in figures))


def _cell(figure: Figure) -> str:
    """`0.35 [0.31, 0.39]`: the value with its interval."""
    digits = 1 if abs(figure.value) >= 100 else 2
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _head(name: str) -> str:
    if name == FID:
        return "FID ↓"
    return f"{METRICS[name].title} {'↑' if METRICS[name].better == 'higher' else '↓'}"


def report(figures: Sequence[Figure], left_out: Mapping[str, str]) -> str:
    """All tables as Markdown, with notes on what the figures are and what is left out."""
    parts = [table.markdown() for table in tables(figures)]
    return "\n".join([*parts, *(f"{note}\n" for note in notes(figures, left_out))])


def notes(figures: Sequence[Figure], left_out: Mapping[str, str]) -> Iterator[str]:
    """What the figures are, and what is left out, a paragraph each."""
    yield "In brackets: 95 % interval, bootstrapped over the walks."
    if any(figure.metric == FID for figure in figures):
        yield "FID falls with the number of pictures: compare only figures of equally many."
    if left_out:
        yield "Left out:"
        yield "\n".join(f"- {name}: {why}" for name, why in left_out.items())
