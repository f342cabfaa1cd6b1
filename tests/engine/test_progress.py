"""What a run shows while it works, and what a plan says it will take."""

from __future__ import annotations

import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from graphbuild.annotators.canny import Canny
from graphbuild.annotators.lsd import Lsd
from graphbuild.cli import app
from graphbuild.contracts import Shard, Unit
from graphbuild.engine.estimate import estimate
from graphbuild.engine.metrics import served
from graphbuild.engine.plan import make_plan
from graphbuild.engine.progress import Progress
from graphbuild.engine.records import UnitReport
from graphbuild.errors import GraphError
from graphbuild.models.device import GpuUse, gpu_use
from graphbuild.sources import resolve as source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.status import _saved
from tests.support.annotators import build, complete, start
from tests.support.sources import InMemory


def test_time_left_is_each_annotators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a fast annotator that promises an hour for what a slow one takes days."""
    now = [1000.0]
    monkeypatch.setattr("graphbuild.engine.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(quiet=True), {"fast": 100, "slow": 100, "later": 5})
    progress("fast", 0, 0, 0)
    progress("slow", 40, 0, 0)  # saved by a run before
    now[0] += 10
    progress("fast", 90, 90, 0)
    progress("slow", 10, 10, 3)
    assert progress.line(now[0]) == ("140/205 nodes, 10.0/s, 3 failed, left: fast 0:00:01, slow 0:00:50, later ?")
    progress("fast", 20, 20, 0)  # a unit that was tried again
    assert progress.line(now[0]).startswith("150/205 nodes")


def test_progress_for_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against dashboards that have to read sentences."""
    now = [1000.0]
    unit = Unit(annotator="fast", version="v1", shard=Shard(index=0, start=0, stop=4))
    monkeypatch.setattr("graphbuild.engine.progress.time.monotonic", lambda: now[0])
    said = Console(record=True, file=io.StringIO(), width=20, force_terminal=True)
    progress = Progress(said, {"fast": 100, "later": 5}, as_json=True)
    progress("fast", 0, 0, 0)
    now[0] += 10
    progress.stored([UnitReport(unit=unit, revision=0, nbytes=size) for size in (3000, 4000)])
    progress.gpus["node GPU 0"] = GpuUse(6, 8, None)
    progress("fast", 50, 40, 3)
    (line,) = said.export_text().splitlines()
    assert json.loads(line)["gpus"] == {"node GPU 0": {"used": 6, "total": 8, "busy": None}}
    annotators = json.loads(line)["annotators"]
    assert annotators["fast"] == {
        "total": 100, "done": 50, "computed": 40, "failed": 3, "nbytes": 7000, "per_second": 4.0, "seconds_left": 12.5,
    }  # fmt: skip
    assert annotators["later"]["seconds_left"] is None

    with served(0, lambda: progress) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(GraphError, match="give another port"), served(port, lambda: progress):
            pass
    assert 'graphbuild_rows{annotator="fast",state="failed"} 3.0' in text
    assert 'graphbuild_bytes{annotator="fast"} 7000.0' in text and 'what="busy"' not in text
    assert 'graphbuild_gpu{gpu="node GPU 0",what="used"} 6.0' in text
    assert 'graphbuild_seconds_left{annotator="fast"} 12.5' in text and 'seconds_left{annotator="later"' not in text
    with pytest.raises(urllib.error.URLError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics"):
        pass


def test_the_use_of_a_gpu_is_told_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against work that ends because its GPU cannot be watched: no NVML, a part of a GPU, one that is lost."""

    def fails() -> int:
        raise answers[0]

    answers: list[Exception] = [ModuleNotFoundError("pynvml"), ValueError("NVMLError_NotSupported")]
    cuda = SimpleNamespace(is_initialized=lambda: False, mem_get_info=lambda: (2, 8), utilization=lambda: 93)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert gpu_use() is None
    cuda.is_initialized = lambda: True
    assert gpu_use() == GpuUse(6, 8, 0.93)
    cuda.utilization = fails
    while answers:
        assert gpu_use() == GpuUse(6, 8, None)
        answers.pop(0)
    cuda.mem_get_info, answers = fails, [RuntimeError("CUDA error: unspecified launch failure")]
    assert gpu_use() is None


def test_status_and_report_count_bytes(photos: Path, tmp_path: Path) -> None:
    """Guards against a graph that grows without anybody being told."""
    report = complete(build(photos, tmp_path / "g", ["canny"], limit=4))
    sizes = {kind: sum(path.stat().st_size for path in (tmp_path / f"g/nodes/kind={kind}").rglob("*.parquet"))
             for kind in ("canny", "image")}  # fmt: skip
    assert {name: done.nbytes for name, done in report.annotators.items()} == {
        "canny": sizes["canny"], "source:folder": sizes["image"]
    }  # fmt: skip
    said = json.loads(CliRunner().invoke(app, ["status", str(tmp_path / "g"), "--json"]).stdout)
    assert said["nbytes"] == sizes and all(sizes.values())


def test_saved_rows_count_from_the_start(
    tmp_path: Path, control: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a resumed run that begins at zero and jumps at the first commit."""
    tag = control({"004": "kill"})
    process = start(InMemory(tag=tag), tmp_path / "g", [], shard_size=6, flush_s=0.0)
    process.join()
    control()
    assert list(_saved(Graph.open(tmp_path / "g")).values()) == [4], "what status tells of a unit under way"
    monkeypatch.setattr("graphbuild.engine.progress.LINE_SECONDS", 0.0)
    said = Console(record=True, file=io.StringIO(), width=200)
    complete(build(InMemory(tag=tag), tmp_path / "g", [], console=said))
    lines = said.export_text().splitlines()
    assert lines[0] == "4/6 nodes, 0.0/s, 0 failed, left: source:in_memory ?"
    assert lines[-1].startswith("6/6 nodes") and lines[-1].endswith("0 failed, left: the last commits")


def test_a_plan_estimates_time_and_bytes(photos: Path, tmp_path: Path) -> None:
    out, files = tmp_path / "g", files_at(tmp_path / "g")
    plan = make_plan(files, source("folder", path=str(photos)), [Canny()])
    assert estimate(plan, files) is None
    complete(build(photos, out, ["canny"], limit=8, shard_size=4))
    plan = make_plan(files, source("folder", path=str(photos)), [Canny(), Lsd()])
    found = estimate(plan, files)
    assert found is not None and found.unknown == ("lsd",) and found.work_seconds > 0 < found.seconds
    commits = [commit for kind in ("image", "canny") for commit in Graph.open(out).commits(kind)]
    parts = [part.nbytes for commit in commits for part in commit.document.parts]
    assert found.nbytes == round(sum(parts) / 8 * 10), "eight items are there, ten are to come"
    options = ["--source", "folder", "--path", str(photos), "--out", str(out), "--annotators", "canny,lsd"]
    shown = CliRunner().invoke(app, ["plan", *options]).stdout
    assert "with as many workers as in earlier runs" in shown and "have not run on this graph: lsd" in shown
