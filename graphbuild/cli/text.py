"""What commands print for people: tables and lines of plans, runs, graphs, task lists, walks, nodes and weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import filesize
from rich.table import Table
from rich.text import Text

from graphbuild.contracts import RunReport, Status, StatusDocument
from graphbuild.errors import counted
from graphbuild.tasks.sheet import visible

if TYPE_CHECKING:
    from graphbuild.engine.estimate import Estimate
    from graphbuild.engine.gc import Collection, Waste
    from graphbuild.engine.plan import Plan
    from graphbuild.store.repair import Repair
    from graphbuild.store.verify import Verdict

Document = dict[str, Any]
_BARS = " ▁▂▃▄▅▆▇█"
OUTCOMES: tuple[Status, ...] = ("ok", "skipped", "failed")


def shown(text: object) -> str:
    """An untrusted text on one line: control characters and unprintable ones as escapes."""
    return visible(str(text))


def shown_lines(text: object) -> str:
    """`shown` for a message of several lines."""
    return "\n".join(map(shown, str(text).split("\n")))


# ---- builds ----------------------------------------------------------------------------------------------------


def plan_document(planned: Plan, where: str, estimated: Estimate | None) -> Document:
    """What a run would compute, and why; what goes live with it; what it will take, if earlier runs tell."""
    rows = [{"annotator": name, "why": why, "units": units} for (name, why), units in planned.reasons().items()]
    models = {producer.name: producer.lineage.model for producer in planned.producers if producer.lineage.model}
    return {
        "graph": str(where),
        "units": {"todo": len(planned.units), "wanted": planned.wanted},
        "items": planned.num_items,
        "plan": rows,
        "models": models,
        "notes": list(planned.notes),
        "goes_live": {kind: live.model_dump() for kind, live in planned.replaces().items()},
        "estimate": None if estimated is None else asdict(estimated),
    }


def plan_lines(planned: Plan, where: str, estimated: Estimate | None) -> Iterator[str | Table]:
    """`plan_document` as a table and lines."""
    yield from planned.notes
    for kind, live in planned.replaces().items():
        old = planned.head[kind]
        yield f"{kind}: {live.annotator} {live.version} goes live when complete, not {old.annotator} {old.version}"
    if not planned.units:
        yield f"{where}: nothing to do, {planned.wanted} of {planned.wanted} units are committed"
        return
    yield plan_table(planned, where)
    if estimated is not None:
        took, work = (timedelta(seconds=round(s) or 1) for s in (estimated.seconds, estimated.work_seconds))
        yield f"about {took} with as many workers as in earlier runs ({work} of work), {estimated.nbytes / 1e6:.1f} MB"
        if estimated.unknown:
            yield f"not counted, as they have not run on this graph: {', '.join(estimated.unknown)}"
    if planned.vanished:
        yield f"{counted(planned.vanished, 'known item')} no longer listed; what was made of them stays"


def report_lines(report: RunReport, where: str) -> Iterator[str | Table]:
    """What a run did."""
    for kind, live in report.went_live.items():
        yield f"{kind}: {live.annotator} {live.version} is live now"
    if not report.annotators and not report.units_left:
        yield f"{where}: nothing to do, {report.units_wanted} of {report.units_wanted} units are committed"
        return
    yield report_table(report)
    speed = f"{report.items_per_second:.1f} items/s, {report.annotator_share:.0%} of worker time inside annotators"
    yield f"{report.seconds:.1f} s, {speed}"


def status_lines(document: StatusDocument) -> Iterator[str | Table]:
    """Progress of a graph: outcomes per kind, versions, and units that are not committed."""
    yield status_table(document)
    for version, params in document.params.items():
        live = "not live" if version in document.not_live else "live"
        if params or live == "not live":
            yield f"{live}: {version} {' '.join(f'{name}={value}' for name, value in params.items())}".rstrip()
    for kind, counts in document.scores.items():
        yield f"{kind}: {bars(counts)} from 0 to 1, {counted(sum(counts), 'node')}, {counts[0]} below 0.1"
    yield from (f"saved in unfinished units: {counted(rows, 'row')} of {name}" for name, rows in document.saved.items())
    yield from (f"not committed: {unit}" for unit in document.gaps[:10])
    if len(document.gaps) > 10:
        yield f"not committed: {counted(len(document.gaps) - 10, 'more unit')}"
    if document.excluded:
        yield f"{counted(document.excluded, 'item')} excluded; list: graphbuild exclude GRAPH"
    yield f"snapshot {document.snapshot}"


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line: a bar for each count, a blank for none."""
    most = max(counts, default=0)
    return "".join(_BARS[-(-(len(_BARS) - 1) * count // most)] if most else " " for count in counts)


def failed_lines(rows: Sequence[Document]) -> Iterator[str | Table]:
    """Failed rows, one line each."""
    for row in rows:
        variant = f" variant {row['variant']}" if row["variant"] else ""
        yield f"{row['key']}: {row['kind']}{variant}: {row['reason']}: {row['detail'] or 'no detail'}"
    yield counted(len(rows), "failed row")


def verdict_lines(verdict: Verdict, where: str, full: bool) -> Iterator[str]:
    """Whether a graph is what its commits say."""
    yield from verdict.problems
    hashed = f", {counted(verdict.nodes, 'node')} hashed" if full else ""
    sound = counted(len(verdict.problems), "problem") if verdict.problems else "sound"
    yield f"{where}: {counted(verdict.commits, 'commit')}, {counted(verdict.parts, 'part')}{hashed}: {sound}"


def repair_lines(done: Repair, where: str) -> Iterator[str]:
    """What became of damaged files, and the command that continues."""
    yield from (f"restored: {name}" for name in done.restored)
    yield from (f"withdrawn, to be computed again: {name}" for name in done.withdrawn)
    for name in done.lost:
        source = "source:" in name or name.startswith(("nodes/", "items/"))
        yield f"lost: {name}" + (
            "; --reread reads the source again" if source else "; take it from a copy of the graph"
        )
    yield from (f"no file of a graph, move it elsewhere: {name}" for name in done.foreign)
    if done.withdrawn:
        yield f"to continue: graphbuild retry {where}"
    elif not (done.restored or done.lost or done.foreign):
        yield f"{where}: sound"


def gc_lines(found: Collection, where: str, again: str) -> Iterator[str | Table]:
    """What goes or went, what cannot be opened afterwards, what stays, and the command that deletes.

    Args:
        again: the command that was given.
    """
    verb = "deleted" if found.deleted else "would be deleted"
    if found.waste:
        yield _waste_table(found.waste)
    for digest, use in found.snapshots.items():
        yield f"snapshot {digest} (used by: {use}) cannot be opened {'any more' if found.deleted else 'afterwards'}"
    yield from (f"stays: {version}: {why}" for version, why in found.kept.items())
    if not found.waste:
        yield f"{where}: nothing to delete"
        return
    yield f"{filesize.decimal(found.nbytes)} {verb}" + ("" if found.deleted else f"; to do so: {again} --delete")


def _waste_table(waste: Sequence[Waste]) -> Table:
    table = Table("what", "annotator", "version", "kind", "count", "size", box=None, pad_edge=False)
    named = {"version": "replaced version", "excluded": "nodes of excluded items", "leftover": "left over parts"}
    for line in waste:
        if line.count:
            size = filesize.decimal(line.nbytes)
            table.add_row(
                named[line.what], shown(line.annotator), line.version, shown(line.kind), str(line.count), size
            )
    return table


def report_table(report: RunReport) -> Table:
    """The run as a table for people."""
    columns = ("annotator", "units", "ok", "skipped", "failed", "nodes/s per worker", "reasons")
    rows = []
    for name, a in report.annotators.items():
        speed = (a.ok + a.skipped + a.failed - a.reused) / a.seconds if a.seconds else 0.0
        rows.append(
            (name, a.units, a.ok, a.skipped, a.failed, f"{speed:.1f}", _reasons(dict(sorted(a.reasons.items()))))
        )
    return _table(f"{report.graph}: {report.units_done} of {report.units_wanted} units committed", columns, rows)


def plan_table(plan: Plan, where: str) -> Table:
    """What a run would compute, and why."""
    title = f"{where}: {len(plan.units)} of {plan.wanted} units to compute, {counted(plan.num_items, 'item')}"
    rows = [(name, units, why) for (name, why), units in plan.reasons().items()]
    return _table(title, ("annotator", "units", "why"), rows)


def status_table(status: StatusDocument) -> Table:
    """Nodes by kind and outcome."""
    title = f"{status.graph}: {counted(status.items, 'item')}, {status.units['done']} of {status.units['wanted']} units"
    rows = []
    for kind, counts in status.kinds.items():
        live, reasons = status.live[kind], _reasons(status.reasons.get(kind, {}))
        size = filesize.decimal(status.nbytes.get(kind, 0))
        outcomes = (counts[outcome] for outcome in OUTCOMES)
        rows.append((kind, *outcomes, size, f"{live.annotator} {live.version}", reasons))
    return _table(title, ("kind", "ok", "skipped", "failed", "size", "annotator", "reasons"), rows)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Text columns aligned left, numbers right."""
    table = Table(title=Text(shown(title), "table.title"))
    for column in columns:
        table.add_column(column, justify="left" if column in ("annotator", "kind", "reasons", "why") else "right")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table


# ---- task lists, walks, nodes --------------------------------------------------------------------------------


def tasks_lines(rows: Sequence[Document], bridging: int) -> Iterator[str]:
    """A table of the paths of a task list, and how many items a split leaves out."""
    names, types = (max(len(row[key]) for row in rows) for key in ("name", "type"))
    with_items = "items" in rows[0]
    head = f"{'path':{names}}  cells  {'type':{types}}  probability"
    yield head + ("    items" if with_items else "")
    for row in rows:
        line = f"{row['name']:{names}}  {row['cells']:5}  {row['type']:{types}}  {row['probability']:11.6f}"
        yield line + (f"  {row['items']:7}" if with_items else "")
    if with_items:
        yield f"{sum(row['probability'] > 0 for row in rows)} of {len(rows)} paths can be served"
    if bridging:
        yield f"{counted(bridging, 'item')} in no task: linked to items of both sides of the split"


def sample_lines(document: Document) -> Iterator[str]:
    """What `explain.sample` says, as lines."""
    given = [f"{name} {document[name]}" for name in ("seed", "path_repeat", "snapshot")]
    switches = document["switches"].items()
    given += [f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in switches]
    chance = f"chance {document['chance']:.3g} in {document['paths']}"
    yield f"grid task {document['index']}: {document['path']} ({document['type']}), {chance}"
    yield f"drawn with {', '.join(given)}"
    for number, column in enumerate(document["columns"], 1):
        roles = [name for name in ("target", "hole") if column[name]]
        yield f'column {number}: {column["kind"]}{"".join(f", {role}" for role in roles)}: "{column["phrase"]}"'
    for number, row in enumerate(document["rows"], 1):
        yield f"row {number} ({row['role']}): item {row['item_ix']}, {row['key']}"
        yield from (f"  {_cell_line(cell)}" for cell in row["cells"])
    yield f"holes: {', '.join(document['mask']['kinds'])}: {document['mask']['why']}"
    for part in ("layout", "task", "content"):
        words = document["words"][part]
        yield f"{part}: {words['text'] or '-'}{'' if words['kept'] else ' (left out of the prompt)'}"
    yield f"prompt: {document['words']['prompt']}"


def _cell_line(cell: Document) -> str:
    if "seed" not in cell:
        return f"{cell['kind']}: variant {cell['variant']}, version {cell['version']}"
    made_of = ", ".join(f"{kind} {version}" for kind, version in cell["computed_from"].items())
    return f"{cell['kind']}: computed on read from {made_of}, seed {cell['seed']}"


def node_lines(document: Document) -> Iterator[str]:
    """What `explain.node` says, as lines."""
    name = f"item {document['item_ix']} ({document['key']}), {document['kind']}"
    if "computed_from" in document:
        yield f"{name}: computed on read, never stored, from:"
        for parent in document["computed_from"]:
            yield from (f"  {line}" for line in node_lines(parent))
        return
    edge = document["edge"]
    reason = f" ({edge['reason']})" if edge["reason"] else ""
    yield f"{name}, variant {document['variant']}: {edge['status']}{reason}"
    model = f", model {document['model']}" if document["model"] else ""
    yield f"made by {document['annotator']} {document['version']}{model}, with {document['params'] or 'no parameters'}"
    for parent in edge["parents"] or ():
        yield "parent: " + ", ".join(f"{key} {value}" for key, value in parent.items() if value is not None)
    if edge["part"]:
        yield f"lies in {edge['part']}, byte {edge['offset']}, {edge['nbytes']} bytes, hash {edge['content_hash']}"


# ---- weights ------------------------------------------------------------------------------------------


def weights_table(rows: Sequence[Document]) -> Table:
    """Annotators and their weights: one line per checkpoint."""
    table = Table("annotator", "makes", "model", "licence", "GB", "memory GB", "here", box=None, pad_edge=False)
    for row in rows:
        name, makes = row["annotator"], ", ".join(row["makes"])
        without = f"broken: {row['missing'][0]}" if row["missing"] and not makes else "no weights"
        for weights in row["checkpoints"] or [{}]:
            here = {True: "yes", False: "no"}.get(weights.get("cached"), "")
            size, memory = (f"{value:g}" if value else "" for value in (weights.get("gigabytes"), row["memory_gb"]))
            model = weights.get("model", without)
            cells = (name, makes, model, weights.get("licence", ""), size, memory, here)
            table.add_row(*(Text(shown(cell)) for cell in cells))
            name = makes = ""
    return table
