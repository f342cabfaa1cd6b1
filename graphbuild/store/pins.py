"""Who uses a snapshot: `snapshots/<digest>.json`. Snapshots that trainings use, or that were asked to be kept, are
pinned: `gc` leaves what they reach."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Literal

from graphbuild.contracts import Document
from graphbuild.errors import GraphError
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_json
from graphbuild.store.workspace import Workspace

Use = Literal["sample", "training", "kept", "gc", "removed"]
"""What a snapshot was published for, or that `gc` has removed it since."""

PINNED: tuple[Use, ...] = ("training", "kept")
PIN_FILE = re.compile(r"([0-9a-f]{16})\.json")


class _Pin(Document):
    snapshot: str | None = None
    used_by: Use


def read_uses(files: Files) -> dict[str, Use]:
    """Digest -> what the snapshot is used for.

    Raises:
        GraphError: one of them is damaged.
    """
    return {digest: read_use(files, digest) for digest in used(files)}


def used(files: Files) -> list[str]:
    """Digests of the snapshots of which a use is known."""
    return [match[1] for name in files.names("snapshots") if (match := PIN_FILE.fullmatch(name))]


def read_use(files: Files, digest: str) -> Use:
    """What a snapshot is used for.

    Raises:
        GraphError: the document is damaged, or is that of another snapshot.
    """
    pin = read_json(files, name := f"snapshots/{digest}.json", _Pin.model_validate_json)
    if pin.snapshot not in (None, digest):
        raise GraphError(f"{files.path(name)}: is of snapshot {pin.snapshot}; see graphbuild verify")
    return pin.used_by


def write_use(files: Files, workspace: Workspace, digest: str, use: Use) -> None:
    """Say what a snapshot is used for; a pin stays a pin until it is dropped."""
    text = _Pin(snapshot=digest, used_by=use).model_dump_json() + "\n"
    files.replace(f"snapshots/{digest}.json", text.encode(), workspace)


def keep_snapshot(graph: Graph, use: Use = "sample") -> OSError | None:
    """Publish the snapshot that walks refer to; returns the error if the graph is not writable."""
    try:
        workspace = Workspace.create(graph.fs, "sample")
    except OSError as error:
        return error
    with closing(workspace):
        digest = graph.publish_snapshot(workspace)
        if digest not in used(graph.fs) or read_use(graph.fs, digest) not in (use, *PINNED):
            write_use(graph.fs, workspace, digest, use)
    return None
