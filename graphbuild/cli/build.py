"""Commands that build a graph, count what it has, and check it."""

from __future__ import annotations

import json
import shlex
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphbuild.cli.application import app
from graphbuild.cli.console import (
    DONE,
    ERR,
    OUT,
    UNDONE,
    AcceptOption,
    AddressOption,
    AnnotatorsOption,
    DeviceOption,
    ExecutorOption,
    FactsOption,
    FolderArgument,
    FollowOption,
    GraphArgument,
    JsonOption,
    LimitOption,
    NodesOption,
    OutOption,
    PathOption,
    PipelineOption,
    ShardSizeOption,
    SourceOption,
    WaitOption,
    command_line,
    refusing,
    say,
    ticking,
)
from graphbuild.cli.text import shown
from graphbuild.contracts import RunReport
from graphbuild.errors import GraphError, counted

if TYPE_CHECKING:
    from graphbuild.store.parallel import Mapper


@app.command()
def run(
    folder: FolderArgument = None,
    source: SourceOption = None,
    path: PathOption = None,
    pipeline: PipelineOption = None,
    annotators: AnnotatorsOption = None,
    out: OutOption = None,
    limit: LimitOption = None,
    shard_size: ShardSizeOption = None,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    device: DeviceOption = "auto",
    wait: WaitOption = None,
    accept_changed: AcceptOption = False,
    follow_links: FollowOption = False,
    nodes: NodesOption = None,
    facts: FactsOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also recompute failed rows that may succeed now.")] = False,
    reuse: Annotated[str | None, typer.Option(help="Copy nodes of this graph that would come out the same.")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve progress for Prometheus at this port of 127.0.0.1."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if any row failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build or continue a graph: only what is missing or outdated is computed.

    Examples:

      graphbuild run photos/

      graphbuild run --source sample

      graphbuild run --source folder --path photos/ --annotators canny,lsd,grabcut --out photos-graph

      graphbuild run --source subjects200k --limit 1000 --out s200k
    """
    from graphbuild.cli.options import assemble, folder_alone
    from graphbuild.engine.run import run as build

    how: dict[str, Any] = {"limit": limit, "shard_size": shard_size, "accept_changed": accept_changed, "retry": retry}
    how |= {**_where(address, device, wait), "json_lines": as_json, "metrics_port": metrics_port, "reuse": reuse}
    with refusing():
        maps: dict[str, Any] = {"follow_links": follow_links, "nodes": nodes, "facts": facts}
        source, path, out = folder_alone(folder, source, path, out)
        chosen, producers, where = assemble(source, path, pipeline, annotators, out, **maps)
        if executor not in ("ray", "inline"):
            raise GraphError(f"--executor {executor}: it is ray or inline")
        report = build(chosen, producers, where, executor=executor, console=ERR, **how)  # type: ignore[arg-type]
    raise typer.Exit(show_report(report, where, strict=strict, as_json=as_json))


@app.command()
def plan(
    folder: FolderArgument = None,
    source: SourceOption = None,
    path: PathOption = None,
    pipeline: PipelineOption = None,
    annotators: AnnotatorsOption = None,
    out: OutOption = None,
    limit: LimitOption = None,
    shard_size: ShardSizeOption = None,
    accept_changed: AcceptOption = False,
    follow_links: FollowOption = False,
    nodes: NodesOption = None,
    facts: FactsOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Include failed rows that may succeed now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which units a run would compute, why, and the estimated time and size. Writes nothing.

    Example:

      graphbuild plan --source sample --out sample-graph
    """
    from graphbuild.cli import text
    from graphbuild.cli.options import assemble, folder_alone
    from graphbuild.engine.estimate import estimate
    from graphbuild.engine.plan import make_plan
    from graphbuild.store.locations import files_at

    how: dict[str, Any] = {"limit": limit, "shard_size": shard_size, "accept_changed": accept_changed, "retry": retry}
    with refusing():
        maps: dict[str, Any] = {"follow_links": follow_links, "nodes": nodes, "facts": facts}
        source, path, out = folder_alone(folder, source, path, out)
        chosen, producers, where = assemble(source, path, pipeline, annotators, out, **maps)
        planned = make_plan(files_at(where), chosen, producers, **how)
        estimated = estimate(planned, files_at(where))
    document, lines = text.plan_document(planned, where, estimated), text.plan_lines(planned, where, estimated)
    say(json.dumps(document), lines, as_json)


@app.command()
def retry(
    graph: GraphArgument,
    path: PathOption = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Annotators to use instead of the graph's: a pipeline's name or .yaml file.")
    ] = None,
    trust_graph: Annotated[
        bool, typer.Option("--trust-graph", help="Read the source where the graph says it was.")
    ] = False,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    device: DeviceOption = "auto",
    wait: WaitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute failed rows that may succeed now; other rows are kept. Publishes a new revision, adds no items.

    Nothing is read or run because a graph names it: the source's own rows are retried with --path, and your own
    annotators, model servers and local models with --pipeline.

    Examples:

      graphbuild retry photos-graph
      graphbuild retry photos-graph --path photos
    """
    from graphbuild.cli.options import live_annotators, live_source
    from graphbuild.engine.run import run as build
    from graphbuild.pipeline import load_annotators

    with refusing():
        source = live_source(graph, path, trust=trust_graph)
        if source is None:
            ERR.print("annotators only; --path FOLDER retries rows of the source too", markup=False)
        producers, refused = (list(load_annotators(pipeline)), []) if pipeline else live_annotators(graph)
        for line in refused:
            ERR.print(f"not retried: {shown(line)}", markup=False)
        how: dict[str, Any] = {"executor": executor, "retry": True, "new_items": False}
        how |= _where(address, device, wait)
        report = build(source, producers, graph, console=ERR, **how)
    code = show_report(report, graph, strict=False, as_json=as_json)
    raise typer.Exit(UNDONE if refused else code)


def _where(address: str | None, device: str, wait: float | None) -> dict[str, Any]:
    return {"address": address, "device": None if device == "auto" else device, "wait_s": wait}


def show_report(report: RunReport, where: str, *, strict: bool, as_json: bool, again: str = "") -> int:
    """Print what a run did; `again` is the command that retries its failed rows, by default `retry`."""
    from graphbuild.cli import text

    say(report.model_dump_json(), text.report_lines(report, where), as_json)
    if report.units_left:
        left = counted(len(report.units_left), "unit")
        ERR.print(f"{left} left undone; continue with: {command_line()}", markup=False)
        return UNDONE
    if report.failed:
        path = report.source_args.get("path")
        source = f" --path {shlex.quote(str(path))}" if path else ""
        again = again or f"graphbuild retry {shlex.quote(where)}{source}"
        hint = f"; {report.retriable} may succeed another time: {again}" if report.retriable else ""
        ERR.print(f"{counted(report.failed, 'failed row')}{hint}", markup=False)
    return UNDONE if report.errors or (strict and report.failed) else DONE


@app.command()
def status(
    graph: GraphArgument,
    failed: Annotated[bool, typer.Option("--failed", help="List failed rows.")] = False,
    kind: Annotated[str | None, typer.Option(help="With --failed: only this kind.")] = None,
    reason: Annotated[str | None, typer.Option(help="With --failed: only this reason.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count nodes by kind and outcome, and units done.

    Examples:

      graphbuild status photos-graph --json

      graphbuild status photos-graph --failed --kind canny
    """
    from graphbuild.cli import text
    from graphbuild.store.graph import Graph
    from graphbuild.store.status import failed_rows, status_of

    with refusing():
        if (kind or reason) and not failed:
            raise GraphError("--kind and --reason go with --failed")
        opened = Graph.open(graph)
        if failed:
            rows = failed_rows(opened, kind, reason)
            say(json.dumps(rows), text.failed_lines(rows), as_json)
            return
        document = status_of(opened)
    say(document.model_dump_json(), text.status_lines(document), as_json)


@app.command()
def verify(
    graph: GraphArgument,
    full: Annotated[bool, typer.Option("--full/--quick", help="Read every byte, or only footers and sizes.")] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Check in full and repair: the next run computes damaged units again.")
    ] = False,
    reread: Annotated[
        bool, typer.Option("--reread", help="With --repair: also read damaged items from the source again.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; default: one a CPU for large graphs.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Check on the Ray cluster at this address.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a graph against its commits. Exit code 1 if there is a problem.

    Examples:

      graphbuild verify photos-graph --full

      graphbuild verify photos-graph --full --jobs 8

      graphbuild verify photos-graph --repair
    """
    from graphbuild.cli import text
    from graphbuild.store.heads import newest_commits
    from graphbuild.store.locations import files_at
    from graphbuild.store.repair import repair
    from graphbuild.store.verify import verify as check

    if reread and not mend:
        raise typer.BadParameter("it goes with --repair", param_hint="--reread")
    with refusing():
        num_units = sum(map(len, newest_commits(files_at(graph)).values()))
        with side_by_side(num_units, jobs, address) as mapped, ticking("units", num_units) as tick:
            if mend:
                done = repair(graph, reread=reread, progress=tick, mapped=mapped)
            else:
                verdict = check(graph, "full" if full else "quick", progress=tick, mapped=mapped)
    if mend:
        say(json.dumps(vars(done)), text.repair_lines(done, graph), as_json)
        raise typer.Exit(UNDONE if done.withdrawn or done.lost or done.foreign else DONE)
    say(json.dumps(vars(verdict)), text.verdict_lines(verdict, graph, full), as_json)
    raise typer.Exit(UNDONE if verdict.problems else DONE)


LARGE = 64
"""Units of a graph from which on it is checked in several processes: they take a second to start."""


def side_by_side(units: int, jobs: int | None, address: str | None) -> AbstractContextManager[Mapper]:
    """How the check of one unit is applied to all."""
    from graphbuild.store.parallel import cores, processes

    if address is not None:
        from graphbuild.engine.executors.ray import processes_on_ray

        return processes_on_ray(address)
    number = min(jobs or (cores() if units >= LARGE else 1), max(1, units))
    return processes(number) if number > 1 else nullcontext(map)


@app.command()
def promote(
    graph: GraphArgument,
    version: Annotated[str, typer.Argument(help="v and 12 hex digits, as status lists them.", metavar="VERSION")],
) -> None:
    """Make a complete version the live one of its kinds.

    Example:

      graphbuild promote photos-graph v1a2b3c4d5e6f
    """
    from graphbuild.store.promote import promote as make_live

    with refusing():
        head = make_live(graph, version)
    kinds = sorted(kind for kind, live in head.items() if live.version == version)
    OUT.print(f"{version} is live for {', '.join(kinds)}", markup=False)
