"""The command that deletes what a graph holds in vain."""

from __future__ import annotations

from typing import Annotated

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import GraphArgument, JsonOption, command_line, refusing, say


@app.command()
def gc(
    graph: GraphArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it. Without this, it is only listed.")] = False,
    version: Annotated[
        list[str] | None,
        typer.Option(help="Also a version that was never live, v and 12 hex digits; may be given several times."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Pin a snapshot by its digest; may be given several times.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Unpin a snapshot, such as that of a training; may be given several times.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List, and with --delete delete: replaced versions, stored nodes of excluded items, parts that killed runs left.

    Live versions stay, as do versions that were never live (they may be under construction), what pinned snapshots
    reach, and all that those are made from. A training pins its snapshot. Stop whatever reads the graph first.

    Examples:

      graphbuild gc photos-graph

      graphbuild gc photos-graph --delete

      graphbuild gc photos-graph --keep 0123456789abcdef --delete
    """
    from graphbuild.cli.text import gc_lines
    from graphbuild.engine.gc import gc as collect

    with refusing():
        found = collect(graph, delete=delete, versions=version or (), keep=keep or (), drop=drop or ())
    say(found.model_dump_json(), gc_lines(found, graph, command_line()), as_json)
