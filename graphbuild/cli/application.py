"""The command line application that the command modules add to."""

from __future__ import annotations

from typing import Annotated

import typer

from graphbuild import __version__
from graphbuild.cli.console import OUT

app = typer.Typer(
    help="Turn images into a graph of annotations, and the graph into in-context training tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(value: bool) -> None:
    if value:
        OUT.print(f"graphbuild {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    pass
