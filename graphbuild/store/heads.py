"""Documents of a graph: `graph.json`, lineages, heads and snapshots; and its newest commits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from graphbuild.contracts import (
    FEATURES,
    FORMAT,
    SNAPSHOT,
    CommitRef,
    GraphDocument,
    KindName,
    LineageDocument,
    Live,
    ProducerName,
    Version,
)
from graphbuild.errors import GraphError, Unreachable
from graphbuild.hashing import canonical_json, digest_of
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.parts import commit_name, edges_folder, read_table, told, unreadable
from graphbuild.store.workspace import Workspace

Head = dict[KindName, Live]
"""kind -> the version that serves it."""

Newest = dict[tuple[str, str], list[str]]
"""(annotator, version) -> the newest edges part of each shard, by shard."""

MOST_DOCUMENT_BYTES = 16 << 20
HEAD = TypeAdapter(Head)
_PRODUCER, _VERSION = TypeAdapter(ProducerName), TypeAdapter(Version)
_TRIES = 100
_HEAD_FILE = re.compile(r"(\d{8,})\.json")
_LINEAGE_FILE = re.compile(r"(v[0-9a-f]{1,12})\.json")
_SNAPSHOT_FILE = re.compile(r"([0-9a-f]{16})\.parquet")
_EDGES_FILE = re.compile(r"shard-(\d{5,})-r(\d{3,})\.parquet")
_NODES_FILE = re.compile(r"shard-\d{5,}-r\d{3,}-\d+-[0-9a-f]{16}\.parquet")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


def read_json(files: Files, name: str, parse: Callable[[bytes], T]) -> T:
    """Read a JSON document and validate it with `parse`.

    Raises:
        GraphError: missing, larger than `MOST_DOCUMENT_BYTES`, or not what it should be.
    """
    try:
        return parse(files.read(name, MOST_DOCUMENT_BYTES))
    except OSError as error:
        raise unreadable(files, name, error) from error
    except ValidationError as error:
        raise GraphError(f"{files.path(name)}: {told(error)}; see graphbuild verify") from error


def read_document(files: Files) -> GraphDocument:
    """`graph.json`, refused when its format or a feature is unknown."""
    if not files.exists("graph.json"):
        if files.remote:
            files.names(".")  # fails if it is the bucket that is not there, which an answer to HEAD does not tell
        raise GraphError(
            f"{files.url} is not a graph (no graph.json); give the folder that was --out of a run, or make one with: "
            "graphbuild run --source sample"
        )
    document = read_json(files, "graph.json", GraphDocument.model_validate_json)
    unknown = sorted(set(document.features) - set(FEATURES))
    if document.format != FORMAT or unknown:
        raise GraphError(
            f"{files.path('graph.json')}: format {document.format} with features {document.features}; this release "
            f"reads format {FORMAT} with features {list(FEATURES)}: upgrade graphbuild"
        )
    return document


# ---- lineage and heads -----------------------------------------------------------------------------------------


def read_lineage(files: Files, version: str) -> LineageDocument:
    """The document that a version is the hash of."""
    return read_json(files, f"lineage/{version}.json", LineageDocument.model_validate_json)


def lineages(files: Files) -> list[str]:
    """Versions with a lineage document."""
    return [match[1] for match in _named(files, "lineage", _LINEAGE_FILE)]


def read_head(files: Files) -> tuple[int, Head]:
    """The newest head and its number; number 0 and an empty map before the first."""
    number = max(head_numbers(files), default=0)
    return number, head_of(files, number) if number else {}


def head_numbers(files: Files) -> list[int]:
    return [int(match[1]) for match in _named(files, "heads", _HEAD_FILE)]


def head_names(files: Files) -> list[str]:
    """All documents of heads."""
    return [f"heads/{match[0]}" for match in _named(files, "heads", _HEAD_FILE)]


def head_of(files: Files, number: int) -> Head:
    return read_json(files, f"heads/{number:08d}.json", HEAD.validate_json)


def past_lives(files: Files) -> set[Live]:
    """Every (annotator, version) that some head has named; reads all heads."""
    return {live for number in head_numbers(files) for live in head_of(files, number).values()}


def change_head(files: Files, workspace: Workspace, change: Callable[[Head], Head]) -> Head:
    """Publish `change(newest head)` as the next head. A lost race rereads and reapplies; no change publishes nothing.

    Raises:
        GraphError: other runs kept winning.
    """
    return publish_next(files, workspace, "heads", shape=HEAD, newest=read_head, change=change)


def publish_next(
    files: Files,
    workspace: Workspace,
    folder: str,
    *,
    shape: TypeAdapter[dict[K, V]],
    newest: Callable[[Files], tuple[int, dict[K, V]]],
    change: Callable[[dict[K, V]], dict[K, V]],
) -> dict[K, V]:
    """Publish `change(newest map)` as the next numbered document of a folder. A lost race rereads and reapplies; no
    change publishes nothing.

    Raises:
        GraphError: other processes kept winning.
    """
    for _ in range(_TRIES):
        number, found = newest(files)
        wanted = change(dict(found))
        if wanted == found:
            return found
        text = canonical_json(shape.dump_python(wanted, mode="json")) + "\n"
        try:
            files.publish(f"{folder}/{number + 1:08d}.json", text.encode(), workspace)
            return wanted
        except AlreadyPublished:
            continue
    raise GraphError(f"{files.url}: could not publish in {folder}/ in {_TRIES} tries; are many processes at it?")


# ---- commits and snapshots -------------------------------------------------------------------------------------


def newest_commits(files: Files) -> Newest:
    """(annotator, version) -> the newest edges part of each shard, by shard; from names alone.

    A source is listed after everything made from it: whatever a run commits meanwhile, the items of all that is listed
    are listed too.
    """
    newest: Newest = {}
    for (annotator, version), revisions in committed(files).items():
        folder = edges_folder(annotator, version)
        if revisions:  # a folder alone is what an error of the disk left
            newest[annotator, version] = [f"{folder}/{names[max(names)]}" for _, names in sorted(revisions.items())]
    return newest


def committed(files: Files) -> dict[tuple[str, str], dict[int, dict[int, str]]]:
    """(annotator, version) -> shard -> revision -> file name, of all edges parts. Other names are not ours."""
    found: dict[tuple[str, str], dict[int, dict[int, str]]] = {}
    annotators = _folders(files, "edges", "annotator=", _PRODUCER)
    for annotator in sorted(annotators, key=lambda name: name.startswith("source:")):
        for version in _folders(files, f"edges/annotator={annotator}", "version=", _VERSION):
            revisions = found[annotator, version] = {}
            for match in _named(files, edges_folder(annotator, version), _EDGES_FILE):
                revisions.setdefault(int(match[1]), {})[int(match[2])] = match[0]
    return found


def with_items(files: Files, document: GraphDocument, newest: Newest) -> Newest:
    """The commits of shards whose source unit is committed: others are damaged, or of a run under way.

    Raises:
        GraphError: all items are of another source than the graph's.
    """
    source = f"source:{document.source.name}"
    others = {annotator for annotator, _ in newest if annotator.startswith("source:")}
    if others and source not in others:
        raise GraphError(
            f"{files.path('graph.json')}: its source is {document.source.name!r}, its items are of "
            f"{', '.join(sorted(others))}; see graphbuild verify"
        )
    spine = {shard_index(name) for (annotator, _), names in newest.items() if annotator == source for name in names}
    inside = {producer: [name for name in names if shard_index(name) in spine] for producer, names in newest.items()}
    return {producer: names for producer, names in inside.items() if names}


def shard_index(name: str) -> int:
    """12 of `.../shard-00012-r000.parquet`."""
    return int(name.rpartition("/")[2].split("-")[1])


class Snapshot(NamedTuple):
    head: Head
    commits: pa.Table

    @property
    def refs(self) -> list[CommitRef]:
        return [CommitRef.model_validate(row) for row in self.commits.to_pylist()]

    @property
    def newest(self) -> Newest:
        newest: Newest = {}
        for ref in self.refs:
            name = commit_name(ref.annotator, ref.version, ref.shard, ref.revision)
            newest.setdefault((ref.annotator, ref.version), []).append(name)
        return newest


def snapshot_digest(head: Head, commits: pa.Table) -> str:
    """The digest of a snapshot."""
    return digest_of([HEAD.dump_python(head, mode="json"), commits.to_pylist()])


def snapshot_bytes(table: pa.Table) -> bytes:
    """The file of a snapshot, its head being the metadata of `table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def snapshots(files: Files) -> list[str]:
    """Digests of the published snapshots."""
    return [match[1] for match in _named(files, "snapshots", _SNAPSHOT_FILE)]


def read_snapshot(files: Files, digest: str) -> Snapshot:
    """A published snapshot.

    Raises:
        GraphError: there is none, or its content does not match its digest.
    """
    name = f"snapshots/{digest}.parquet"
    if not files.exists(name):
        gone = " (gc has removed it)" if files.exists(f"snapshots/{digest}.json") else ""
        raise GraphError(
            f"{files.url} has no snapshot {digest!r}{gone}; published ones: {', '.join(snapshots(files)) or 'none'}"
        )
    table = read_table(files, name)
    try:
        head = HEAD.validate_json((table.schema.metadata or {}).get(b"graphbuild", b""))
        found = Snapshot(head, table.replace_schema_metadata(None))
        if found.commits.schema.equals(SNAPSHOT) and snapshot_digest(*found) == digest and found.refs is not None:
            return found
    except ValueError:
        pass
    raise GraphError(f"{files.path(name)}: its content is not what it is named after; see graphbuild verify")


def foreign_names(files: Files) -> Iterator[str]:
    """Files in the folders of the format whose names the format does not have; hidden files are ignored."""
    flat = {
        "heads": _HEAD_FILE,
        "lineage": _LINEAGE_FILE,
        "exclusions": _HEAD_FILE,
        "snapshots": re.compile(r"[0-9a-f]{16}\.(parquet|json)"),
        "items": re.compile(r"shard-\d{5,}(-r\d{3,}-[0-9a-f]{16})?\.parquet"),
    }
    for folder, pattern in flat.items():
        yield from _others(files, folder, pattern)
    edges = re.compile(rf"{_EDGES_FILE.pattern}|removed\.json")
    deep = {"edges": ("annotator=.+", edges), "nodes": ("kind=.+", _NODES_FILE)}
    for root, (producers, pattern) in deep.items():
        yield from _others(files, root, re.compile(producers))
        for producer in (name for name in _listed(files, root) or () if re.fullmatch(producers, name)):
            folder = f"{root}/{producer}"
            yield from _others(files, folder, re.compile("version=.+"))
            for version in (name for name in _listed(files, folder) or () if name.startswith("version=")):
                yield from _others(files, f"{folder}/{version}", pattern)


def _others(files: Files, folder: str, pattern: re.Pattern[str]) -> list[str]:
    if (names := _listed(files, folder)) is None:
        return [folder]
    return [f"{folder}/{name}" for name in names if not (name.startswith(".") or pattern.fullmatch(name))]


def _listed(files: Files, folder: str) -> list[str] | None:
    """None for a link or a file in place of a folder."""
    try:
        return files.names(folder)
    except Unreachable:
        raise
    except (GraphError, OSError):
        return None


def _named(files: Files, folder: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The names in a folder that match."""
    return [match for name in files.names(folder) if (match := pattern.fullmatch(name))]


def _folders(files: Files, folder: str, prefix: str, grammar: TypeAdapter[str]) -> Iterator[str]:
    for name in files.names(folder):
        try:
            if name.startswith(prefix):
                yield grammar.validate_python(name.removeprefix(prefix))
        except ValidationError:
            continue  # no name of ours
