"""Items that are left out of every task from now on: bad photos, takedowns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from graphbuild.errors import GraphError
from graphbuild.store.conditions import matching
from graphbuild.store.files import Files
from graphbuild.store.heads import publish_next
from graphbuild.store.workspace import Workspace

Exclusions = dict[str, str]
"""item_id -> why."""

EXCLUSIONS = TypeAdapter(Exclusions)


def read_exclusions(files: Files) -> tuple[int, Exclusions]:
    """The newest exclusions and their number; number 0 and an empty map before the first.

    Raises:
        GraphError: the document is damaged.
    """
    if (name := newest_name(files)) is None:
        return 0, {}
    try:
        number = int(name.rpartition("/")[2].removesuffix(".json"))
        return number, EXCLUSIONS.validate_json(files.read(name))
    except ValueError as error:
        raise GraphError(
            f"{files.path(name)}: not a map of item ids to reasons; bring the file back from a copy"
        ) from error


def newest_name(files: Files) -> str | None:
    """The current document, with the highest number."""
    return max(exclusion_names(files), default=None)


def exclusion_names(files: Files) -> list[str]:
    """All such documents."""
    return [f"exclusions/{name}" for name in files.names("exclusions") if name.endswith(".json")]


def change_exclusions(files: Files, workspace: Workspace, change: Callable[[Exclusions], Exclusions]) -> Exclusions:
    """Publish `change(newest exclusions)` as the next document, as `change_head` does.

    Raises:
        GraphError: other processes kept winning.
    """
    return publish_next(files, workspace, "exclusions", shape=EXCLUSIONS, newest=read_exclusions, change=change)


def chosen(
    table: pa.Table, items: Iterable[int] = (), keys: Sequence[str] = (), where: Mapping[str, Any] | None = None
) -> list[str]:
    """The `item_id` of items named by `item_ix`, by key, or by conditions as in a task list.

    Raises:
        GraphError: an item or key that the graph does not have, or a wrong condition.
    """
    known = table.column("key").to_pylist()
    if lacking := sorted(set(items) - set(table.column("item_ix").to_pylist())):
        raise GraphError(f"no item {lacking[0]}; the graph has items 0 to {len(known) - 1}")
    if unknown := sorted(set(keys) - set(known)):
        raise GraphError(f"no item has the key {unknown[0]!r}; keys are those of the items table, such as {known[0]!r}")
    wanted = np.isin(table.column("item_ix").to_numpy(), np.array([*items], np.int64)) | np.isin(known, list(keys))
    if where:
        wanted |= matching(table, where)
    return [str(item_id) for item_id in table.column("item_id").filter(pa.array(wanted)).to_pylist()]


def exclude(files: Files, ids: Sequence[str], why: str) -> Exclusions:
    """Exclude items by `item_id`, from now on and for every snapshot; returns all that are excluded."""
    return _change(files, lambda found: {**found, **dict.fromkeys(ids, why)})


def include(files: Files, ids: Sequence[str]) -> Exclusions:
    """Undo `exclude` for these items; returns what stays excluded."""
    return _change(files, lambda found: {item_id: why for item_id, why in found.items() if item_id not in set(ids)})


def _change(files: Files, change: Callable[[Exclusions], Exclusions]) -> Exclusions:
    with closing(Workspace.create(files, "exclude")) as workspace:
        return change_exclusions(files, workspace, change)
