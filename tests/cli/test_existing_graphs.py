"""Commands on a graph that is there: live parameters, another pipeline, `retry` and `promote`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from graphbuild.store.graph import Graph
from tests.support.annotators import calls, write_photos
from tests.support.commands import RUN, Command, pipeline, status


def test_bare_names_keep_the_live_parameters(cli: Command) -> None:
    """`--annotators canny` on more photos continues with low=50; the old version is not built beside it."""
    assert cli(pipeline("  - {use: canny, low: 50}")).code == 0
    live = status(cli).live["canny"]
    write_photos(Path("photos"), range(30, 33))
    assert cli(f"{RUN} --annotators canny").code == 0
    document = status(cli)
    assert document.live["canny"] == live and document.kinds["canny"]["ok"] == 9 and document.not_live == []
    assert {commit.document.config["low"] for commit in Graph.open("g").commits("canny")} == {50.0}


def test_a_source_may_run_another_sources_pipeline(cli: Command) -> None:
    """--source beside --pipeline replaces the pipeline's source, its path included."""
    result = cli(f"{RUN} --pipeline sample --limit 1")
    assert result.code == 0, result.text
    assert set(status(cli).kinds) == {"image", "canny", "lines", "foreground_mask", "caption"}


def test_retry_computes_only_what_failed(cli: Command, control: Callable[..., str]) -> None:
    """A mended annotator: one new revision, ok rows kept, readers of the old one undisturbed."""
    names = sorted(path.name for path in Path("photos").iterdir())
    tag = control({names[1]: "fail"})
    line = pipeline(f"  - {{use: 'tests.support.annotators:Ordered', tag: {tag}}}")
    result = cli(line)
    assert (
        result.code == 0
        and result.last.endswith(f"graphbuild retry g --path {Path('photos').resolve()}")
        and "1 failed" in result.last
    )
    old = Graph.open("g")
    assert cli(line).code == 0 and len(calls(tag)) == 6, "a plain rerun retries nothing"
    control()
    result = cli("retry g --executor inline")
    assert result.code == 1 and "not retried: annotator 'tests.support.annotators:Ordered'" in result.err
    assert len(calls(tag)) == 6, "no code is imported because a graph names it"
    (Path("photos") / "new.jpg").write_bytes((Path("photos") / names[0]).read_bytes())
    result = cli("retry g --pipeline mine.yaml --executor inline")
    assert result.code == 0, result.text
    assert calls(tag)[6:] == [names[1]] and status(cli).items == 6, "no new items"
    assert status(cli).kinds["canny"] == {"ok": 6, "skipped": 0, "failed": 0}
    assert sorted(commit.ref.revision for commit in Graph.open("g").commits("canny")) == [0, 0, 0, 0, 0, 1]
    assert old.kinds()["canny"] == 5 and cli("verify g --full").code == 0
    assert "nothing to do" in cli("retry g --pipeline mine.yaml --executor inline").out


def test_retry_works_from_another_folder(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a folder that is read because a graph names it; one that is trusted finds its photographs, given
    by a relative path, from wherever it is retried."""
    (Path("photos") / "p98.jpg").symlink_to(".later")
    assert cli(f"{RUN} --annotators canny").code == 0
    assert status(cli).kinds["image"] == {"ok": 6, "skipped": 0, "failed": 1}
    shutil.copy(Path("photos") / "p00.jpg", Path("photos") / ".later")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    result = cli("retry ../g --executor inline")
    assert result.code == 0 and "--path FOLDER retries rows of the source too" in result.err
    assert Graph.open("../g").kinds() == {"image": 6, "canny": 6}
    result = cli("retry ../g --trust-graph --executor inline")
    assert result.code == 0, result.text
    assert Graph.open("../g").kinds() == {"image": 7, "canny": 7}


def test_promote(cli: Command) -> None:
    """A complete version goes live and back; an incomplete or unknown one is refused; snapshots keep theirs."""
    assert cli(f"{RUN} --annotators canny").code == 0
    first = status(cli)
    assert cli(pipeline("  - {use: canny, low: 50}")).code == 0
    second = status(cli)
    old, new = first.live["canny"].version, second.live["canny"].version
    assert old != new and second.not_live == [f"canny {old}"] and f"not live: canny {old}" in cli("status g").out
    assert Graph.open("g", snapshot=first.snapshot).read(0, "canny").version == old
    result = cli(f"promote g {old}")
    assert result.code == 0 and f"{old} is live for canny" in result.out
    assert Graph.open("g").read(0, "canny").version == old and status(cli).live["canny"].version == old
    assert Graph.open("g", snapshot=second.snapshot).read(0, "canny").version == new
    assert Graph.open("g").read(0, "canny", version=new).version == new
    write_photos(Path("photos"), [30])
    assert cli(f"{RUN} --annotators canny").code == 0
    result = cli(f"promote g {new}")
    assert result.code == 2 and "not complete" in result.err and status(cli).live["canny"].version == old
    result = cli("promote g v0123456789ab")
    assert result.code == 2 and old in result.err and new in result.err
