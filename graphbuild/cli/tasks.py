"""Commands about tasks: list them, write them to files, explain them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import (
    ERR,
    UNDONE,
    DataOption,
    GraphArgument,
    HeldOutOption,
    JsonOption,
    KeepOption,
    LayoutOption,
    MaskOption,
    MissingOption,
    PathsOption,
    RepeatOption,
    RowsOption,
    SamplerOption,
    SeedOption,
    SnapshotOption,
    SplitOption,
    WeightsOption,
    WhereOption,
    refusing,
    say,
    stop,
    ticking,
)
from graphbuild.errors import GraphError

if TYPE_CHECKING:
    from graphbuild.tasks.config import SamplerConfig
    from graphbuild.tasks.mixture import Sampler


@app.command()
def tasks(
    graph: Annotated[str | None, typer.Argument(help="Count the items of this graph.", metavar="[GRAPH]")] = None,
    paths: Annotated[str, typer.Option(help="Task list: a name or a .yaml file.")] = "graph200k",
    weights: WeightsOption = None,
    sampler: SamplerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the paths of a task list; with a graph, how many items serve each, and its probability there.

    Example:

      graphbuild tasks sample-graph --paths graph200k
    """
    from graphbuild.cli import text
    from graphbuild.store.graph import Graph
    from graphbuild.tasks import explain

    with refusing():
        if graph is not None:
            served = explain.served_tasks(Graph.open(graph), paths, sampler_config(sampler, weights=weights))
        elif weights in (None, "listed") and sampler is None:
            served = explain.ServedTasks(explain.tasks(paths), 0, "")
        else:
            option = "--sampler" if sampler else "--weights"
            raise GraphError(f"{option}: without a graph no items are counted; name one: graphbuild tasks GRAPH")
    say(json.dumps(served.rows), text.tasks_lines(served.rows, served.bridging), as_json)
    if served.error:
        raise stop(served.error, UNDONE)


@app.command()
def sample(
    graph: Annotated[str | None, typer.Argument(help="The graph folder.", metavar="[GRAPH]")] = None,
    data: DataOption = None,
    paths: PathsOption = None,
    on_missing: MissingOption = "error",
    count: Annotated[int, typer.Option(min=1, help="How many grid tasks.")] = 8,
    seed: SeedOption = 0,
    index: Annotated[int, typer.Option(min=0, help="The first task.")] = 0,
    path_repeat: RepeatOption = 1,
    split: SplitOption = None,
    where: WhereOption = None,
    held_out: HeldOutOption = None,
    rows: RowsOption = None,
    keep: KeepOption = None,
    mask: MaskOption = None,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    sampler: SamplerOption = None,
    resolution: Annotated[int, typer.Option(min=16, help="Side of a cell in pixels.")] = 384,
    cell_fit: Annotated[str, typer.Option(help="crop_square, stretch_square or aspect.")] = "crop_square",
    row_sizes: Annotated[str, typer.Option(help="Under aspect: shared, or each row its own.")] = "shared",
    hole_fill: Annotated[str, typer.Option(help="What is shown in a hole: black or grey.")] = "black",
    degrade_at: Annotated[str, typer.Option(help="Degradations act at 512 px, or on source or cell.")] = "512",
    decode: Annotated[str, typer.Option(help="exact, or fast: JPEGs at a fraction of their size.")] = "exact",
    form: Annotated[
        str, typer.Option("--format", help="png, jsonl (ids), parquet, webdataset, or module:function.")
    ] = "png",
    out: Annotated[str, typer.Option(help="Folder for the files.")] = "grids",
    frozen: Annotated[
        Path | None, typer.Option(help="Write a fixed evaluation set, ids alone, to this file instead.")
    ] = None,
    per_path: Annotated[bool, typer.Option("--per-path", help="With --frozen: --count tasks of each path.")] = False,
    snapshot: SnapshotOption = None,
) -> None:
    """Draw grid tasks: a labelled PNG of each and one line of ids in walks.jsonl, or another format.

    A fixed evaluation set (--frozen) names snapshot, list and settings: graphbuild-train evaluate --walks FILE.

    Examples:

      graphbuild sample sample-graph --count 6 --seed 1 --out grids

      graphbuild sample --data '{graph: viton, paths: viton_hd, weight: 2}' --data '{graph: coco, paths: coco}'

      graphbuild sample s200k-graph --split validation --frozen evaluation.jsonl --count 32 --per-path
    """
    from graphbuild.store.locations import local_path
    from graphbuild.store.pins import keep_snapshot
    from graphbuild.tasks import export as taskfiles
    from graphbuild.tasks.config import CellConfig

    with refusing():
        taskfiles.writer_of(form)
        folder = local_path(out)
        chosen: dict[str, Any] = {
            "cell_fit": cell_fit, "row_sizes": row_sizes, "hole_fill": hole_fill, "degrade_at": degrade_at,
            "decode": decode,
        }  # fmt: skip
        cells = CellConfig(**chosen)
        config = sampler_config(
            sampler, split=split, where=where, held_out=held_out, rows=rows, keep=keep, mask=mask, layout=layout,
            weights=weights,
        )  # fmt: skip
        drawer = _sampler(
            graph, data or [], paths, snapshot, seed=seed, path_repeat=path_repeat, on_missing=on_missing, config=config
        )
        for part in drawer.parts:
            of = f" of {part.graph.url}" if data else ""
            ERR.print(f"{len(part.paths)} of {len(part.listed.paths)} paths{of} can be served", markup=False)
            if error := keep_snapshot(part.graph):
                ERR.print(f"the snapshot is not kept: {error}", markup=False)
        if frozen is not None or per_path:
            typer.echo(_frozen(drawer, frozen, count, start=index, per_path=per_path))
            return
        with ticking("grid tasks", count) as tick:
            indices = range(index, index + count)
            for file in taskfiles.write_tasks(
                drawer, indices, resolution, folder, form=form, cells=cells, progress=tick
            ):
                sys.stdout.write(f"{file}\n")  # above the bar, where both are on a terminal


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
    path_repeat: RepeatOption = 1,
    split: SplitOption = None,
    where: WhereOption = None,
    held_out: HeldOutOption = None,
    rows: RowsOption = None,
    keep: KeepOption = None,
    mask: MaskOption = None,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    sampler: SamplerOption = None,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the origin and location of one node, or what a grid task is made of, and why.

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
            config = sampler_config(
                sampler, split=split, where=where, held_out=held_out, rows=rows, keep=keep, mask=mask, layout=layout,
                weights=weights,
            )  # fmt: skip
            drawer = open_sampler(
                opened, paths, seed=seed, path_repeat=path_repeat, on_missing=on_missing, config=config
            )
            document, lines = why.sample(drawer, index), text.sample_lines
        elif index is None and item is not None and kind is not None:
            document, lines = why.node(opened, item, kind, variant), text.node_lines
        else:
            raise GraphError("explain: name ITEM and KIND, or --sample I")
    say(json.dumps(document), lines(document), as_json)


def _frozen(drawer: Sampler, file: Path | None, count: int, **options: Any) -> Path:
    """Write a fixed evaluation set.

    Raises:
        GraphError: no file is named, or tasks of several graphs are drawn.
    """
    if file is None:
        raise GraphError("--per-path: only with --frozen FILE")
    if len(drawer.parts) > 1:
        raise GraphError("--frozen: the walks of one graph; freeze those of each --data by itself")
    drawer.parts[0].frozen(count, **options).write(file)
    return file


def _sampler(
    graph: str | None, data: Sequence[str], paths: str | None, snapshot: str | None, **options: Any
) -> Sampler:  # fmt: skip
    """The sampler of one graph, or of the mixture that --data names.

    Raises:
        GraphError, ValueError: both or neither are given, or they cannot be sampled.
    """
    from graphbuild.config.strict_yaml import build
    from graphbuild.store.graph import Graph
    from graphbuild.tasks.config import DataConfig
    from graphbuild.tasks.export import open_sampler
    from graphbuild.tasks.mixture import open_mixture

    if graph is not None and not data:
        return open_sampler(Graph.open(graph, snapshot=snapshot), paths, **options)
    if graph is not None or not data:
        raise GraphError("sample: name either GRAPH, or several graphs with --data '{graph: a, paths: viton_hd}'")
    parts = [build(DataConfig, _yaml("--data", text)) for text in data]
    mixture = open_mixture(parts, paths or "graph200k", snapshots=snapshot.split("+") if snapshot else (), **options)
    for why in mixture.lacking:
        ERR.print(f"left out: {why}", markup=False)
    return mixture


def sampler_config(file: str | None, **options: Any) -> SamplerConfig:
    """The switches of a file, over which the options that were given go; texts of some options are YAML.

    Raises:
        ValueError: a key or a value is not allowed.
    """
    from graphbuild.config.strict_yaml import build, mapping, reading
    from graphbuild.tasks.config import SamplerConfig

    if rows := options.get("rows"):
        options["rows"] = _yaml("--rows", f"[{rows}]")
    if held_out := options.get("held_out"):
        options["held_out"] = [_yaml("--held-out", task) for task in held_out]
    options |= {name: _yaml(f"--{name}", options[name]) for name in ("where", "keep") if options.get(name) is not None}
    said = {}
    if file is not None:
        with reading(file) as document:
            said = mapping({} if document is None else document, None)
            build(SamplerConfig, said)
    return build(SamplerConfig, {**said, **{name: value for name, value in options.items() if value is not None}})


def _yaml(option: str, text: str) -> Any:
    from graphbuild.config.strict_yaml import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise GraphError(f"{option} {text!r}: {error}") from error
