"""Loggers beside TensorBoard, where they are installed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.training import NEVER, Ground, recorded


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_the_values_of_a_run_that_is_resumed(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run without values, and a resumed one that is another run there."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for steps in (2, 3):
        done = ground.launch("tracked", steps=steps, watch={**NEVER, "loggers": ["trackio"]})
        assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "graphbuild.db")) as kept:
        rows = kept.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert len({run for run, *_ in rows}) == 1
    assert [(name, step) for _, name, step, _ in rows] == [("tracked", 1), ("tracked", 2), ("tracked", 3)]
    assert [json.loads(values)["train/loss"] for *_, values in rows] == recorded(ground.folder / "tracked", "loss")
