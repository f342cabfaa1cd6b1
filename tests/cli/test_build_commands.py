"""What a user sees of failures, of versions that go live, of own code beside a pipeline, and of ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, TaskCancelledError
from rich.console import Console
from typer.testing import CliRunner

from graphbuild.annotators.canny import Canny
from graphbuild.cli import app
from graphbuild.engine.executors import ray as ray_pool
from graphbuild.engine.plan import make_plan
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_head
from graphbuild.store.locations import files_at
from graphbuild.store.promote import promote
from graphbuild.store.status import failed_rows
from graphbuild.store.workspace import Workspace
from tests.support.annotators import SomeFail, build, complete, leftovers, write_photos
from tests.support.sources import InMemory, Misbehaving

# ---- failures ----------------------------------------------------------------------------------------------------


def test_an_annotator_of_which_every_row_fails(tmp_path: Path, photos: Path) -> None:
    """Guards against 18 failures that end with exit code 0 and do not say what went wrong."""
    said = Console(record=True, file=io.StringIO(), width=400)
    report = build(photos, tmp_path / "g", [SomeFail(percent=100), "lsd"], console=said)
    assert report.units_left == []
    expected = "some_fail: 18 of 18 rows failed, most often (18 of 18 seen) with RuntimeError: no luck: "
    assert report.errors == [expected + "'p00.jpg', 'p01.png', 'p02.jpg'"]
    shown = said.export_text()
    assert report.errors[0] in shown and "failures.jsonl" in shown
    traces = (tmp_path / "g/runs" / report.run_id / "failures.jsonl").read_text().splitlines()
    assert len(traces) == 18 and "in annotate" in json.loads(traces[0])["trace"]


def test_half_of_a_small_set(tmp_path: Path, photos: Path) -> None:
    """A few failures are counted, more than half of a small set is the annotator's fault."""
    assert complete(build(photos, tmp_path / "g", [SomeFail(percent=40)])).failed < 9
    assert build(photos, tmp_path / "h", [SomeFail(percent=70)]).errors


def test_failed_rows_are_listed(tmp_path: Path, photos: Path) -> None:
    """Guards against a graph that counts its failures and cannot say which."""
    folder = write_photos(tmp_path / "photos", range(5))
    (folder / "bad.jpg").write_bytes(b"junk")
    out = tmp_path / "g"
    build(folder, out, [SomeFail(percent=30)])
    every = failed_rows(Graph.open(out))
    assert {row["kind"] for row in every} == {"canny", "image"}
    answer = CliRunner().invoke(app, ["status", str(out), "--failed", "--kind", "image", "--json"])
    (row,) = json.loads(answer.stdout)
    assert (row["key"], row["reason"]) == ("bad.jpg", "undecodable") and row["detail"]
    answer = CliRunner().invoke(app, ["status", str(out), "--failed", "--reason", "error"])
    assert "canny: error: RuntimeError: no luck" in answer.stdout and "bad.jpg" not in answer.stdout


# ---- what is live ------------------------------------------------------------------------------------------------


def test_nothing_to_do_leaves_what_promote_set(tmp_path: Path, photos: Path) -> None:
    """Guards against a plain rerun that takes back what somebody chose by hand."""
    out, new = tmp_path / "g", Canny(low=50.0)
    complete(build(photos, out, [Canny()], limit=4))
    old = Graph.open(out).live("canny")
    plan = make_plan(files_at(out), None, [new])
    assert set(plan.replaces()) == {"canny"}
    report = complete(build(photos, out, [new], limit=4))
    assert report.went_live == {"canny": Graph.open(out).live("canny")} == plan.replaces()
    promote(out, old.version)
    plan = make_plan(files_at(out), None, [new])
    command = f"graphbuild promote {out} {report.went_live['canny'].version}"
    assert plan.replaces() == {} and any(f"not live for canny; to make it live: {command}" in n for n in plan.notes)
    assert make_plan(files_at(out), None, [Canny()]).notes == ()
    assert complete(build(photos, out, [new], limit=4)).went_live == {}
    assert Graph.open(out).live("canny") == old


def test_a_promote_during_a_run_is_the_last_that_was_asked(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run of hours whose end takes back what somebody chose by hand in the meantime."""
    out, said = tmp_path / "g", Console(record=True, file=io.StringIO(), width=400)
    versions = []
    for low in (100.0, 50.0):
        complete(build(photos, out, [Canny(low=low)], limit=4))
        versions.append(Graph.open(out).live("canny"))
    monkeypatch.setattr("graphbuild.engine.run.write_event", lambda *event: promote(out, versions[0].version))
    report = complete(build(photos, out, [Canny(low=60.0)], limit=4, console=said))
    assert report.went_live == {} and Graph.open(out).live("canny") == versions[0]
    (told,) = [line for line in said.export_text().splitlines() if "went live during this run and stays" in line]
    promote(out, told.split()[-1])
    assert Graph.open(out).live("canny") not in versions


@pytest.mark.parametrize("new", [False, True])
def test_of_two_runs_at_once_both_are_told(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    """Guards against two versions of a kind of which one goes live in silence, whoever asked for the other."""
    out = tmp_path / "g"
    said = {low: Console(record=True, file=io.StringIO(), width=400) for low in (50.0, 60.0)}
    complete(build(photos, out, ["lsd" if new else "canny"], limit=4))

    def another(*event: object) -> None:
        monkeypatch.undo()
        complete(build(photos, out, [Canny(low=60.0)], limit=4, console=said[60.0]))

    monkeypatch.setattr("graphbuild.engine.run.write_event", another)
    complete(build(photos, out, [Canny(low=50.0)], limit=4, console=said[50.0]))
    first, second = (console.export_text() for console in said.values())
    assert second.count("also at work on this graph: 20") == 2  # as it starts, and as its version goes live
    (told,) = [line for line in first.splitlines() if "went live during this run" in line]
    assert ("is replaced" in told) != new
    live = Graph.open(out).live("canny")
    promote(out, told.split()[-1])
    assert Graph.open(out).live("canny") != live


def test_a_version_that_was_never_live_goes_live(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed between its last unit and its head: the next one has nothing to compute and finishes it."""
    out = tmp_path / "g"
    complete(build(photos, out, [Canny()], limit=4))
    with monkeypatch.context() as killed:
        killed.setattr("graphbuild.engine.run._Run._promote", lambda self, plan: None)
        build(photos, out, [Canny(low=50.0)], limit=4)
    number = read_head(files_at(out))[0]
    assert set(complete(build(photos, out, [Canny(low=50.0)], limit=4)).went_live) == {"canny"}
    assert read_head(files_at(out))[0] == number + 1


def test_status_shows_the_parameters_of_versions(tmp_path: Path, photos: Path) -> None:
    complete(build(photos, tmp_path / "g", [Canny(low=50.0)], limit=4))
    complete(build(photos, tmp_path / "g", [Canny(low=60.0)], limit=4))
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "g")]).stdout
    assert "not live: canny" in shown and "low=50.0" in shown and "low=60.0" in shown


def test_a_finished_graph_on_a_disk_that_cannot_be_written(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(build(photos, tmp_path / "g", ["canny"], limit=4))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(Workspace, "create", None)
    assert complete(build(photos, tmp_path / "g", ["canny"], limit=4)).units_wanted == 4


# ---- own code ----------------------------------------------------------------------------------------------------

SKETCHES = """
from dataclasses import dataclass
from typing import ClassVar
import graphbuild as gb

@dataclass(frozen=True, kw_only=True)
class PencilSketch(gb.Condition):
    makes: ClassVar = ("hed",)
    sigma: float = 8.0

    def annotate(self, batch, model):
        return [gb.Derived({"hed": r.inputs["image"].array()[:, :, 0].copy()}) for r in batch]
"""


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_own_code_beside_a_pipeline(
    executor: str, tmp_path: Path, photos: Path, request: pytest.FixtureRequest
) -> None:
    """Guards against `No module named sketches` for a file that lies beside the pipeline that names it."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sketches.py").write_text(SKETCHES)
    (own / "mine.yaml").write_text('source: folder\nannotators: [{use: "sketches:PencilSketch", sigma: 4}]\n')
    options = ["--path", photos, "--out", "g", "--limit", "3", "--executor", executor]
    options += ["--address", request.getfixturevalue("ray_address")] if executor == "ray" else []
    command = [sys.executable, "-P", "-m", "graphbuild.cli", "run", "--pipeline", own / "mine.yaml", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Graph.open(tmp_path / "g").kinds() == {"image": 3, "hed": 3}
    command = [sys.executable, "-P", "-m", "graphbuild.cli", "run", "--source", "folder", *options]
    done = subprocess.run([*command, "--annotators", "lsd"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "an annotator that was not named need not be importable: " + done.stderr


# ---- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("error", [OutOfMemoryError("the memory monitor"), TaskCancelledError()], ids=type)
def test_a_lost_worker_is_replaced(
    error: Exception,
    tmp_path: Path,
    control: Callable[..., str],
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against a run that ends because Ray's memory monitor took one of its workers."""
    get, lost = ray_pool.ray.get, [error]

    def get_or_lose(ref: Any, **options: Any) -> Any:
        answer = get(ref, **options)
        if lost and isinstance(answer, list):
            raise lost.pop()
        return answer

    monkeypatch.setattr(ray_pool.ray, "get", get_or_lose)
    tag = control()
    complete(build(InMemory(tag=tag), tmp_path / "g", [Misbehaving(tag=tag)], executor="ray", shard_size=3))
    assert lost == [] and Graph.open(tmp_path / "g").kinds() == {"image": 6, "caption": 6}
    assert leftovers(tmp_path / "g") == []


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_cannot_start_end_the_run(
    tmp_path: Path, control: Callable[..., str], ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a cluster whose nodes lack a package: its workers died and were replaced, for ever."""
    start = ray_pool.start
    impossible = ("ftp://nowhere", "workspace", 1.0)
    monkeypatch.setattr(ray_pool, "start", lambda actor, args, *rest: start(actor, (impossible, *args[1:]), *rest))
    report = build(InMemory(tag=control()), tmp_path / "g", [], executor="ray", shard_size=3)
    assert len(report.units_left) == 2
    assert "did not start" in report.errors[0] and "ftp://nowhere" in report.errors[0]
