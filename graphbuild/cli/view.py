"""The commands that show a graph: in a browser, and in one file."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import ERR, GraphArgument, PathsOption, SamplerOption, SnapshotOption, refusing
from graphbuild.errors import GraphError


@app.command()
def view(
    graph: GraphArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8321,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines reach it only with the token that is printed.")
    ] = "127.0.0.1",
    opens: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    training: Annotated[
        list[str] | None, typer.Option(help="A folder of graphbuild-train to show; may be given several times.")
    ] = None,
    paths: PathsOption = None,
    sampler: SamplerOption = None,
    edit: Annotated[bool, typer.Option("--edit", help="Let the page exclude items; it only reads otherwise.")] = False,
) -> None:
    """Show a graph in the browser: items, failures, coverage, runs, versions, tasks, training. Until Ctrl-C.

    Examples:

      graphbuild view sample-graph --open

      graphbuild view photos-graph --port 9000 --training lora --edit
    """
    from graphbuild.cli.tasks import sampler_config
    from graphbuild.store.locations import local_path

    with refusing():
        with extra("view"):
            from graphbuild.view.pages import Settings
            from graphbuild.view.server import Viewer
        settings = Settings(
            graph=graph, training=tuple(map(local_path, training or ())), paths=paths,
            sampler=sampler_config(sampler), edit=edit,
        )  # fmt: skip
        viewer = Viewer(settings, host, port)
    typer.echo(viewer.address)
    ERR.print("Ctrl-C ends it", markup=False)
    if opens:
        webbrowser.open(viewer.address)
    viewer.run()


@app.command()
def report(
    graph: GraphArgument,
    out: Annotated[str, typer.Option(help="The file to write.")] = "report.html",
    snapshot: SnapshotOption = None,
    paths: PathsOption = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also draw a sheet of pictures into the graph, for its dataset card.")
    ] = False,
) -> None:
    """Write a graph's report, one HTML file that needs nothing else: coverage, failures, pictures, speeds, licences.

    Example:

      graphbuild report sample-graph --out report.html
    """
    from graphbuild.store.files import replacing
    from graphbuild.store.graph import Graph
    from graphbuild.store.locations import local_path

    with refusing():
        with extra("report"):
            from graphbuild.view import report as reporting
        if card:
            reporting.write_sheet(graph)
        text = reporting.report(Graph.open(graph, snapshot=snapshot), paths)
        with replacing(local_path(out)) as file:
            file.write(text.encode())
    typer.echo(out)


@contextmanager
def extra(command: str) -> Iterator[None]:
    """Imports whose packages the extra `view` brings.

    Raises:
        GraphError: one is not installed; the message has the command that installs them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise GraphError(f"graphbuild {command} needs {error.name}: pip install 'graphbuild[view]'") from error
