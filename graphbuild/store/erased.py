"""What `gc` took out of a graph, and what older snapshots are read by since.

A revision that says `erases: n` repeats revision n without the nodes of excluded items; node parts that only revisions
before it name are gone. The commits of a version that is gone are listed in the `removed.json` of its edges folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from graphbuild.contracts import CommitRef, Document
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json
from graphbuild.store.commits import Commit
from graphbuild.store.files import Files
from graphbuild.store.heads import Newest, Snapshot, committed, read_json
from graphbuild.store.parts import commit_name, edges_folder
from graphbuild.store.workspace import Workspace


class _Removed(Document):
    commits: list[CommitRef]


def removed_commits(files: Files, annotator: str, version: str) -> list[CommitRef]:
    """The commits of a version that `gc` has removed.

    Raises:
        GraphError: the list is damaged.
    """
    name = f"{edges_folder(annotator, version)}/removed.json"
    return read_json(files, name, _Removed.model_validate_json).commits if files.exists(name) else []


def note_removed(files: Files, workspace: Workspace, commits: Iterable[CommitRef]) -> None:
    """Add the commits of one version to what is removed of it; to be called before they go."""
    first, *rest = commits
    known = removed_commits(files, first.annotator, first.version)
    every = [*known, *(ref for ref in (first, *rest) if ref not in known)]
    text = canonical_json(_Removed(commits=every).model_dump(mode="json")) + "\n"
    files.replace(f"{edges_folder(first.annotator, first.version)}/removed.json", text.encode(), workspace)


def read_by(revision: int, erases: Mapping[int, int | None]) -> int | None:
    """The revision that serves a reader of an earlier one; None if the parts of that are gone and no later revision
    differs in erased items alone.

    Args:
        erases: of every revision of the unit.
    """
    for number in sorted(number for number in erases if number > revision):
        if (erased := erases[number]) is not None:
            if erased != revision:
                return None
            revision = number
    return revision


def served(files: Files, digest: str, snapshot: Snapshot, commit_of: Callable[[str], Commit]) -> Newest:
    """The commits that a snapshot is read by today. Versions that its head does not name may be gone.

    Raises:
        GraphError: a commit that it needs is gone, or was altered.
    """
    needed = {live.version for live in snapshot.head.values()}
    there = committed(files)
    newest: Newest = {}
    for ref in snapshot.refs:
        revisions = there.get((ref.annotator, ref.version), {}).get(ref.shard, {})
        name = commit_name(ref.annotator, ref.version, ref.shard, ref.revision)
        needs = ref.version in needed or ref.annotator.startswith("source:")
        if needs or ref.revision in revisions:
            if commit_of(name).ref != ref:
                if not needs:
                    continue  # removed, and made again since
                raise GraphError(
                    f"{files.path(name)}: snapshot {digest} names another commit; it was altered since: see graphbuild "
                    "verify"
                )
            newest.setdefault((ref.annotator, ref.version), []).append(
                _served_by(files, digest, ref, revisions, commit_of)
            )
    return newest


def _served_by(
    files: Files, digest: str, ref: CommitRef, revisions: Mapping[int, str], commit_of: Callable[[str], Commit]
) -> str:
    def name(revision: int) -> str:
        return commit_name(ref.annotator, ref.version, ref.shard, revision)

    later = {number: commit_of(name(number)).document.erases for number in revisions if number > ref.revision}
    if (revision := read_by(ref.revision, later)) is None:
        raise GraphError(
            f"{files.url}: snapshot {digest} cannot be read any more: gc has erased excluded items from "
            f"{name(ref.revision)}, and what came after differs in more than those; open a later snapshot"
        )
    return name(revision)
