"""`verify --repair`: what the graph or its annotators can give again is the same as before, the rest is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphbuild.annotators.canny import Canny
from graphbuild.cli import app
from graphbuild.store.graph import Graph
from graphbuild.store.repair import repair
from graphbuild.store.verify import verify
from tests.support.annotators import Ordered, build, complete, leftovers, tree

GOES_ON = {  # damaged file -> whether something of it is computed again
    "nodes/kind=canny/version=*/shard-00001-r000-*.parquet": True,
    "edges/annotator=canny/version=*/shard-00000-r000.parquet": True,
    "edges/annotator=source_caption/version=*/shard-00001-r000.parquet": True,
    "lineage/*.json": False,
    "heads/00000002.json": False,
}


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, two versions of canny of which the later is live, and a snapshot of each state."""
    out = tmp_path_factory.mktemp("repair") / "g"
    options = {"limit": 4, "shard_size": 2}
    complete(build(photos, out, [Canny(low=50.0), "source_caption"], **options))
    complete(build(photos, out, [Canny(), "source_caption"], **options))
    assert verify(out, "full").problems == []
    return out


@pytest.fixture
def graph(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "g"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, flip, empty])
@pytest.mark.parametrize("pattern", GOES_ON)
def test_what_can_be_had_again_is_the_same(
    graph: Path, whole: Path, photos: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    """Guards against a repair that leaves a unit damaged, or takes more than what is computed again."""
    damage(max(graph.glob(pattern)))
    assert verify(graph, "full").problems
    done = repair(graph)
    assert not done.lost and bool(done.withdrawn) == GOES_ON[pattern] and bool(done.restored) != GOES_ON[pattern]
    for canny in (Canny(low=50.0), Canny()):
        complete(build(photos, graph, [canny, "source_caption"], limit=4, shard_size=2))
    assert verify(graph, "full").problems == [] and tree(graph) == tree(whole) and leftovers(graph) == []


def test_photos_are_read_again_only_when_asked(graph: Path, whole: Path, photos: Path) -> None:
    """Guards against a unit of a source that is withdrawn while the source is not there: its good pictures would go."""
    flip(min(graph.glob("nodes/kind=image/version=*/*.parquet")))
    before = tree(graph)
    done = repair(graph)
    assert len(done.lost) == 1 and done.lost[0].startswith("nodes/kind=image/") and tree(graph) == before
    assert repair(graph, reread=True).withdrawn
    complete(build(photos, graph, [Canny(), "source_caption"], limit=4, shard_size=2))
    assert verify(graph, "full").problems == [] and tree(graph) == tree(whole)


@pytest.mark.parametrize("damage", [Path.unlink, flip])
@pytest.mark.parametrize("name", ["items/shard-00000.parquet", "items/shard-00001.parquet"])
def test_items_are_read_again_when_asked(
    graph: Path, whole: Path, photos: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Guards against items that get other numbers, or are lost although their source is there."""
    damage(graph / name)
    assert name in repair(graph, reread=True).withdrawn
    complete(build(photos, graph, [Canny(), "source_caption"], limit=4, shard_size=2))
    assert verify(graph, "full").problems == [] and tree(graph) == tree(whole)


@pytest.mark.parametrize("damage", [Path.unlink, empty])
def test_what_says_a_thing_again_is_restored(graph: Path, whole: Path, damage: Callable[[Path], None]) -> None:
    """Guards against a graph that is given up for its smallest file."""
    newest = f"snapshots/{Graph.open(graph).digest}.parquet"
    for name in ("graph.json", newest):
        damage(graph / name)
    assert sorted(repair(graph).restored) == ["graph.json", newest]
    damage(graph / "README.md")
    assert repair(graph).restored == ["README.md"]
    assert verify(graph, "full").problems == [] and tree(graph, ".") == tree(whole, ".")


def test_what_nothing_knows_is_named(graph: Path) -> None:
    """Guards against keys, or the source, that are made up, and against files of others that are removed."""
    flip(graph / "items/shard-00001.parquet")
    flip(graph / "graph.json")
    (graph / "README.md").unlink()
    (graph / "nodes/mine.parquet").write_text("mine")
    done = repair(graph)
    assert sorted(done.lost) == ["README.md", "graph.json", "items/shard-00001.parquet"] and not done.withdrawn
    assert done.foreign == ["nodes/mine.parquet"] and (graph / "nodes/mine.parquet").exists()


def test_a_lost_retry_is_retried(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against a unit that is withdrawn again and again, as a snapshot names a later revision of it."""
    tag = control({"p01.png": "fail"})
    report = build(photos, tmp_path / "g", [Ordered(tag=tag)], limit=4, shard_size=4)
    assert report.failed == 1
    control({})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag)], limit=4, shard_size=4, retry=True))
    before = tree(tmp_path / "g")
    (lost,) = (tmp_path / "g").glob("edges/annotator=ordered/version=*/shard-00000-r001.parquet")
    lost.unlink()
    done = repair(tmp_path / "g")
    assert not done.withdrawn and done.lost == [str(lost.relative_to(tmp_path / "g"))]
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag)], limit=4, shard_size=4, retry=True))
    assert verify(tmp_path / "g", "full").problems == [] and tree(tmp_path / "g") == before


def test_the_command_says_what_continues(graph: Path, photos: Path) -> None:
    """Guards against a repair after which nobody knows what to type."""
    part = max(graph.glob("nodes/kind=canny/version=*/shard-00000-*.parquet"))
    part.unlink()
    told = CliRunner().invoke(app, ["verify", str(graph), "--repair"])
    assert told.exit_code == 1, told.output
    assert f"to continue: graphbuild retry {graph}" in told.output
    again = CliRunner().invoke(app, ["retry", str(graph), "--path", str(photos), "--executor", "inline"])
    assert again.exit_code == 0, again.output
    sound = CliRunner().invoke(app, ["verify", str(graph), "--repair", "--json"])
    assert sound.exit_code == 0 and json.loads(sound.output) == {
        "restored": [], "withdrawn": [], "lost": [], "foreign": []
    }  # fmt: skip
    assert CliRunner().invoke(app, ["verify", str(graph), "--reread"]).exit_code == 2
