"""The command that writes the contracts down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphbuild.cli.app import app
from graphbuild.contracts import schema_files


@app.command()
def schema(
    write: Annotated[Path | None, typer.Option(help="Write all contracts into FOLDER/v1.", metavar="FOLDER")] = None,
) -> None:
    """Print the names of the JSON and Arrow contracts, or write them down.

    Example:

      graphbuild schema --write schemas/
    """
    for name, text in schema_files().items():
        if write is not None:
            target = write / "v1" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        typer.echo(name if write is None else target)
