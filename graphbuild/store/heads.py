"""What a graph says of itself: `graph.json`, lineage documents, heads and the newest commits."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter, ValidationError

from graphbuild.contracts import FEATURES, FORMAT, GraphDocument, LineageDocument, Live
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.parts import edges_folder, read_table
from graphbuild.store.workspace import Workspace

Head = dict[str, Live]
"""kind -> the version that serves it."""

Newest = dict[tuple[str, str], list[str]]
"""(annotator, version) -> the newest edges part of each shard, by shard."""

HEAD = TypeAdapter(Head)
_HEAD_TRIES = 100


def read_document(files: Files) -> GraphDocument:
    """`graph.json`, refused when its format or a feature is unknown."""
    if not files.exists("graph.json"):
        raise GraphError(
            f"{files.url} is not a graph (no graph.json); give the folder that was --out of a run, or make one with: "
            "graphbuild run --source sample"
        )
    try:
        document = GraphDocument.model_validate_json(files.read("graph.json"))
    except ValidationError as error:
        raise GraphError(f"{files.path('graph.json')}: {error}") from error
    unknown = sorted(set(document.features) - set(FEATURES))
    if document.format != FORMAT or unknown:
        raise GraphError(
            f"{files.path('graph.json')}: format {document.format} with features {document.features}; this release "
            f"reads format {FORMAT} with features {list(FEATURES)}: upgrade graphbuild"
        )
    return document


def read_lineage(files: Files, version: str) -> LineageDocument:
    return LineageDocument.model_validate_json(files.read(f"lineage/{version}.json"))


def read_head(files: Files) -> tuple[int, Head]:
    """The newest head and its number; number 0 and an empty map before the first."""
    numbers = [name for name in files.names("heads") if name.endswith(".json")]
    if not numbers:
        return 0, {}
    return int(numbers[-1].removesuffix(".json")), HEAD.validate_json(files.read(f"heads/{numbers[-1]}"))


def past_lives(files: Files) -> set[Live]:
    """Every (annotator, version) that some head has named; reads all heads."""
    names = [name for name in files.names("heads") if name.endswith(".json")]
    return {live for name in names for live in HEAD.validate_json(files.read(f"heads/{name}")).values()}


def change_head(files: Files, workspace: Workspace, change: Callable[[Head], Head]) -> Head:
    """Publish `change(newest head)` as the next head. A lost race rereads and reapplies; no change publishes nothing.

    Raises:
        GraphError: other runs kept winning.
    """
    for _ in range(_HEAD_TRIES):
        number, head = read_head(files)
        wanted = change(dict(head))
        if wanted == head:
            return head
        text = canonical_json(HEAD.dump_python(wanted, mode="json")) + "\n"
        try:
            files.publish(f"heads/{number + 1:08d}.json", text.encode(), workspace)
            return wanted
        except AlreadyPublished:
            continue
    raise GraphError(f"{files.url}: could not publish a head in {_HEAD_TRIES} tries; are many runs promoting at once?")


def newest_commits(files: Files) -> Newest:
    """(annotator, version) -> the newest edges part of each shard, by shard; from names alone."""
    newest: Newest = {}
    for annotator_folder in files.names("edges"):
        annotator = annotator_folder.removeprefix("annotator=")
        for version_folder in files.names(f"edges/{annotator_folder}"):
            version = version_folder.removeprefix("version=")
            folder = edges_folder(annotator, version)
            by_shard = {shard_index(name): f"{folder}/{name}" for name in files.names(folder)}
            if by_shard:  # a folder alone is what an error of the disk left
                newest[annotator, version] = [by_shard[shard] for shard in sorted(by_shard)]
    return newest


def shard_index(name: str) -> int:
    """12 of `.../shard-00012-r000.parquet`; names sort by revision, so the last one of a shard is the newest."""
    return int(name.rpartition("/")[2].split("-")[1])


def read_snapshot(files: Files, digest: str) -> tuple[Head, Newest]:
    name = f"snapshots/{digest}.parquet"
    if not files.exists(name):
        known = ", ".join(n.removesuffix(".parquet") for n in files.names("snapshots")) or "none"
        raise GraphError(f"{files.url} has no snapshot {digest!r}; published ones: {known}")
    table = read_table(files, name)
    newest: Newest = {}
    for row in table.to_pylist():
        part = (
            f"{edges_folder(row['annotator'], row['version'])}/shard-{row['shard']:05d}-r{row['revision']:03d}.parquet"
        )
        newest.setdefault((row["annotator"], row["version"]), []).append(part)
    return HEAD.validate_json(table.schema.metadata[b"graphbuild"]), newest
