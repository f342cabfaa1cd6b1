"""The command that writes the schemas of the format."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pyarrow as pa
import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import refusing
from graphbuild.contracts import ARROW_SCHEMAS, JSON_DOCUMENTS
from graphbuild.store.locations import local_path


@app.command()
def schema(
    write: Annotated[str | None, typer.Option(help="Write all schemas into FOLDER/v1.", metavar="FOLDER")] = None,
) -> None:
    """List the JSON and Arrow schemas of the format, or write them to files.

    Example:

      graphbuild schema --write schemas/
    """
    with refusing():
        folder = None if write is None else local_path(write) / "v1"
        for name, text in schema_files().items():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
            typer.echo(name if folder is None else folder / name)


def schema_files() -> dict[str, str]:
    """File name -> text of every contract, as `graphbuild schema --write` lays them down."""
    arrow = {f"{name}.arrow.json": _arrow_json(schema) for name, schema in ARROW_SCHEMAS.items()}
    documents = {f"{name}.schema.json": model.model_json_schema() for name, model in JSON_DOCUMENTS.items()}
    return {name: json.dumps(body, indent=2, sort_keys=True) + "\n" for name, body in (arrow | documents).items()}


def _arrow_json(schema: pa.Schema) -> dict[str, Any]:
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    fields = [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema]
    return {"fields": fields, "metadata": metadata}
