"""The command that leaves items out of every task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import GraphArgument, JsonOption, refusing, say
from graphbuild.errors import GraphError, counted


@app.command()
def exclude(
    graph: GraphArgument,
    items: Annotated[str | None, typer.Option(help="Items by number: 3,17,20-29.")] = None,
    keys: Annotated[list[str] | None, typer.Option(help="An item by its key; may be given several times.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Items by conditions, as in a task list: 'quality: {\"<\": 2}'.")
    ] = None,
    why: Annotated[str | None, typer.Option(help="The reason, kept in the graph.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put them back.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Leave items out of every task and export from now on, in all snapshots; without items, list those left out.

    Their bytes stay in the graph until graphbuild gc --delete.

    Examples:

      graphbuild exclude photos-graph --keys 2019/IMG_1.jpg --keys 2019/IMG_2.jpg --why "takedown 2026-11-29"

      graphbuild exclude photos-graph --where 'split: test' --why "not for training"

      graphbuild exclude photos-graph --items 3 --undo

      graphbuild exclude photos-graph
    """
    from graphbuild.store import exclusions
    from graphbuild.store.card import renew_card
    from graphbuild.store.graph import Graph

    with refusing():
        opened = Graph.open(graph)
        table = opened.items()
        asked = items is not None or bool(keys) or where is not None
        if (why is not None) == undo and (asked or undo):
            raise GraphError("exclude: give either --why TEXT or --undo")
        if not asked and (why is not None or undo):
            raise GraphError("exclude: say which items, with --items, --keys or --where")
        left_out, changed = dict(opened.excluded), 0
        if asked:
            ids = exclusions.chosen(table, _numbers(items), keys or (), conditions(where))
            if not ids:
                raise GraphError("exclude: no item meets the conditions")
            left_out = exclusions.include(opened.fs, ids) if undo else exclusions.exclude(opened.fs, ids, str(why))
            renew_card(graph)
            changed = sum(left_out.get(item_id) != opened.excluded.get(item_id) for item_id in ids)
    every = table.select(["item_ix", "key", "item_id"]).to_pylist()
    rows = [{**row, "why": left_out[row["item_id"]]} for row in every if row["item_id"] in left_out]
    lines = _listed(rows) if not asked else [f"{counted(changed, 'item')} {'put back' if undo else 'excluded'}"]
    say(json.dumps(rows), [*lines, f"{counted(len(rows), 'item')} excluded in all"], as_json)


def _listed(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield f"item {row['item_ix']}, {row['key']}: {row['why']}"


def _numbers(items: str | None) -> set[int]:
    """`3,17,20-29` as numbers."""
    numbers: set[int] = set()
    for part in filter(None, (items or "").split(",")):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise GraphError(f"--items {part!r}: write numbers and ranges, such as 3,17,20-29")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def conditions(where: str | None) -> dict[str, Any] | None:
    """The conditions of a `--where` option; None without one."""
    from graphbuild.config.strict_yaml import parse_yaml

    if where is None:
        return None
    found = parse_yaml(where)
    if not isinstance(found, dict) or not found:
        raise GraphError(f"--where {where!r}: write conditions as in a task list, such as 'quality: {{\"<\": 2}}'")
    return found
