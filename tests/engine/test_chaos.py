"""A cluster whose workers, nodes and driver are killed at random makes the graph that an undisturbed process makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench/bench_chaos.py"


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_falls_apart(tmp_path: Path) -> None:
    """Guards against rows lost, twice or blamed on their image when the machine is at fault: kills at any moment, a
    poison row, a row that hangs, a node without the source, a node whose GPU is broken. In a process of its own: it
    kills workers of Ray, and must not meet those of other tests."""
    with open(tmp_path / "said", "w+") as said:
        command = [sys.executable, str(BENCH), "--kills", "20", "--photos", "30"]
        ended = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, timeout=480, check=False)
    lines = (tmp_path / "said").read_text()
    assert ended.returncode == 0, lines[-20_000:]
    assert "20 kills" in lines and "0 graphs differ" in lines
