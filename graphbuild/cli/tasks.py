"""Commands about tasks: which there are, drawn as pictures, explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from graphbuild.cli.app import app
from graphbuild.cli.console import (
    ERR,
    UNDONE,
    GraphArgument,
    GroupOption,
    JsonOption,
    LayoutOption,
    MaskOption,
    MissingOption,
    PathsOption,
    SeedOption,
    SnapshotOption,
    WeightsOption,
    refusing,
    say,
    stop,
)
from graphbuild.errors import GraphError


@app.command()
def tasks(
    graph: Annotated[str | None, typer.Argument(help="Say what this graph serves.", metavar="[GRAPH]")] = None,
    paths: Annotated[str, typer.Option(help="A path list by name or .yaml.")] = "graph200k",
    weights: WeightsOption = "listed",
    as_json: JsonOption = False,
) -> None:
    """List the tasks of a path list; with a graph, how many items serve each and what is left of its probability.

    Example:

      graphbuild tasks sample-graph --paths graph200k
    """
    from graphbuild.cli import text
    from graphbuild.store.graph import Graph
    from graphbuild.tasks import explain

    with refusing():
        if graph is not None:
            rows, why = explain.served_tasks(Graph.open(graph), paths, weights=weights)
        elif weights == "listed":
            rows, why = explain.tasks(paths), ""
        else:
            raise GraphError("--weights: without a graph no items are counted; name one: graphbuild tasks GRAPH")
    say(json.dumps(rows), text.tasks_lines(rows), as_json)
    if why:
        raise stop(why, UNDONE)


@app.command()
def sample(
    graph: GraphArgument,
    paths: PathsOption = None,
    on_missing: MissingOption = "error",
    count: Annotated[int, typer.Option(min=1, help="How many grid tasks.")] = 8,
    seed: SeedOption = 0,
    index: Annotated[int, typer.Option(min=0, help="The first task.")] = 0,
    group: GroupOption = 1,
    mask: MaskOption = "code",
    weights: WeightsOption = "listed",
    layout: LayoutOption = "pipeline",
    resolution: Annotated[int, typer.Option(min=16, help="Side of a cell in pixels.")] = 384,
    cell_fit: Annotated[str, typer.Option(help="crop_square, stretch_square or aspect.")] = "crop_square",
    row_sizes: Annotated[str, typer.Option(help="Under aspect: shared, or each row its own.")] = "shared",
    hole_fill: Annotated[str, typer.Option(help="What is shown in a hole: black or grey.")] = "black",
    degrade_at: Annotated[str, typer.Option(help="Degradations act at 512 px, or on source or cell.")] = "512",
    decode: Annotated[str, typer.Option(help="exact, or fast: JPEGs at a fraction of their size.")] = "exact",
    form: Annotated[
        str, typer.Option("--format", help="png, jsonl (ids), parquet, webdataset, or module:function.")
    ] = "png",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("grids"),
    snapshot: SnapshotOption = None,
) -> None:
    """Draw grid tasks: a labelled PNG of each and one line of ids in walks.jsonl, or another format.

    Example:

      graphbuild sample sample-graph --count 6 --seed 1 --out grids
    """
    from graphbuild.store.graph import Graph, keep_snapshot
    from graphbuild.tasks import export as taskfiles
    from graphbuild.tasks.config import CellConfig

    with refusing():
        taskfiles.writer_of(form)
        chosen: dict[str, Any] = {
            "cell_fit": cell_fit, "row_sizes": row_sizes, "hole_fill": hole_fill, "degrade_at": degrade_at,
            "decode": decode,
        }  # fmt: skip
        cells, opened = CellConfig(**chosen), Graph.open(graph, snapshot=snapshot)
        sampler = taskfiles.open_sampler(
            opened, paths, seed=seed, group=group, on_missing=on_missing, mask=mask, layout=layout, weights=weights
        )
        ERR.print(f"{len(sampler.paths)} of {len(sampler.listed.paths)} paths can be served", markup=False)
        if error := keep_snapshot(opened):
            ERR.print(f"the snapshot is not kept: {error}", markup=False)
        indices = range(index, index + count)
        for file in taskfiles.write_tasks(sampler, indices, resolution, out, form=form, cells=cells):
            typer.echo(file)


@app.command()
def explain(
    graph: GraphArgument,
    item: Annotated[str | None, typer.Argument(help="An item's number or key.", metavar="[ITEM]")] = None,
    kind: Annotated[str | None, typer.Argument(help="The kind of one of its nodes.", metavar="[KIND]")] = None,
    index: Annotated[int | None, typer.Option("--sample", min=0, help="Explain this grid task instead.")] = None,
    variant: Annotated[int, typer.Option(min=0, help="Which of the item's nodes of that kind.")] = 0,
    paths: PathsOption = None,
    on_missing: MissingOption = "error",
    seed: SeedOption = 0,
    group: GroupOption = 1,
    mask: MaskOption = "code",
    weights: WeightsOption = "listed",
    layout: LayoutOption = "pipeline",
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where one node comes from and lies, or what a grid task consists of and why.

    Examples:

      graphbuild explain sample-graph 0 canny

      graphbuild explain sample-graph --sample 1234567
    """
    from graphbuild.cli import text
    from graphbuild.store.graph import Graph
    from graphbuild.tasks import explain as why
    from graphbuild.tasks.export import open_sampler

    with refusing():
        opened = Graph.open(graph, snapshot=snapshot)
        if index is not None and item is None:
            sampler = open_sampler(
                opened, paths, seed=seed, group=group, on_missing=on_missing, mask=mask, layout=layout, weights=weights
            )
            document, lines = why.sample(sampler, index), text.sample_lines
        elif index is None and item is not None and kind is not None:
            document, lines = why.node(opened, item, kind, variant), text.node_lines
        else:
            raise GraphError("explain: name ITEM and KIND, or --sample I")
    say(json.dumps(document), lines(document), as_json)
