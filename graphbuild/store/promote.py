"""Making a built version live by hand."""

from __future__ import annotations

import os
from contextlib import closing

from graphbuild.contracts import Live
from graphbuild.errors import GraphError, counted
from graphbuild.store.card import renew_card
from graphbuild.store.graph import Graph
from graphbuild.store.heads import Head, change_head, lineages, read_lineage
from graphbuild.store.locations import files_at
from graphbuild.store.workspace import Workspace


def promote(out: str | os.PathLike[str], version: str) -> Head:
    """Make a complete version live for every kind its annotator makes.

    Raises:
        GraphError: no such version, units of it are missing, or its parents are not the live ones.
    """
    graph = Graph.open(out)
    if version not in (known := lineages(graph.fs)):
        raise GraphError(f"{graph.url} has no version {version!r}; it has: {', '.join(known) or 'none'}")
    lineage = read_lineage(graph.fs, version)
    done = {commit.ref.shard for commit in graph.unit_commits(lineage.annotator, version)}
    missing = [shard.label for shard in graph.shards if shard.index not in done]
    if missing:
        raise GraphError(
            f"{lineage.annotator} {version} is not complete: {counted(len(missing), 'unit')} missing, "
            f"{missing[0]} first"
        )
    stale = [k for k, parent in lineage.parents.items() if k in graph.head and graph.head[k].version != parent]
    if stale:
        raise GraphError(
            f"{lineage.annotator} {version} was made from another version of {stale[0]}; promote that first"
        )
    makes = {kind: Live(annotator=lineage.annotator, version=version) for kind in lineage.codec}
    files = files_at(out)
    with closing(Workspace.create(files, "promote")) as workspace:
        head = change_head(files, workspace, lambda head: {**head, **makes})
    renew_card(out)
    return head
