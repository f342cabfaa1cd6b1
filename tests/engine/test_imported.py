"""Annotations of others in a graph: matched by key, cleaned or refused, with where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.engine.imported import imported
from graphbuild.engine.run import run
from graphbuild.errors import GraphError
from graphbuild.sources import tables
from graphbuild.sources.base import Unusable
from graphbuild.sources.places import Place
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from tests.images.test_cleaning import file
from tests.support.annotators import build, complete
from tests.support.sources import put


def grey(level: int) -> Any:
    return np.full((60, 80), level, np.uint8)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Four pictures of 80 x 60."""
    names = ("a.jpg", "b/c.jpg", "d.jpg", "e.jpg")
    put(
        tmp_path / "photos",
        {name: file(np.full((60, 80, 3), 40 * n, np.uint8), "JPEG") for n, name in enumerate(names)},
    )
    complete(build(tmp_path / "photos", tmp_path / "g", ["canny"]))
    return tmp_path / "g"


def rows(graph: Path, kind: str) -> list[tuple[str, str | None]]:
    return [(row["status"], row["reason"]) for row in Graph.open(graph).edges(kind).to_pylist()]


def test_files_come_in_by_name_are_checked_and_say_where_they_are_from(graph: Path, tmp_path: Path) -> None:
    edges = np.zeros((60, 80), np.uint8)
    edges[:, ::10] = 255
    levels = np.tile(np.arange(80, dtype=np.uint8) % 23 * 11, (60, 1))
    put(tmp_path / "theirs", {"a.png": file(edges, "JPEG"), "b/c.jpg.png": file(edges[:30, :40], "PNG"),
                              "d.png": file(levels, "PNG")})  # fmt: skip
    done = CliRunner().invoke(
        app, ["import", str(graph), "--kind", "canny", "--from", str(tmp_path / "theirs"), "--revision", "r7"]
    )
    assert done.exit_code == 0, done.output
    opened = Graph.open(graph)
    assert opened.live("canny").annotator == "imported"
    assert rows(graph, "canny") == [("ok", None), ("ok", None), ("failed", "bad_values"), ("skipped", "not_given")]
    node = opened.read(0, "canny")
    assert set(np.unique(node.values())) == {0, 255} and "white from 128" in node.attrs["cleaned"]
    assert node.attrs["imported"] == {"dataset": "theirs", "revision": "r7"}
    assert verify(graph, "full").problems == []
    again = CliRunner().invoke(app, ["import", str(graph), "--kind", "canny", "--from", str(tmp_path / "theirs"),
                                     "--revision", "r7", "--json"])  # fmt: skip
    assert again.exit_code == 0 and Graph.open(graph).digest == opened.digest


def test_rows_of_a_table_come_in_by_key(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    table = {"key": ["e.jpg", "a.jpg"], "depth": [{"bytes": file(grey(9), "PNG")}, {"bytes": file(grey(7), "PNG")}]}
    pq.write_table(pa.table(table), tmp_path / "t/depth.parquet")
    complete(run(None, [imported("depth", str(tmp_path / "t"))], graph, executor="inline"))
    opened = Graph.open(graph)
    assert opened.read(3, "depth").values()[0, 0] == 9 and opened.read(0, "depth").values()[0, 0] == 7
    assert [status for status, _ in rows(graph, "depth")] == ["ok", "skipped", "skipped", "ok"]


def test_tables_dealt_out_by_workers_are_read_once(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tables that items alternate between, as a job on two GPUs writes them: no row group is begun twice."""
    put(tmp_path / "photos", {f"x{n:02d}.jpg": file(np.full((60, 80, 3), n, np.uint8), "JPEG") for n in range(40)})
    complete(build(tmp_path / "photos", graph, ["canny"]))
    (tmp_path / "t").mkdir()
    for rank in range(2):
        numbers = range(rank, 40, 2)
        depth = [{"bytes": file(grey(n), "PNG")} for n in numbers]
        table = pa.table({"key": [f"x{n:02d}.jpg" for n in numbers], "depth": depth})
        pq.write_table(table, tmp_path / f"t/{rank}.parquet", row_group_size=10)
    begun, real = list[tuple[str, int]](), tables._Cursor.__init__

    def counted(self: Any, parquet: Any, group: int, start: int, columns: Any) -> None:
        if list(columns) != ["key"]:
            begun.append((str(id(parquet)), group))
        real(self, parquet, group, start, columns)

    monkeypatch.setattr(tables._Cursor, "__init__", counted)
    complete(run(None, [imported("depth", str(tmp_path / "t"))], graph, executor="inline"))
    opened = Graph.open(graph)
    keys = opened.items()["key"].to_pylist()
    found = {key: int(opened.read(item, "depth").values()[0, 0]) for item, key in enumerate(keys) if key[0] == "x"}
    assert found == {f"x{n:02d}.jpg": n for n in range(40)}
    assert len(begun) == len(set(begun)) == 4


def test_a_retry_of_what_was_imported_says_how(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "d", {"a.png": file(grey(1), "PNG"), "b/c.png": file(grey(2), "PNG")})
    cells, broken = [str(graph), "--kind", "depth", "--from", str(tmp_path / "d")], ["a.png"]
    real = Place.read
    monkeypatch.setattr(
        Place, "read", lambda self, name: Unusable("unreadable", "EIO") if name in broken else real(self, name)
    )
    done = CliRunner().invoke(app, ["import", *cells])
    assert done.exit_code == 0 and "1 may succeed another time: graphbuild" in done.output and "--retry" in done.output
    retried = CliRunner().invoke(app, ["retry", str(graph), "--executor", "inline"])
    assert retried.exit_code == 1 and f"graphbuild import {graph} --kind depth --from FOLDER --retry" in retried.output
    broken.clear()
    assert CliRunner().invoke(app, ["import", *cells, "--retry"]).exit_code == 0
    assert [status for status, _ in rows(graph, "depth")] == ["ok", "ok", "skipped", "skipped"]
    assert CliRunner().invoke(app, ["retry", str(graph), "--executor", "inline"]).exit_code == 0


def test_what_belongs_to_another_picture_or_has_no_palette_is_refused(graph: Path, tmp_path: Path) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[:20], labels[40:] = 1, 2
    put(tmp_path / "m", {"a.png": file(labels, "PNG"), "d.png": file(labels.T.copy(), "PNG")})
    run(None, [imported("semantic", str(tmp_path / "m"))], graph, executor="inline")
    assert rows(graph, "semantic")[0] == rows(graph, "semantic")[2] == ("failed", "bad_values")
    names = ("sky", "house", "road")
    run(None, [imported("semantic", str(tmp_path / "m"), labels=names)], graph, executor="inline")
    assert [status for status, _ in rows(graph, "semantic")] == ["ok", "skipped", "failed", "skipped"]
    node = Graph.open(graph).read(0, "semantic")
    assert node.attrs["labels"] == list(names) and len(node.attrs["palette"]) == 3


@pytest.mark.parametrize(
    ("kind", "why"),
    [("foreground", "computed on read; import image, foreground_mask"), ("haze", "say with --codec how it is stored")],
)
def test_a_kind_that_cannot_be_imported_is_refused(kind: str, why: str) -> None:
    with pytest.raises(GraphError, match=why):
        imported(kind, "nowhere")
