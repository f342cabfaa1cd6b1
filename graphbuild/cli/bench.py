"""Results of benchmarks: the table of one run, and two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from graphbuild.cli.application import app
from graphbuild.cli.console import OUT, refusing
from graphbuild.cli.text import shown
from graphbuild.contracts import Document
from graphbuild.errors import GraphError

_HELP = """Compare results of benchmarks, which make bench writes.

Example:

  graphbuild bench compare before.json after.json
"""

bench = typer.Typer(help=_HELP, no_args_is_help=True)
app.add_typer(bench, name="bench")

_NOISE = 0.1  # a change below this share is no news


class Machine(Document):
    """Where it was measured: `load` is the mean number of running processes in the last minute."""

    processor: str
    cores: int
    gigabytes: int
    system: str
    python: str
    load: float


class Result(Document):
    """One line of the table.

    Attributes:
        bench, work: the benchmark, and what it did.
        ours, peer: in `unit`.
        ratio: how many times as good as the peer; above 1 where ours is better.
        limit: the least that `ratio` may be; without a ratio, the most that `ours` may be.
    """

    bench: str
    work: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is within its limit."""
        if self.limit is None:
            return True
        return self.ours <= self.limit if self.ratio is None else self.ratio >= self.limit

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")


class Benchmarks(Document):
    """The file of one run; `quick` of short forms."""

    version: str
    machine: Machine
    quick: bool
    results: list[Result]


def table_of(found: Benchmarks) -> Table:
    """Work, ours, peer, ratio, limit."""
    where = found.machine
    title = f"{where.processor}, {where.cores} cores, {where.gigabytes} GB, load {where.load:.1f}"
    table = Table(title=Text(shown(f"{title}{', short forms' if found.quick else ''}")))
    for column in ("work", "ours", "peer", "unit", "ratio", "limit", ""):
        table.add_column(column, justify="left" if column in ("work", "unit", "") else "right")
    for each in found.results:
        limit = "" if each.limit is None else f"{'at least' if each.ratio is not None else 'at most'} {each.limit:g}"
        cells = (f"{each.bench}: {each.work}", _number(each.ours), _number(each.peer), each.unit, _number(each.ratio))
        table.add_row(*(Text(shown(cell)) for cell in (*cells, limit, "" if each.holds else "beyond")))
    return table


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Results of one run: the JSON of make bench.", metavar="A.json")],
    after: Annotated[Path, typer.Argument(help="Those of another.", metavar="B.json")],
) -> None:
    """Set the results of two runs beside each other. A ratio to a peer, measured in turns with it, says more than
    seconds, and alone counts between different machines.

    Example:

      graphbuild bench compare before.json after.json
    """
    with refusing():
        old, new = _read(before), _read(after)
    for line in _differences(old, new):
        OUT.print(line, markup=False)
    table, known = Table(), {(each.bench, each.work): each for each in old.results}
    for column in ("work", "A", "B", "unit", "ratio A", "ratio B", "B against A"):
        table.add_column(column, justify="left" if column in ("work", "unit", "B against A") else "right")
    for each in new.results:
        was = known.pop((each.bench, each.work), None)
        numbers = (
            _number(was.ours if was else None),
            _number(each.ours),
            each.unit,
            _number(was.ratio if was else None),
            _number(each.ratio),
        )
        table.add_row(*(Text(shown(cell)) for cell in (f"{each.bench}: {each.work}", *numbers, _change(was, each))))
    OUT.print(table)
    if known:
        OUT.print(f"only in A: {', '.join(f'{name}: {work}' for name, work in known)}", markup=False)


def _read(file: Path) -> Benchmarks:
    try:
        return Benchmarks.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise GraphError(f"{file}: not results of make bench ({error.errors()[0]['msg']})") from error


def _differences(old: Benchmarks, new: Benchmarks) -> list[str]:
    """What besides the code may explain a change."""
    names = ("processor", "cores", "gigabytes", "system", "python")
    told = [f"{name}: {a} and {b}" for name in names
            if (a := getattr(old.machine, name)) != (b := getattr(new.machine, name))]  # fmt: skip
    lines = [f"other machines, only ratios count: {'; '.join(told)}"] if told else []
    return lines + (["one of the two ran short forms"] if old.quick != new.quick else [])


def _change(old: Result | None, new: Result) -> str:
    """By the ratio to the peer where both have one."""
    if old is None:
        return "new"
    if old.ratio and new.ratio:
        factor = new.ratio / old.ratio
    elif not old.ours or not new.ours:
        return ""
    else:
        factor = new.ours / old.ours if new.is_rate else old.ours / new.ours
    if abs(factor - 1) < _NOISE:
        return "the same"
    return f"{factor:.2f} times as good" if factor > 1 else f"worse: {factor:.2f} times as good"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
