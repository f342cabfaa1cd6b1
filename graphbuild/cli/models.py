"""Commands about weights: which each annotator loads, and getting them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import ERR, OUT, JsonOption, refusing, say

models = typer.Typer()
app.add_typer(models, name="models")

PipelineOption = Annotated[str | None, typer.Option(help="The annotators of this pipeline: a name or a .yaml file.")]

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Annotators, kinds, or repositories (org/name, org/name@commit).", metavar="[NAME]..."),
]


@models.callback(invoke_without_command=True)
def listing(context: typer.Context, pipeline: PipelineOption = None, as_json: JsonOption = False) -> None:
    """List annotators: kinds they make, weights, licence, size, memory, and whether the weights are on this machine.

    Examples:

      graphbuild models

      graphbuild models --pipeline subjects200k --json
    """
    from graphbuild.cli import text, weights

    if context.invoked_subcommand is not None:
        return
    with refusing():
        rows = weights.listing(pipeline)
    say(json.dumps(rows), [text.weights_table(rows)], as_json)


@models.command()
def fetch(
    names: NamesArgument = None,
    pipeline: PipelineOption = None,
) -> None:
    """Download weights into the Hugging Face cache; weights that are there already are skipped.

    Examples:

      graphbuild models fetch depth_anything sam2

      graphbuild models fetch --pipeline conditions

      HF_TOKEN=... graphbuild models fetch black-forest-labs/FLUX.1-Fill-dev
    """
    from graphbuild.cli import weights

    with refusing():
        wanted = weights.wanted(names or [], pipeline)
        if not wanted:
            ERR.print(f"nothing to download: {', '.join(names or []) or pipeline} needs no weights", markup=False)
        for number, checkpoint in enumerate(wanted, 1):
            size = f"{checkpoint.gigabytes:g} GB, {checkpoint.licence}" if checkpoint.gigabytes else "size unknown"
            ERR.print(f"{number} of {len(wanted)}: {checkpoint.model} ({size})", markup=False)
            OUT.print(str(weights.fetch(checkpoint)), markup=False)
