"""Checks before a run starts (weights, packages, memory, locations) and warnings for its user."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from graphbuild.annotators.base import Annotator, name_of
from graphbuild.contracts import GraphDocument, SourceDocument
from graphbuild.engine.records import Producer
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json
from graphbuild.models.device import device_memory
from graphbuild.sources.base import Source, source_params
from graphbuild.store.files import Files
from graphbuild.store.heads import Head, read_document
from graphbuild.store.workspace import refuse_foreign


def missing_parts(annotators: Sequence[Annotator]) -> Iterator[str]:
    """One line for each missing requirement, with the command that installs or downloads it."""
    for annotator in annotators:
        yield from (f"{name_of(annotator)}: {line}" for line in annotator.missing())


def fetch_missing(annotator: Annotator) -> None:
    """Download weights that this machine lacks, at the commit that was planned; once, however many workers ask."""
    for checkpoint in annotator.checkpoints().values():
        if checkpoint.missing():
            checkpoint.fetch()


def without_gpu(annotators: Sequence[Annotator]) -> Iterator[str]:
    """One line if networks will run on the CPU."""
    networks = [name_of(annotator) for annotator in annotators if annotator.resources.memory_gb]
    if networks and device_memory()[0] == "cpu":
        yield f"there is no GPU here: {', '.join(networks)} will run on the CPU, slowly"


def too_large(annotators: Sequence[Annotator]) -> Iterator[str]:
    """One line for each annotator that asks for more memory than this machine's device has."""
    asked = {name_of(annotator): annotator.resources.memory_gb for annotator in annotators}
    if not any(asked.values()):
        return
    device, memory = device_memory()
    word = "GPU" if device == "cuda" else "main"
    for name, gigabytes in asked.items():
        if gigabytes > memory:
            yield (
                f"{name}: asks for {gigabytes:g} GB of {word} memory, there are {memory:.0f}: choose a smaller model, "
                "or say resources: {memory_gb: ...} in the pipeline if it needs less"
            )


def non_commercial(annotators: Sequence[Annotator]) -> Iterator[str]:
    """One line for each checkpoint whose licence forbids commercial use."""
    for annotator in annotators:
        for checkpoint in annotator.checkpoints().values():
            if not checkpoint.commercial:
                yield f"{name_of(annotator)}: {checkpoint.repository} is not for commercial use ({checkpoint.licence})"


def refuse_inside(source: Source, out: str) -> None:
    """Refuse a graph among the pictures it is made of: it would hide them, or be listed with them.

    Raises:
        GraphError: `out` lies in a folder of the source.
    """
    given = [getattr(source, f.name) for f in fields(source) if not f.metadata.get("output", True)]
    for folder in (place for place in given if isinstance(place, str | os.PathLike)):
        if "://" in out or "://" in str(folder):
            inside = f"{out}/".startswith(f"{str(folder).rstrip('/')}/")
        else:
            inside = os.path.isdir(folder) and Path(out).resolve().is_relative_to(Path(folder).resolve())
        if inside:
            raise GraphError(f"{out} lies in the source's folder {folder}; give an --out beside it")


def refuse_client(address: str | None) -> None:
    """Refuse a cluster behind Ray Client: the driver would see neither its nodes nor its folders.

    Raises:
        GraphError: an address, given or in RAY_ADDRESS, begins with ray://.
    """
    where = address or os.environ.get("RAY_ADDRESS") or ""
    if where.startswith("ray://"):
        host = where.removeprefix("ray://").partition(":")[0]
        raise GraphError(
            f"{where}: Ray Client is not supported; run on the cluster itself: "
            f"ray job submit --address http://{host}:8265 --working-dir . -- graphbuild run ..."
        )


def not_live(graph: str, head: Head, complete: Sequence[Producer]) -> Iterator[str]:
    """One line for each complete version that is asked for while another one is live."""
    for producer in complete:
        if kinds := [kind for kind in producer.variants if head.get(kind, producer.live) != producer.live]:
            yield (
                f"{producer.name} {producer.version} is complete but not live for {', '.join(kinds)}; "
                f"to make it live: graphbuild promote {graph} {producer.version}"
            )


def document_of(files: Files, source: Source | None, shard_size: int | None) -> GraphDocument | None:
    """The graph's own document; None if `source` is to make a new graph.

    Raises:
        GraphError: a graph cannot be made there, or the one that is there has another source or shard size.
    """
    if source is not None and not files.exists("graph.json"):
        refuse_inside(source, files.url)
        refuse_foreign(files)
        return None
    document = read_document(files)
    if shard_size not in (None, document.shard_size):
        raise GraphError(
            f"{files.url}: its shard size is fixed at {document.shard_size} items; leave out --shard-size "
            f"{shard_size}, or build into another --out"
        )
    if source is not None and (source.name, source_params(source)) != (document.source.name, document.source.params):
        raise GraphError(
            f"{files.url} was built from source {document.source.name!r} {canonical_json(document.source.params)}, "
            f"not {source.name!r} {canonical_json(source_params(source))}; give another --out"
        )
    return document


def new_document(source: Source | None, shard_size: int) -> GraphDocument:
    """What `graph.json` of a new graph will say."""
    assert source is not None
    return GraphDocument(source=SourceDocument(name=source.name, params=source_params(source)), shard_size=shard_size)
