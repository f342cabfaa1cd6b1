"""The command line: a thin face of the library."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from graphbuild import __version__
from graphbuild.contracts import GraphError, RunReport, schema_files

if TYPE_CHECKING:
    from graphbuild.build.plan import Plan

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
AcceptOption = Annotated[bool, typer.Option("--accept-changed", help="Add files whose bytes changed as new items.")]


def main() -> None:
    """Entry point: errors of use end with one line and exit code 2."""
    app()


@contextmanager
def _refusing() -> Iterator[None]:
    """Wrong usage and refused input: one message, exit code 2."""
    try:
        yield
    except (GraphError, ValueError) as error:
        ERR.print(f"graphbuild: {error}", markup=False)
        raise typer.Exit(REFUSED) from error
    except FileNotFoundError as error:
        ERR.print(f"graphbuild: {error.filename}: no such file or folder", markup=False)
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        ERR.print(f"graphbuild: {error}; what is committed is kept, run the same command again", markup=False)
        raise typer.Exit(UNDONE) from error
    except KeyboardInterrupt as error:
        ERR.print(f"graphbuild: stopped; what is committed is kept, continue with: {_command()}", markup=False)
        raise typer.Exit(UNDONE) from error


def _version(value: bool) -> None:
    if value:
        OUT.print(f"graphbuild {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
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
    executor: Annotated[str, typer.Option(help="ray, or inline for this process alone.")] = "ray",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")] = None,
    accept_changed: AcceptOption = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also compute failed rows again that may succeed now.")
    ] = False,
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

    with _refusing():
        chosen, makers, where = assemble(source, path, pipeline, annotators, out)
        if executor not in ("ray", "inline"):
            raise GraphError(f"--executor {executor}: it is ray or inline")
        report = build(
            chosen,
            makers,
            where,
            executor=executor,  # type: ignore[arg-type]
            limit=limit,
            shard_size=shard_size,
            accept_changed=accept_changed,
            retry=retry,
            address=address,
            console=ERR,
        )
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
    from graphbuild.build.plan import make_plan
    from graphbuild.pipeline import assemble
    from graphbuild.store.publish import Files

    options: dict[str, Any] = {
        "limit": limit,
        "shard_size": shard_size,
        "accept_changed": accept_changed,
        "retry": retry,
    }
    with _refusing():
        chosen, makers, where = assemble(source, path, pipeline, annotators, out)
        _show_plan(make_plan(Files(where), chosen, makers, **options), where, as_json)


@app.command()
def retry(
    graph: GraphArgument,
    path: PathOption = None,
    executor: Annotated[str, typer.Option(help="ray, or inline for this process alone.")] = "ray",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")] = None,
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


def _show_plan(plan: Plan, where: Path, as_json: bool) -> None:
    from graphbuild.build.report import plan_table

    rows = [{"annotator": name, "why": why, "units": units} for (name, why), units in plan.reasons().items()]
    todo, total = len(plan.units), plan.wanted
    if as_json:
        typer.echo(
            json.dumps(
                {"graph": str(where), "units": {"todo": todo, "wanted": total}, "items": plan.num_items, "plan": rows}
            )
        )
        return
    if not rows:
        OUT.print(f"{where}: nothing to do, all {total} units are committed", markup=False)
        return
    OUT.print(plan_table(plan, where))
    if plan.vanished:
        OUT.print(f"{plan.vanished} known items are no longer listed; their nodes stay", markup=False)


def _show_report(report: RunReport, where: Path, *, strict: bool, as_json: bool) -> int:
    from graphbuild.build.report import report_table

    if as_json:
        typer.echo(report.model_dump_json())
    elif not report.annotators and not report.units_left:
        OUT.print(f"{where}: nothing to do, all {report.units_wanted} units are committed", markup=False)
    else:
        OUT.print(report_table(report))
        speed = f"{report.items_per_second:.1f} items/s, {report.annotator_share:.0%} of worker time inside annotators"
        OUT.print(f"{report.seconds:.1f} s, {speed}", markup=False)
    for error in report.errors:
        ERR.print(error, markup=False)
    if report.units_left:
        ERR.print(f"{len(report.units_left)} units are left undone; continue with: {_command()}", markup=False)
        return UNDONE
    if report.failed:
        again = f"; {report.retriable} may succeed another time: graphbuild retry {shlex.quote(str(where))}"
        ERR.print(f"{report.failed} failed rows{again if report.retriable else ''}", markup=False)
    return UNDONE if strict and report.failed else DONE


def _command() -> str:
    return shlex.join(["graphbuild", *sys.argv[1:]])


# ---- looking at a graph ----------------------------------------------------------------------------------------


@app.command()
def status(graph: GraphArgument, as_json: JsonOption = False) -> None:
    """Count nodes by kind and outcome, and say how far the graph is.

    Example:

      graphbuild status photos-graph --json
    """
    from graphbuild.build.report import status_table
    from graphbuild.build.status import status_of
    from graphbuild.store.graph import Graph

    with _refusing():
        document = status_of(Graph.open(graph))
    if as_json:
        typer.echo(document.model_dump_json())
        return
    OUT.print(status_table(document))
    for version in document.not_live:
        OUT.print(f"not live: {version}", markup=False)
    OUT.print(f"snapshot {document.snapshot}", markup=False)


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
    from graphbuild.store.verify import verify as check

    with _refusing():
        verdict = check(graph, "full" if full else "quick")
    if as_json:
        typer.echo(json.dumps(vars(verdict)))
    else:
        for problem in verdict.problems:
            OUT.print(problem, markup=False)
        hashed = f", {verdict.nodes} nodes hashed" if full else ""
        sound = "sound" if not verdict.problems else f"{len(verdict.problems)} problems"
        OUT.print(f"{graph}: {verdict.commits} commits, {verdict.parts} parts{hashed}: {sound}", markup=False)
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


# ---- sampling --------------------------------------------------------------------------------------------------


@app.command()
def sample(
    graph: GraphArgument,
    paths: Annotated[
        str | None, typer.Option(help="A path list by name or .yaml; default: all that the graph serves.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many grid tasks.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed draws other tasks.")] = 0,
    index: Annotated[int, typer.Option(min=0, help="The first task.")] = 0,
    resolution: Annotated[int, typer.Option(min=16, help="Side of a cell in pixels.")] = 384,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and walks.jsonl.")] = Path("grids"),
    snapshot: Annotated[str | None, typer.Option(help="Draw from a published snapshot.")] = None,
) -> None:
    """Draw grid tasks: a labelled PNG of each, and one line of ids in walks.jsonl.

    Example:

      graphbuild sample sample-graph --count 6 --seed 1 --out grids
    """
    from graphbuild.grid import write_tasks
    from graphbuild.store.graph import Graph
    from graphbuild.walk import PathSampler

    with _refusing():
        opened = Graph.open(graph, snapshot=snapshot)
        on_missing = "drop" if paths is None else "error"
        sampler = PathSampler(opened, paths or "graph200k", seed=seed, on_missing=on_missing)  # type: ignore[arg-type]
        ERR.print(f"{len(sampler.paths)} of {len(sampler.listed.paths)} paths can be served", markup=False)
        _keep_snapshot(opened)
        for line in write_tasks(sampler, range(index, index + count), resolution, out):
            typer.echo(line)


def _keep_snapshot(graph: Any) -> None:
    """Publish the snapshot that the walks refer to; a graph that cannot be written to is sampled all the same."""
    import secrets

    from graphbuild.store.publish import Workspace

    try:
        workspace = Workspace.create(graph.store, f"sample-{secrets.token_hex(3)}")
    except OSError as error:
        ERR.print(f"the snapshot is not kept: {error}", markup=False)
        return
    try:
        graph.publish_snapshot(workspace)
    finally:
        workspace.close()


# ---- contracts -------------------------------------------------------------------------------------------------


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
