"""An excluded item is neither sampled nor read, in no snapshot, until it is put back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.errors import GraphError, MissingNode
from graphbuild.store.exclusions import change_exclusions, chosen, exclude, include, read_exclusions
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from graphbuild.store.workspace import Workspace
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.graphs import same, write_graph

PATHS = PathSet(name="one", paths=(TaskPath(name="line", cells=("canny", "image"), targets=(1,)),))


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    spine = [{"split": "a" if item % 2 else "b", "meta": json.dumps({"quality": item})} for item in range(20)]
    return write_graph(tmp_path / "g", spine, {"canny": same(20, 1, "image")})


def drawn(graph: Graph) -> set[int]:
    """The items of 300 walks."""
    return {int(item) for item in PathSampler(graph, PATHS).walks(0, 300).rows.ravel()} - {-1}


def test_excluded_items_are_not_drawn_until_they_are_put_back(graph: Graph) -> None:
    sampler = PathSampler(graph, PATHS)
    before = list(sampler.walks(0, 300))
    ids = chosen(graph.items(), [3, 5])
    exclude(graph.fs, ids, "bad photo")
    assert drawn(Graph.open(graph.url)) == set(range(20)) - {3, 5}
    with pytest.raises(ValueError, match=r"items: \[5\] do not serve this path"):
        PathSampler(Graph.open(graph.url), PATHS).walk(0, items=[2, 5])
    include(graph.fs, ids)
    assert list(PathSampler(Graph.open(graph.url), PATHS).walks(0, 300)) == before


def test_snapshots_of_before_honour_it(graph: Graph) -> None:
    """A takedown reaches what was trained on yesterday's snapshot."""
    workspace = Workspace.create(graph.fs, "test")
    digest = graph.publish_snapshot(workspace)
    workspace.close()
    exclude(graph.fs, chosen(graph.items(), [3]), "takedown")
    old = Graph.open(graph.url, snapshot=digest)
    assert old.digest == digest and drawn(old) == set(range(20)) - {3}


@pytest.mark.parametrize("through", [lambda graph: graph, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_excluded_items_are_not_read(graph: Graph, through: Callable[[Graph], Graph]) -> None:
    """By whatever way: lists of walks of before, loader workers, offsets that were loaded already."""
    exclude(graph.fs, chosen(graph.items(), [3]), "takedown")
    opened = through(Graph.open(graph.url))
    opened.offsets("canny")
    for kind in ("image", "canny"):
        with pytest.raises(MissingNode, match=r"item 3 is excluded \(takedown\)"):
            opened.read(3, kind)
        assert opened.read(4, kind).bytes


def test_what_is_drawn_says_what_was_excluded(graph: Graph) -> None:
    """Else `sample` would keep a picture of before, as the snapshot is the same."""
    before = PathSampler(graph, PATHS).drawing.switches
    exclude(graph.fs, chosen(graph.items(), [3]), "bad photo")
    now = PathSampler(Graph.open(graph.url), PATHS)
    assert "excluded" not in before and now.drawing.switches.keys() == before.keys() | {"excluded"}
    assert now.frozen(1).header["excluded"] == now.drawing.switches["excluded"]


def test_items_are_chosen_by_number_key_or_condition(graph: Graph) -> None:
    table = graph.items()
    numbers = table.column("item_id").to_pylist()

    def found(**how: object) -> list[int]:
        return [numbers.index(item_id) for item_id in chosen(table, **how)]  # type: ignore[arg-type]

    assert found(items=[7, 2]) == [2, 7] and found(keys=["00004"]) == [4]
    assert found(where={"split": "a", "quality": {">": 14}}, items=[0]) == [0, 15, 17, 19]
    for how, message in [
        ({"items": [20]}, "no item 20; the graph has items 0 to 19"),
        ({"keys": ["4"]}, "no item has the key '4'; .* such as '00000'"),
        ({"where": {"sharpness": 1}}, "no item has 'sharpness'"),
    ]:
        with pytest.raises(GraphError, match=message):
            found(**how)


def test_two_at_once_both_count(graph: Graph) -> None:
    ids = chosen(graph.items(), [1, 2])
    workspace = Workspace.create(graph.fs, "test")

    def change(found: dict[str, str]) -> dict[str, str]:
        if not found:
            exclude(graph.fs, ids[:1], "first")
        return {**found, ids[1]: "second"}

    assert change_exclusions(graph.fs, workspace, change) == {ids[0]: "first", ids[1]: "second"}
    assert read_exclusions(graph.fs)[0] == 2
    workspace.close()


def test_damage_is_found_and_nothing_is_used_meanwhile(graph: Graph, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        exclude(graph.fs, chosen(graph.items(), [number]), "x")
    (tmp_path / "g/exclusions/00000002.json").unlink()
    assert "exclusions/00000002.json: missing, 00000003.json follows" in verify(graph.url).problems
    (tmp_path / "g/exclusions/00000003.json").write_text("{")
    assert any("00000003.json" in problem for problem in verify(graph.url).problems)
    with pytest.raises(GraphError, match=r"00000003\.json.*bring the file back"):
        Graph.open(graph.url)


def test_the_command(photos: Path, tmp_path: Path) -> None:
    complete(build(photos, out := tmp_path / "g", ["canny"], limit=4))

    def run(line: str) -> str:
        done = CliRunner().invoke(app, [str(out) if word == "GRAPH" else word for word in line.split()])
        assert done.exit_code == 0, done.output
        return done.output

    keys, ids = Graph.open(out).items().select(["key", "item_id"]).to_pydict().values()
    assert "0 items excluded" in run("exclude GRAPH")
    assert "1 item excluded" in run(f"exclude GRAPH --keys {keys[1]} --why blurred")
    assert "1 item excluded" in run("exclude GRAPH --items 3 --why takedown")
    assert json.loads(run("exclude GRAPH --json")) == [
        {"item_ix": 1, "key": keys[1], "item_id": ids[1], "why": "blurred"},
        {"item_ix": 3, "key": keys[3], "item_id": ids[3], "why": "takedown"},
    ]
    assert f"item 1, {keys[1]}: blurred" in run("exclude GRAPH")
    assert "2 items excluded" in run("status GRAPH") and json.loads(run("status GRAPH --json"))["excluded"] == 2
    run(f"sample GRAPH --count 8 --format jsonl --resolution 32 --out {tmp_path / 'tasks'}")
    walks = [json.loads(line) for line in (tmp_path / "tasks/walks.jsonl").read_text().splitlines()]
    assert {item for walk in walks for item in walk["rows"]} == {0, 2}
    assert "sound" in run("verify GRAPH")
    assert "**2 items must not be used**" in (out / "README.md").read_text()
    assert "2 items put back" in run("exclude GRAPH --items 1-3 --undo")
    assert json.loads(run("status GRAPH --json"))["excluded"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "1"], "either --why TEXT or --undo"),
        (["--items", "1", "--undo", "--why", "x"], "either --why TEXT or --undo"),
        (["--why", "x"], "say which items"),
        (["--undo"], "say which items"),
        (["--items", "1-b", "--why", "x"], "--items '1-b': write numbers and ranges"),
        (["--items", "99", "--why", "x"], "no item 99"),
        (["--where", "split: c", "--why", "x"], "no item meets the conditions"),
        (["--where", "quality", "--why", "x"], "--where 'quality': write conditions"),
    ],
)
def test_wrong_usage_is_refused(graph: Graph, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["exclude", graph.url, *words])
    assert done.exit_code == 2 and message in done.output.replace("\n", " ")
    assert read_exclusions(graph.fs) == (0, {})
