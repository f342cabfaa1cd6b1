"""The command line: a thin face of the library."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from graphbuild import __version__
from graphbuild.contracts import GraphError, MissingNode, RunReport, schema_files

app = typer.Typer(
    help="Turn images into a graph of annotations, and the graph into in-context training tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

OUT = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

DONE, UNDONE, REFUSED = 0, 1, 2

GraphArgument = Annotated[Path, typer.Argument(help="The graph folder.", metavar="GRAPH")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
SourceOption = Annotated[
    str | None, typer.Option(help="Where items come from: sample, folder, subjects200k, pkg.mod:Class.")
]
PathOption = Annotated[str | None, typer.Option("--path", help="The source's folder or URL.")]
PipelineOption = Annotated[str | None, typer.Option(help="A pipeline by name or a .yaml file; default: the source's.")]
AnnotatorsOption = Annotated[
    str | None, typer.Option(help="Comma-separated annotators or kinds, instead of the pipeline's.")
]
OutOption = Annotated[Path | None, typer.Option(help="The graph folder; default ./SOURCE-graph.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Take only the first N items.")]
ShardSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Items per shard of a new graph (default at most 1024).")
]
ExecutorOption = Annotated[str, typer.Option(help="ray, or inline for this process alone.")]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")]
AcceptOption = Annotated[bool, typer.Option("--accept-changed", help="Add files whose bytes changed as new items.")]
PathsOption = Annotated[str | None, typer.Option(help="A path list by name or .yaml; default: all that can be served.")]
SeedOption = Annotated[int, typer.Option(help="Another seed draws other tasks.")]
GroupOption = Annotated[int, typer.Option(min=1, help="So many tasks in a row share path and number of rows.")]
MaskOption = Annotated[str, typer.Option(help="How holes are drawn: code or paper.")]
LayoutOption = Annotated[str, typer.Option(help="The layout sentence: pipeline or random.")]
SnapshotOption = Annotated[str | None, typer.Option(help="Draw from a published snapshot.")]


def main() -> None:
    """Entry point: errors of use end with one line and exit code 2."""
    app()


@contextmanager
def _refusing() -> Iterator[None]:
    """Wrong usage and refused input: one message, exit code 2."""
    try:
        yield
    except (GraphError, MissingNode, ValueError) as error:
        raise _stop(str(error), REFUSED) from error
    except FileNotFoundError as error:
        raise _stop(f"{error.filename}: no such file or folder", REFUSED) from error
    except OSError as error:
        raise _stop(f"{error}; what is committed is kept, run the same command again", UNDONE) from error
    except KeyboardInterrupt as error:
        raise _stop(f"stopped; what is committed is kept, continue with: {_command()}", UNDONE) from error


def _stop(why: str, code: int) -> typer.Exit:
    ERR.print(f"graphbuild: {why}", markup=False)
    return typer.Exit(code)


def _version(value: bool) -> None:
    if value:
        OUT.print(f"graphbuild {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    pass


# ---- run and plan ----------------------------------------------------------------------------------------------


@app.command()
def run(
    source: SourceOption = None,
    path: PathOption = None,
    pipeline: PipelineOption = None,
    annotators: AnnotatorsOption = None,
    out: OutOption = None,
    limit: LimitOption = None,
    shard_size: ShardSizeOption = None,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    accept_changed: AcceptOption = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also compute failed rows that may succeed now.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if any row failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a graph, or continue one: only what is missing or outdated is computed.

    Examples:

      graphbuild run --source sample

      graphbuild run --source folder --path photos/ --annotators canny,lsd,grabcut --out photos-graph

      graphbuild run --source subjects200k --limit 1000 --out s200k
    """
    from graphbuild.build.run import run as build
    from graphbuild.pipeline import assemble

    how: dict[str, Any] = {"limit": limit, "shard_size": shard_size, "accept_changed": accept_changed, "retry": retry}
    with _refusing():
        chosen, makers, where = assemble(source, path, pipeline, annotators, out)
        if executor not in ("ray", "inline"):
            raise GraphError(f"--executor {executor}: it is ray or inline")
        report = build(chosen, makers, where, executor=executor, address=address, console=ERR, **how)  # type: ignore[arg-type]
    raise typer.Exit(_show_report(report, where, strict=strict, as_json=as_json))


@app.command()
def plan(
    source: SourceOption = None,
    path: PathOption = None,
    pipeline: PipelineOption = None,
    annotators: AnnotatorsOption = None,
    out: OutOption = None,
    limit: LimitOption = None,
    shard_size: ShardSizeOption = None,
    accept_changed: AcceptOption = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also plan failed rows that may succeed now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which units a run would compute, and why. Writes nothing.

    Example:

      graphbuild plan --source sample --out sample-graph
    """
    from graphbuild import explain
    from graphbuild.build.plan import make_plan
    from graphbuild.pipeline import assemble
    from graphbuild.store.publish import Files

    how: dict[str, Any] = {"limit": limit, "shard_size": shard_size, "accept_changed": accept_changed, "retry": retry}
    with _refusing():
        chosen, makers, where = assemble(source, path, pipeline, annotators, out)
        planned = make_plan(Files(where), chosen, makers, **how)
    _say(json.dumps(explain.plan(planned, where)), explain.plan_lines(planned, where), as_json)


@app.command()
def retry(
    graph: GraphArgument,
    path: PathOption = None,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute failed rows again that may succeed now; unchanged rows are kept. Publishes a new revision.

    Example:

      graphbuild retry photos-graph
    """
    from graphbuild.build.run import run as build
    from graphbuild.pipeline import live_annotators, live_source

    with _refusing():
        source = live_source(graph, path)
        if source is None:
            ERR.print("the source is not at hand (--path PATH), so only annotators are retried", markup=False)
        makers = live_annotators(graph)
        report = build(source, makers, graph, executor=executor, address=address, retry=True, console=ERR)  # type: ignore[arg-type]
    raise typer.Exit(_show_report(report, graph, strict=False, as_json=as_json))


def _show_report(report: RunReport, where: Path, *, strict: bool, as_json: bool) -> int:
    from graphbuild import explain

    _say(report.model_dump_json(), explain.report_lines(report, where), as_json)
    for error in report.errors:
        ERR.print(error, markup=False)
    if report.units_left:
        ERR.print(f"{len(report.units_left)} units are left undone; continue with: {_command()}", markup=False)
        return UNDONE
    if report.failed:
        again = f"; {report.retriable} may succeed another time: graphbuild retry {shlex.quote(str(where))}"
        ERR.print(f"{report.failed} failed rows{again if report.retriable else ''}", markup=False)
    return UNDONE if strict and report.failed else DONE


def _say(document: str, lines: Iterable[Any], as_json: bool) -> None:
    """One JSON document, or lines and tables."""
    for line in [document] if as_json else lines:
        typer.echo(line) if isinstance(line, str) else OUT.print(line)


def _command() -> str:
    return shlex.join(["graphbuild", *sys.argv[1:]])


# ---- looking at a graph ----------------------------------------------------------------------------------------


@app.command()
def status(graph: GraphArgument, as_json: JsonOption = False) -> None:
    """Count nodes by kind and outcome, and say how far the graph is.

    Example:

      graphbuild status photos-graph --json
    """
    from graphbuild import explain
    from graphbuild.build.status import status_of
    from graphbuild.store.graph import Graph

    with _refusing():
        document = status_of(Graph.open(graph))
    _say(document.model_dump_json(), explain.status_lines(document), as_json)


@app.command()
def verify(
    graph: GraphArgument,
    full: Annotated[bool, typer.Option("--full/--quick", help="Read every byte, or only footers and sizes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that a graph is what its commits say. Exit code 1 if it is not.

    Example:

      graphbuild verify photos-graph --full
    """
    from graphbuild import explain
    from graphbuild.store.verify import verify as check

    with _refusing():
        verdict = check(graph, "full" if full else "quick")
    _say(json.dumps(vars(verdict)), explain.verdict_lines(verdict, graph, full), as_json)
    raise typer.Exit(UNDONE if verdict.problems else DONE)


@app.command()
def promote(
    graph: GraphArgument, version: Annotated[str, typer.Argument(help="v and 12 hex digits, see status.")]
) -> None:
    """Make a complete version live for the kinds it makes.

    Example:

      graphbuild promote photos-graph v1a2b3c4d5e6f
    """
    from graphbuild.build.promote import promote as make_live

    with _refusing():
        head = make_live(graph, version)
    kinds = sorted(kind for kind, live in head.items() if live.version == version)
    OUT.print(f"{version} is live for {', '.join(kinds)}", markup=False)


# ---- tasks -----------------------------------------------------------------------------------------------------


@app.command()
def tasks(
    graph: Annotated[Path | None, typer.Argument(help="Say what this graph serves.", metavar="[GRAPH]")] = None,
    paths: Annotated[str, typer.Option(help="A path list by name or .yaml.")] = "graph200k",
    as_json: JsonOption = False,
) -> None:
    """List the tasks of a path list; with a graph, how many items serve each and what is left of its probability.

    Example:

      graphbuild tasks sample-graph --paths graph200k
    """
    from graphbuild import explain
    from graphbuild.store.graph import Graph

    with _refusing():
        rows, why = (explain.tasks(paths), "") if graph is None else explain.served_tasks(Graph.open(graph), paths)
    _say(json.dumps(rows), explain.tasks_lines(rows), as_json)
    if why:
        raise _stop(why, UNDONE)


@app.command()
def sample(
    graph: GraphArgument,
    paths: PathsOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many grid tasks.")] = 8,
    seed: SeedOption = 0,
    index: Annotated[int, typer.Option(min=0, help="The first task.")] = 0,
    group: GroupOption = 1,
    mask: MaskOption = "code",
    layout: LayoutOption = "pipeline",
    resolution: Annotated[int, typer.Option(min=16, help="Side of a cell in pixels.")] = 384,
    cell_fit: Annotated[str, typer.Option(help="crop_square, stretch_square or aspect.")] = "crop_square",
    form: Annotated[str, typer.Option("--format", help="png, jsonl (ids), parquet or webdataset.")] = "png",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("grids"),
    snapshot: SnapshotOption = None,
) -> None:
    """Draw grid tasks: a labelled PNG of each and one line of ids in walks.jsonl, or another format.

    Example:

      graphbuild sample sample-graph --count 6 --seed 1 --out grids
    """
    from graphbuild import taskfiles
    from graphbuild.layouts import CellSwitches
    from graphbuild.store.graph import Graph

    with _refusing():
        taskfiles.writer_of(form)
        cells, opened = CellSwitches(cell_fit=cell_fit), Graph.open(graph, snapshot=snapshot)  # type: ignore[arg-type]
        sampler = taskfiles.open_sampler(opened, paths, seed=seed, group=group, mask=mask, layout=layout)
        ERR.print(f"{len(sampler.paths)} of {len(sampler.listed.paths)} paths can be served", markup=False)
        if error := taskfiles.keep_snapshot(opened):
            ERR.print(f"the snapshot is not kept: {error}", markup=False)
        indices = range(index, index + count)
        for file in taskfiles.write_tasks(sampler, indices, resolution, out, form=form, switches=cells):
            typer.echo(file)


@app.command()
def explain(
    graph: GraphArgument,
    item: Annotated[str | None, typer.Argument(help="An item's number or key.", metavar="[ITEM]")] = None,
    kind: Annotated[str | None, typer.Argument(help="The kind of one of its nodes.", metavar="[KIND]")] = None,
    index: Annotated[int | None, typer.Option("--sample", min=0, help="Explain this grid task instead.")] = None,
    variant: Annotated[int, typer.Option(min=0, help="Which of the item's nodes of that kind.")] = 0,
    paths: PathsOption = None,
    seed: SeedOption = 0,
    group: GroupOption = 1,
    mask: MaskOption = "code",
    layout: LayoutOption = "pipeline",
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where one node comes from and lies, or what a grid task consists of and why.

    Examples:

      graphbuild explain sample-graph 0 canny

      graphbuild explain sample-graph --sample 1234567
    """
    from graphbuild import explain as why
    from graphbuild.store.graph import Graph
    from graphbuild.taskfiles import open_sampler

    with _refusing():
        opened = Graph.open(graph, snapshot=snapshot)
        if index is not None and item is None:
            sampler = open_sampler(opened, paths, seed=seed, group=group, mask=mask, layout=layout)
            document, lines = why.sample(sampler, index), why.sample_lines
        elif index is None and item is not None and kind is not None:
            document, lines = why.node(opened, item, kind, variant), why.node_lines
        else:
            raise GraphError("explain: name ITEM and KIND, or --sample I")
    _say(json.dumps(document), lines(document), as_json)


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


if __name__ == "__main__":
    main()
