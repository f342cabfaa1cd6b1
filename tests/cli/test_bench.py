"""Results of benchmarks: their table, and two runs beside each other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.cli.bench import Benchmarks, Machine, Result, table_of
from tests.support.benchmarks import RECORDS, record

HERE = Machine(processor="A chip", cores=2, gigabytes=8, system="Linux", python="3.11.7", load=0.5)


def write(file: Path, *results: Result, **machine: Any) -> str:
    found = Benchmarks(version="0", machine=HERE.model_copy(update=machine), quick=False, results=[*results])
    file.write_text(found.model_dump_json())
    return str(file)


def compared(*files: str) -> list[str]:
    result = CliRunner().invoke(app, ["bench", "compare", *files])
    assert result.exit_code == 0, result.output
    return [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]


def test_two_runs_beside_each_other(tmp_path: Path) -> None:
    """A rate that grew is better, seconds that grew are worse; a ratio to a peer says more than either."""
    old = [
        Result(bench="read", work="nodes", unit="nodes/s", ours=100, peer=10, ratio=10),
        Result(bench="walks", work="walks", unit="walks/s", ours=100),
        Result(bench="import", work="import", unit="s", ours=0.2),
        Result(bench="plan", work="gone", unit="s", ours=1),
    ]
    new = [
        Result(bench="read", work="nodes", unit="nodes/s", ours=50, peer=4, ratio=12.5),
        Result(bench="walks", work="walks", unit="walks/s", ours=200),
        Result(bench="import", work="import", unit="s", ours=0.4),
        Result(bench="view", work="page", unit="s", ours=1),
    ]
    lines = compared(write(tmp_path / "a.json", *old), write(tmp_path / "b.json", *new))
    assert "read: nodes 100 50 nodes/s 10 12.5 1.25 times as good" in lines
    assert "walks: walks 100 200 walks/s 2.00 times as good" in lines
    assert "import: import 0.2 0.4 s worse: 0.50 times as good" in lines
    assert "view: page 1 s new" in lines
    assert "only in A: plan: gone" in lines
    assert not any("machine" in line for line in lines)


def test_other_machines_are_named(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.json"), write(tmp_path / "b.json", cores=64, load=9.0)
    assert compared(one, other)[0] == "other machines, only ratios count: cores: 2 and 64"


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    result = CliRunner().invoke(app, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    assert result.exit_code == 2 and "not results of make bench" in result.output


def test_what_a_benchmark_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines in a file, and a table that says what is beyond its limit: a ratio below, seconds above."""
    monkeypatch.setenv(RECORDS, str(tmp_path / "records"))
    monkeypatch.setattr("sys.argv", ["tests/bench/bench_read.py"])
    record("nodes", ours=9, peer=10, unit="s", ratio=1.1, limit=2)
    record("page", ours=0.5, unit="s", limit=1)
    results = [Result.model_validate_json(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [each.bench for each in results] == ["read", "read"]
    assert [each.holds for each in results] == [False, True]
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(table_of(Benchmarks(version="0", machine=HERE, quick=True, results=results)))
    text = console.export_text()
    assert "A chip, 2 cores, 8 GB, load 0.5, short forms" in text
    assert "at least 2" in text and "at most 1" in text and text.count("beyond") == 1
