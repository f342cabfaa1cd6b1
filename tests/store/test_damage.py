"""Every file of a graph, damaged in every way: a full check names it, a quick one what footers can tell, and reading
raises a GraphError or gives what was there before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from graphbuild.annotators.canny import Canny
from graphbuild.errors import GraphError, MissingNode
from graphbuild.store.card import renew_card
from graphbuild.store.exclusions import chosen, exclude
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.pins import keep_snapshot
from graphbuild.store.promote import promote
from graphbuild.store.verify import verify
from tests.support.annotators import build, complete
from tests.support.graphs import SHARD, same, write_graph

FLIPS = 4 if "GRAPHBUILD_LONG" not in os.environ else 40
"""Of one file."""

PARTS = ("graph.json", "lineage", "heads", "items", "nodes", "edges", "snapshots", "exclusions", "README.md")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A graph of two shards and three kinds, and another one of the same kinds."""
    folder = tmp_path_factory.mktemp("damage")
    for name, items in (("g", SHARD + 2), ("other", SHARD + 5)):
        kinds = {kind: same(items, 1, "image") for kind in ("canny", "lines")}
        graph = write_graph(folder / name, [{"caption": f"{name} {item}"} for item in range(items)], kinds)
        keep_snapshot(graph)
        (folder / name / f"snapshots/{graph.digest}.json").unlink()
        graph.fs.append("runs/1/report.json", [json.dumps({"snapshot": graph.digest})])
        exclude(graph.fs, chosen(graph.items(), [1]), f"of {name}")
        exclude(graph.fs, chosen(graph.items(), [2]), f"also of {name}")
        renew_card(folder / name)
        assert verify(folder / name, "full").problems == []
    return folder / "g", folder / "other"


def files_of(graph: Path) -> list[Path]:
    found = (path for name in PARTS for path in [graph / name, *sorted((graph / name).rglob("*"))])
    return [path for path in found if path.is_file()]


def flipped(path: Path, other: Path) -> Iterator[None]:
    """One bit in each of several places over the whole file."""
    data = path.read_bytes()
    for at in range(FLIPS):
        place = min(len(data) - 1, at * len(data) // (FLIPS - 1))  # the last byte too
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << at % 8]) + data[place + 1 :])
        yield


def cut(path: Path, other: Path) -> Iterator[None]:
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) - 2, len(data) // 2):
        path.write_bytes(data[:size])
        yield


def emptied(path: Path, other: Path) -> Iterator[None]:
    path.write_bytes(b"")
    yield


def deleted(path: Path, other: Path) -> Iterator[None]:
    path.unlink()
    yield


def replaced(path: Path, other: Path) -> Iterator[None]:
    """By the file in its place in another graph, where that is not the same."""
    inside = path.relative_to(next(parent for parent in path.parents if parent.name == "g"))
    candidates = sorted((other / inside.parts[0]).rglob(f"*{path.suffix}"))
    if differing := [file for file in candidates if file.read_bytes() != path.read_bytes()]:
        shutil.copy(differing[0], path)
        yield


DAMAGES = (flipped, cut, emptied, deleted, replaced)


def everything(graph: Path) -> list[object]:
    """All that can be read of a graph; a node that is not there is None."""
    opened = Graph.open(graph)
    found: list[object] = [opened.items().to_pylist(), opened.kinds(), opened.document]
    for kind in sorted(opened.head):
        found += [opened.edges(kind).to_pylist(), opened.presence(kind).tolist(), opened.head[kind]]
        for item_ix in range(opened.num_items):
            node = None
            with suppress(MissingNode):
                node = opened.read(item_ix, kind).bytes
            found.append(node)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named_and_nothing_else_is_read(
    damage: Callable[[Path, Path], Iterator[None]], pair: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Guards against damage that a check calls sound, and against IndexError, KeyError, ArrowInvalid or
    FileNotFoundError where a reader should be told which file is at fault."""
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path / "none"))
    (tmp_path / "none").touch()  # no cache: every reading reads
    graph, other = Path(shutil.copytree(pair[0], tmp_path / "g")), pair[1]
    before = everything(graph)
    unseen, unread = [], []
    for path in files_of(graph):
        whole = path.read_bytes()
        name = path.relative_to(graph).as_posix()
        for number, _ in enumerate(damage(path, other)):
            case = f"{damage.__name__} {number} {name}"
            named = any(problem.startswith((name, "heads")) for problem in verify(graph, "full").problems)
            quick = verify(graph).problems
            try:
                after = everything(graph)
            except GraphError:
                after = None
            except Exception as error:
                unread.append(f"{case}: {error!r}")
                continue
            assert after is None or after == before or named, case
            if not named:
                unseen.append(case)
            if not quick and damage is not flipped and (damage is not replaced or "nodes" not in name):
                unseen.append(f"{case} (quick)")
        path.write_bytes(whole)
    assert unread == [] and unseen == [], "\n".join(unread + unseen)
    assert verify(graph, "full").problems == []


@pytest.fixture
def grown(graph: Path, sound: Path) -> Path:
    """A graph in which a version was replaced."""
    complete(build(sound.parent / "photos", graph, [Canny(low=50.0)]))
    assert verify(graph, "full").problems == [] and len(list((graph / "heads").iterdir())) == 2
    return graph


def test_swapped_heads_are_found(grown: Path) -> None:
    """Guards against an old version that serves again because two files changed places."""
    first, *_, last = sorted((grown / "heads").iterdir())
    texts = first.read_bytes(), last.read_bytes()
    last.write_bytes(texts[0])
    first.write_bytes(texts[1])
    problems = verify(grown).problems
    assert any("order is lost" in problem for problem in problems)
    for name in (first.name, last.name):  # where no snapshot of before is left to tell
        assert f"heads/{name}: was altered since README.md was written" in problems


def test_documents_that_nothing_follows_are_pinned(graph: Path) -> None:
    """Guards against one changed number, or a lost takedown, that a full check calls sound."""
    document, snapshot = graph / "graph.json", Graph.open(graph).digest
    text = document.read_text()
    document.write_text(text.replace('"shard_size":4', '"shard_size":5'))
    assert any(problem.startswith("graph.json: ") for problem in verify(graph).problems)
    document.write_text(text)
    card = (graph / "README.md").read_text()
    exclude(files_at(graph), chosen(Graph.open(graph).items(), [1]), "takedown")
    renew_card(graph)
    newest = graph / "exclusions/00000001.json"
    newest.write_text(newest.read_text().replace("takedown", "blurred"))
    renew_card(graph)  # which does not make it right
    assert "exclusions/00000001.json: was altered since README.md was written" in verify(graph).problems
    newest.unlink()
    assert "exclusions/00000001.json: missing; README.md names it" in verify(graph).problems
    (graph / "README.md").write_text(card)
    assert verify(graph).problems == []
    (graph / "README.md").write_text(card.replace(snapshot, "0" * 16))
    assert verify(graph).problems == ["README.md: is not the card of this state of the graph"]


def test_a_snapshot_that_only_sample_published(graph: Path) -> None:
    """Guards against a list of walks whose snapshot is gone without a word."""
    shutil.rmtree(graph / "runs")
    shutil.rmtree(graph / "snapshots")
    keep_snapshot(opened := Graph.open(graph))
    assert verify(graph).problems == []
    (graph / f"snapshots/{opened.digest}.parquet").unlink()
    (problem,) = verify(graph).problems
    assert problem.startswith(f"snapshots/{opened.digest}.parquet: missing")
    (graph / f"snapshots/{opened.digest}.json").rename(graph / f"snapshots/{'0' * 16}.json")
    assert any("is of snapshot" in problem for problem in verify(graph).problems)


def test_heads_may_go_back(grown: Path) -> None:
    """`promote` of an earlier version is no damage, nor is what is built after it."""
    first = min((grown / "heads").iterdir())
    old = files_at(grown).read(f"heads/{first.name}").decode()
    for version in [name for name in Graph.open(grown).producers() if name[0] == "canny" and name[1] in old]:
        promote(grown, version[1])
    keep_snapshot(Graph.open(grown))
    assert len(list((grown / "heads").iterdir())) == 3 and verify(grown, "full").problems == []
