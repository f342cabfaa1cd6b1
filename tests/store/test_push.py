"""An export on the Hub, against a stand-in for its upload."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.errors import GraphError, Unreachable
from graphbuild.store.export import hub as pushing
from tests.support.annotators import build, complete, write_photos
from tests.support.hub import hub

# the Hub's library hands large files to its http client in a way that this one no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    complete(build(write_photos(root / "photos", range(4)), root / "g", ["canny"], shard_size=2))
    return root / "g"


def asked(graph: Path, out: Path, repo: str) -> list[str]:
    return ["export", str(graph), "--to", str(out), "--format", "folder", "--push", repo]


def test_an_export_is_pushed_and_a_stopped_push_goes_on(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a push that sends everything again, a public repository, and our own notes among the data."""
    command = asked(graph, tmp_path / "out", "lab/photos")
    with hub(monkeypatch) as server:
        server.room = 3
        stopped = CliRunner().invoke(app, command)
        assert stopped.exit_code == 1 and "run the same command again" in stopped.stderr
        assert len(server.received) == 3 and server.repositories["datasets/lab/photos"] == {}
        server.room = None
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.stderr
        files = server.repositories["datasets/lab/photos"]
        assert len(server.received) == len(set(server.received))
        here = {
            str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()
        }
        assert files == {name: here[name].read_bytes() for name in files}
        assert {name for name in here if name not in files} == {
            "export.json",
            *(name for name in here if name.startswith(".shards/")),
        }
        assert "README.md" in files and "metadata.jsonl" in files and len(files) == 2 + 2 * 4
        assert server.private == ["datasets/lab/photos"] and "/datasets/lab/photos" in done.stderr
        sent = len(server.received)
        assert CliRunner().invoke(app, command).exit_code == 0 and len(server.received) == sent


@pytest.mark.parametrize(
    ("repo", "token", "why"),
    [
        ("photos", "hf_tests", "allowed: ORG/NAME"),
        ("other/photos", "hf_tests", "you are me on the Hub; allowed: one of me, lab"),
        ("lab/photos", None, "hf auth login"),
    ],
)
def test_who_may_not_push_is_told_before_the_export(  # noqa: PLR0917 - fixtures
    repo: str, token: str | None, why: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against hours of export before a missing login is noticed."""
    with hub(monkeypatch, token) as server:
        refused = CliRunner().invoke(app, asked(graph, tmp_path / "out", repo))
    assert refused.exit_code == 2 and why in refused.stderr
    assert not (tmp_path / "out").exists() and not server.repositories


def test_a_hub_that_refuses_or_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against tracebacks of the http client."""
    with hub(monkeypatch, "hf_wrong"), pytest.raises(Unreachable, match=r"^push: lab/x: "):
        pushing.check_push("lab/x")
    with hub(monkeypatch) as server:
        pass
    with pytest.raises(Unreachable, match=r"^push: lab/x: "):
        pushing.check_push("lab/x")
    assert server.repositories == {}
    with pytest.raises(GraphError, match="ORG/NAME"):
        pushing.check_push("https://huggingface.co/lab/x")
