"""`verify`: damage is found and named, and nothing sound is called damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.errors import CorruptNode, counted
from graphbuild.store.graph import Graph
from graphbuild.store.parallel import in_order
from graphbuild.store.verify import Verdict, verify


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def found(graph: Path, *names: str, quick: bool) -> Verdict:
    """The verdict of a full check, whose problems name all `names`; a quick check finds something only if `quick`."""
    verdict = verify(graph, "full")
    text = "\n".join(verdict.problems)
    assert verdict.problems and all(name in text for name in names), text
    assert bool(verify(graph, "quick").problems) == quick
    result = CliRunner().invoke(app, ["verify", str(graph), "--full"])
    assert result.exit_code == 1 and all(name in result.output for name in names)
    assert counted(len(verdict.problems), "problem") in result.output
    return verdict


def place(graph: Path, item_ix: int, kind: str) -> tuple[str, int, int, int]:
    """(part, row inside its edges part, offset, length) of a stored node."""
    opened = Graph.open(graph)
    rows = opened.rows(item_ix, kind)
    row = rows.find(item_ix, kind, 0)
    assert row is not None
    where = rows.place(row)
    return where.part, row, where.offset, where.nbytes


def test_a_sound_graph_is_sound(sound: Path) -> None:
    """Failed and skipped rows are no damage; every part and every node is looked at."""
    full, quick = verify(sound, "full"), verify(sound, "quick")
    assert full.problems == quick.problems == []
    assert full.commits == quick.commits == 6
    assert full.parts == 8 and full.nodes == 7 + 7 + 3 and quick.nodes == 0
    for level in ("--full", "--quick"):
        result = CliRunner().invoke(app, ["verify", str(sound), level])
        assert result.exit_code == 0 and "6 commits, 8 parts" in result.output and "sound" in result.output


@pytest.mark.parametrize("kind", ["image", "canny", "caption"])
@pytest.mark.parametrize("at", [0, -1])
def test_a_flipped_bit_is_named_by_part_row_and_item(graph: Path, kind: str, at: int) -> None:
    """The first and the last byte of a stored value; reading it raises instead of giving other pixels."""
    part, row, offset, nbytes = place(graph, 7, kind)
    flip(graph / part, offset + at % nbytes)
    verdict = found(graph, part, f"row {row}, item 7", quick=False)
    assert not any("item 6" in problem for problem in verdict.problems)
    with pytest.raises(CorruptNode, match="item 7"):
        Graph.open(graph).read(7, kind)
    assert Graph.open(graph).read(6, "image").array().any()


def test_a_truncated_part_is_found_quickly(graph: Path) -> None:
    """A copy that stopped half way."""
    part = place(graph, 0, "canny")[0]
    (graph / part).write_bytes((graph / part).read_bytes()[:-100])
    found(graph, part, quick=True)


def test_bytes_after_the_end_are_found(graph: Path) -> None:
    """A part that grew is not the part that was committed, even where its footer is still readable."""
    part = place(graph, 0, "canny")[0]
    data = (graph / part).read_bytes()
    (graph / part).write_bytes(b"PAR1" + data)
    found(graph, part, quick=True)


def test_a_missing_part_is_found_quickly(graph: Path) -> None:
    """Each folder of parts."""
    names = [place(graph, 0, "image")[0], place(graph, 4, "canny")[0], "items/shard-00001.parquet"]
    for name in names:
        (graph / name).unlink()
    found(graph, *names, quick=True)


def test_a_part_of_another_shard_is_found(graph: Path) -> None:
    """Two parts of one kind mixed up by a restore: both are valid Parquet."""
    first, second = place(graph, 0, "canny")[0], place(graph, 4, "canny")[0]
    shutil.copy(graph / first, graph / second)
    found(graph, second, quick=True)


def test_an_edges_part_of_another_shard_is_found(graph: Path) -> None:
    """The commit of one unit under the name of another: its own unit would be lost without a word."""
    first, second = sorted((graph / "edges").glob("annotator=canny/*/*.parquet"))
    shutil.copy(first, second)
    found(graph, second.name, quick=True)


def test_an_edges_part_with_other_rows_is_found(graph: Path) -> None:
    """Rows edited by hand, the footer kept: readers would be sent to other bytes."""
    name = next((graph / "edges").glob("annotator=canny/*/*.parquet"))
    table = pq.read_table(name, partitioning=None)
    metadata = table.schema.metadata
    swapped = table.take([1, 0, *range(2, len(table))]).replace_schema_metadata(metadata)
    pq.write_table(swapped, name)
    found(graph, name.name, "not those its footer pins", quick=True)


@pytest.mark.parametrize("what", ["edges", "items", "nodes"])
def test_an_unreadable_part_is_a_problem_not_a_crash(graph: Path, what: str) -> None:
    """Empty files and files of zeros are what a full disk or a lost block leaves."""
    victims = sorted((graph / what).rglob("*.parquet"))[:2]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(bytes(victims[1].stat().st_size))
    found(graph, *(victim.name for victim in victims), quick=True)


def test_side_by_side_is_the_same(graph: Path, ray_address: str) -> None:
    """Guards against problems that are lost, or told in another order, on the way from other processes."""
    from graphbuild.engine.executors.ray import processes_on_ray

    flip(graph / place(graph, 7, "canny")[0], 200)
    next((graph / "edges").glob("annotator=source_caption/*/*.parquet")).write_bytes(b"")
    alone, done = verify(graph, "full"), []
    with processes_on_ray(ray_address) as mapped:
        assert verify(graph, "full", done.append, mapped) == alone and len(done) == 6
    command = ["verify", str(graph), "--full", "--jobs", "2", "--json"]
    assert json.loads(CliRunner().invoke(app, command).output) == vars(alone)


def test_few_calls_are_under_way_at_once() -> None:
    """Guards against a million units that wait in memory."""
    running: list[int] = []
    most = []

    def end(value: int) -> int:
        most.append(len(running))
        running.remove(value)
        return value

    def start(value: int) -> int:
        running.append(value)
        return value

    assert list(in_order(range(20), start, end, 3)) == list(range(20)) and max(most) == 3


def test_a_changed_or_missing_lineage_is_found(graph: Path) -> None:
    """A version that is not the hash of its document says nothing about how its nodes were made."""
    live = Graph.open(graph).live("canny").version
    path = graph / f"lineage/{live}.json"
    path.write_text(path.read_text().replace("100.0", "50.0"))
    found(graph, f"lineage/{live}.json", quick=True)
    path.unlink()
    found(graph, f"lineage/{live}.json", quick=True)


def test_orphans_are_no_problem(graph: Path) -> None:
    """Parts of killed runs and work under way are never read; calling them damage would cry wolf."""
    part = graph / place(graph, 0, "canny")[0]
    shutil.copy(part, part.with_name("shard-00009-r000-0-0123456789abcdef.parquet"))
    (graph / "_tmp" / "run").mkdir(parents=True)
    (graph / "_tmp" / "run" / "half").write_bytes(b"x")
    (graph / "_staging" / "digest").mkdir(parents=True)
    (graph / "nodes" / ".DS_Store").write_bytes(b"x")
    (graph / "LICENSE").write_text("ours")
    for level in ("full", "quick"):
        assert verify(graph, level).problems == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "nodes/kind=canny/version={canny}/more.parquet",
        "nodes/kind=canny/notes.txt",
        "edges/annotator=canny/version={canny}/copy of shard-00000-r000.parquet",
        "items/extra.parquet",
        "heads/newest.json",
        "snapshots/old.parquet",
        "exclusions/mine.json",
        "lineage/x.json",
    ],
)
def test_foreign_files_are_named(graph: Path, name: str) -> None:
    """Guards against what `datasets` or DuckDB reads along, as it lies in a folder of the format."""
    name = name.format(canny=Graph.open(graph).live("canny").version)
    (graph / name).parent.mkdir(exist_ok=True)
    (graph / name).write_bytes(b"x")
    assert f"{name}: is no file of a graph; move it elsewhere" in verify(graph).problems


def _edges(graph: Path) -> list[Path]:
    return sorted((graph / "edges").rglob("*.parquet"))


def _parts(graph: Path) -> list[Path]:
    return sorted([*(graph / "nodes").rglob("*.parquet"), *(graph / "items").glob("*.parquet")])


@pytest.mark.parametrize("victims", [_edges, _parts])
def test_random_damage_is_found_and_never_crashes(graph: Path, victims: Callable[[Path], list[Path]]) -> None:
    """Any flipped bit of a node or items part, and any that changes a row of an edges part, is a named problem."""
    rng = random.Random(4)
    for number in range(40):
        path = rng.choice(victims(graph))
        data = path.read_bytes()
        before = pq.read_table(path, partitioning=None)
        flip(path, rng.randrange(len(data)), rng.randrange(8))
        problems = verify(graph, "full").problems
        named = any(path.name in problem for problem in problems)
        # An edges part has no checksum of its own: a bit that no reader looks at may change unseen.
        harmless = victims is _edges and not problems and pq.read_table(path, partitioning=None).equals(before)
        assert named or harmless, (number, path.name, problems)
        path.write_bytes(data)
    assert verify(graph, "full").problems == []


def test_not_a_graph_is_refused(tmp_path: Path) -> None:
    """A folder without graph.json is wrong usage, not a sound graph."""
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 2 and "not a graph" in result.output and "Traceback" not in result.output
