"""What reaches a terminal: nothing that steers it, real plurals, progress with the time left, and early Ctrl-C."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from rich.console import Console
from typer.testing import CliRunner

from graphbuild.cli import app, console, text
from graphbuild.store.verify import Verdict
from tests.support.annotators import build, write_photos

KEY = "a\x1b[31m\n\u202eb"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of one good picture with a hostile caption and one that is none, with hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    (photo,) = write_photos(folder / "photos", [0]).iterdir()
    photo.rename(photo.with_name(f"{KEY}{photo.suffix}"))
    (folder / "photos" / f"{KEY}.txt").write_text("Words \x1b]0;title\x07 and\nmore \u202e.")
    (folder / "photos" / f"{KEY}bad.png").write_bytes(b"no picture")
    build(folder / "photos", folder / "g", ["canny", "source_caption"])
    return folder / "g"


@pytest.mark.parametrize(
    "line",
    [
        ["status"],
        ["status", "--failed"],
        ["explain", "0", "canny"],
        ["explain", "--sample", "3", "--on-missing", "drop"],
        ["explain", "nobody\x1b[2J", "canny"],
        ["verify"],
        ["promote", "v\x1b[2J\n"],
    ],
    ids=" ".join,
)
def test_nothing_steers_the_terminal(hostile: Path, line: list[str]) -> None:
    """Guards against a file name or caption that recolours, clears or fakes lines of a terminal."""
    result = CliRunner().invoke(app, [line[0], str(hostile), *line[1:]])
    for row in result.output.split("\n"):
        assert row.isprintable(), ascii(row)
    if line[1:] == ["--failed"]:
        assert result.stdout.startswith(r"a\x1b[31m\n\u202eb") and result.stdout.endswith("\n1 failed row\n")


def test_a_message_keeps_its_own_lines() -> None:
    assert text.shown_lines("not here:\n  x\x1b[1m\x85") == "not here:\n  x\\x1b[1m\\x85"
    assert text.shown("a\nb\u00e9\x00") == "a\\nb\u00e9\\x00"


def test_brackets_in_a_table_are_shown(hostile: Path) -> None:
    """Guards against `[red]` in a name that is taken for markup, and vanishes."""
    shown = Console(record=True, file=io.StringIO(), width=100)
    shown.print(
        text.weights_table(
            [{"annotator": "a[red]", "makes": ["k"], "checkpoints": [], "memory_gb": 0.0, "missing": []}]
        )
    )
    assert "a[red]" in shown.export_text()


def test_plurals() -> None:
    """Guards against `1 problems`."""
    one, two = Verdict(commits=1, parts=1, problems=["p"]), Verdict(commits=2, parts=0, problems=["p", "q"])
    assert list(text.verdict_lines(one, "g", False))[-1] == "g: 1 commit, 1 part: 1 problem"
    assert list(text.verdict_lines(two, "g", True))[-1] == "g: 2 commits, 0 parts, 0 nodes hashed: 2 problems"


def test_progress_on_a_terminal(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` and `sample` say how far they are and how long it still takes; elsewhere they say nothing."""
    sample = ["sample", str(hostile), "--count", "2", "--resolution", "16", "--out", str(tmp_path / "grids")]
    for argv in (["verify", str(hostile)], sample):
        assert "/2" not in CliRunner().invoke(app, argv).stderr
        screen = io.StringIO()
        monkeypatch.setattr(console, "ERR", Console(file=screen, force_terminal=True, width=120))
        assert CliRunner().invoke(app, argv).exit_code == 0
        monkeypatch.undo()
        total = "2/2" if argv[0] == "sample" else "6/6"
        assert total in screen.getvalue() and "0:00:00" in screen.getvalue()


def test_downloads_show_the_hubs_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against an hour of silence: bytes, rate and time left are shown by the hub's library."""
    shown = []

    def download(repository: str, **options: object) -> str:
        shown.append((repository, are_progress_bars_disabled(), "tqdm_class" in options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    enable_progress_bars()  # models of other tests have switched them off in this process
    fetched = CliRunner().invoke(app, ["models", "fetch", "sam2", "a/b"])
    assert [line.partition(" (")[0] for line in fetched.stderr.splitlines()] == [
        "1 of 2: facebook/sam2.1-hiera-large", "2 of 2: a/b",
    ] and "(0.9 GB, apache-2.0)" in fetched.stderr and "(size unknown)" in fetched.stderr  # fmt: skip
    assert shown == [("facebook/sam2.1-hiera-large", False, False), ("a/b", False, False)]


EARLY = """
import os, signal, sys
from {module} import main

class Interrupt:
    def find_spec(self, name, *_):
        if name in ("graphbuild.cli.console", "graphbuild_train.cli"):
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Interrupt())
main()
"""


@pytest.mark.parametrize(("module", "number"), [("graphbuild.cli", 2), ("graphbuild_train.__main__", 15)])
def test_signals_while_modules_are_loaded(module: str, number: int) -> None:
    """Guards against a traceback of an import for whoever changes their mind within the first second."""
    code = EARLY.format(module=module, number=number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
