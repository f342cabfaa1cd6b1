"""Commands that take a graph elsewhere, and bring in what others made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import (
    ERR,
    ExecutorOption,
    GraphArgument,
    JsonOption,
    SnapshotOption,
    WhereOption,
    command_line,
    refusing,
    ticking,
)
from graphbuild.errors import counted


@app.command()
def export(
    graph: GraphArgument,
    to: Annotated[str, typer.Option("--to", help="Folder for the files; continued where an export was stopped.")],
    form: Annotated[
        str, typer.Option("--format", help="datasets, webdataset, folder, coco, visualcloze or croissant.")
    ] = "datasets",
    kinds: Annotated[str | None, typer.Option(help="Kinds, separated by commas; default: all that are stored.")] = None,
    where: WhereOption = None,
    split: Annotated[str | None, typer.Option(help="Only items of this split of the source.")] = None,
    snapshot: SnapshotOption = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Then upload it to this data set of the Hub.")
    ] = None,
) -> None:
    """Write pictures and annotations in a layout that others read without graphbuild, with a card of their licences.

    Examples:

      graphbuild export photos-graph --to photos-hf --format datasets --push my-name/photos

      graphbuild export photos-graph --to train --format visualcloze --where '{quality: {">=": 3}}'
    """
    from graphbuild.cli.exclude import conditions
    from graphbuild.store.export.hub import check_push
    from graphbuild.store.export.hub import push as upload
    from graphbuild.store.export.run import NOTES
    from graphbuild.store.export.run import export as write
    from graphbuild.store.graph import Graph
    from graphbuild.store.locations import local_path

    with refusing():
        if push is not None:
            check_push(push)
        opened = Graph.open(graph, snapshot=snapshot)
        names = [name.strip() for name in (kinds or "").split(",") if name.strip()]
        with ticking("shards", len(opened.shards)) as tick:
            out = write(
                opened, local_path(to), form, kinds=names, where=conditions(where), split=split,
                progress=tick,
            )  # fmt: skip
        ERR.print(f"{out}: {counted(len(list(out.rglob('*'))), 'file')}; see {out / 'README.md'}", markup=False)
        if push is not None:
            ERR.print(f"pushed: {upload(out, push, 'dataset', without=NOTES)}", markup=False)


@app.command("import")
def import_(
    graph: GraphArgument,
    kind: Annotated[str, typer.Option(help="What the files are: depth, canny, mask, ...")],
    path: Annotated[str, typer.Option("--from", help="Folder of pictures, texts or Parquet files, named by item.")],
    store: Annotated[str | None, typer.Option("--codec", help="Codec of a kind of your own: source, png8, ...")] = None,
    column: Annotated[str | None, typer.Option(help="Column of Parquet files; default: the kind's name.")] = None,
    labels: Annotated[str | None, typer.Option(help="Names of a label map's values, separated by commas.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Its version.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also read again what could not be read.")] = False,
    executor: ExecutorOption = "inline",
    as_json: JsonOption = False,
) -> None:
    """Bring annotations that others made of these items into the graph: cleaned to what their kind promises, or
    refused.

    `a/b.png` is of the item `a/b.jpg`; a row of Parquet says its item in `key`, `file_name` or `item_id`.

    Example:

      graphbuild import photos-graph --kind depth --from depth-maps/
    """
    from graphbuild.cli.build import show_report
    from graphbuild.engine.imported import imported
    from graphbuild.engine.run import run as build

    with refusing():
        names = tuple(name.strip() for name in (labels or "").split(",")) if labels else ()
        said: dict[str, Any] = {"store": store, "column": column, "dataset": dataset, "revision": revision}
        annotator = imported(kind, path, labels=names, **said)
        how: dict[str, Any] = {"executor": executor, "retry": retry}
        report = build(None, [annotator], graph, console=ERR, **how)
    again = f"{command_line()}{'' if retry else ' --retry'}"
    raise typer.Exit(show_report(report, graph, strict=False, as_json=as_json, again=again))
