"""The command line: what a user types, reads and gets as an exit code."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from graphbuild.cli import app
from graphbuild.cli.schema import schema_files
from graphbuild.contracts import RunReport
from graphbuild.store.graph import Graph
from tests.support.annotators import leftovers, write_photos
from tests.support.commands import RUN, Command, pipeline, status

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

MODULE = """
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from graphbuild.annotators.canny import Canny


@dataclass(frozen=True, kw_only=True)
class Fragile(Canny):
    def load(self, device):
        if os.path.exists("broken"):
            raise RuntimeError("the model does not load")


@dataclass(frozen=True, kw_only=True)
class Stopped(Canny):
    def annotate(self, batch, model):
        if os.path.exists("broken"):
            os.kill(os.getpid(), signal.SIGINT)
        return super().annotate(batch, model)
"""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with size and time of change."""
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


# ---- help and the main way through -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(cli: Command, name: str) -> None:
    """Nobody should have to guess how a command is called."""
    result = cli(f"{name} --help")
    assert result.code == 0 and "Example" in result.out and f"graphbuild {name}" in result.out


def test_the_way_through(cli: Command) -> None:
    """run, status, verify, sample, and a second run: counts, exit codes and files."""
    (Path("photos") / "p09.png").write_bytes(b"")
    for number in (0, 1, 2):
        next(Path("photos").glob(f"p0{number}.*")).with_suffix(".txt").write_text("Words.")
    result = cli(f"{RUN} --annotators canny,lsd,source_caption")
    assert result.code == 0, result.text
    document = cli("status g --json").json
    assert document["kinds"] == {
        "image": {"ok": 6, "skipped": 0, "failed": 1},
        "canny": {"ok": 6, "skipped": 1, "failed": 0},
        "lines": {"ok": 6, "skipped": 1, "failed": 0},
        "caption": {"ok": 3, "skipped": 4, "failed": 0},
    }
    assert document["units"] == {"done": 28, "wanted": 28} and document["items"] == 7
    assert document["reasons"]["image"] == {"failed:empty_file": 1}
    table = cli("status g")
    assert table.code == 0 and all(word in table.out for word in ("canny", "lines", "28 of 28", "empty_file"))
    assert (full := cli("verify g --full --json")).code == 0
    assert full.json["problems"] == [] and full.json["nodes"] == 6 + 6 + 6 + 3
    result = cli("sample g --count 3 --seed 1 --out grids --resolution 32")
    assert result.code == 0 and "of 134 paths can be served" in result.err
    printed = [Path(line) for line in result.out.splitlines()]
    assert [path.suffix for path in printed] == [".png"] * 3 + [".jsonl"] and all(path.is_file() for path in printed)
    again = cli("sample g --count 1 --index 2 --seed 1 --out again --resolution 32")
    assert again.out.splitlines()[0] == f"again/{printed[2].name}"
    assert Path("again", printed[2].name).read_bytes() == printed[2].read_bytes()
    assert Path("again/walks.jsonl").read_text() == printed[3].read_text().splitlines(keepends=True)[2]


def test_default_folder_and_version(cli: Command) -> None:
    """Without --out the graph is called after its source."""
    assert cli("run --source folder --path photos --annotators canny --executor inline").code == 0
    assert Path("folder-graph/graph.json").is_file()
    result = cli("--version")
    assert result.code == 0 and result.out.startswith("graphbuild ")


def test_a_folder_that_is_no_place_for_output_is_refused(cli: Command) -> None:
    """Guards against a README of one's own that is overwritten, and against advice to try again in vain."""
    Path("mine").mkdir()
    Path("mine/README.md").write_text("My project.\n")
    Path("file").touch()
    built = cli(f"{RUN} --annotators canny --out mine")
    assert built.code == 2 and "README.md" in built.err
    assert [path.name for path in Path("mine").iterdir()] == ["README.md"]
    assert cli(f"{RUN} --annotators canny").code == 0
    for argv in ("sample g --count 1 --resolution 16 --out file", f"{RUN} --annotators canny --out file"):
        result = cli(argv)
        assert result.code == 2 and "file" in result.err and "again" not in result.err, result.err
    assert cli("sample g --count 1 --on-missing foo").code == 2
    assert cli("explain g 0 foreground --variant 5").code == 2


def test_reports_are_json_on_request(cli: Command) -> None:
    """Standard output holds one document and nothing else."""
    report = RunReport.model_validate_json(cli(f"{RUN} --annotators canny --json").out)
    assert report.annotators["canny"].ok == 6 and report.units_left == [] and report.units_wanted == 12
    assert RunReport.model_validate_json(cli(f"{RUN} --annotators canny --json").out).annotators == {}


def test_schemas_are_written(cli: Command) -> None:
    """`schema --write` lays down what `schemas/v1` holds."""
    assert cli("schema").out.split() == list(schema_files())
    assert cli("schema --write s").code == 0
    assert {file.name: file.read_text() for file in Path("s/v1").iterdir()} == schema_files()


# ---- nothing to do, nothing written ----------------------------------------------------------------------------


def test_a_second_run_opens_no_image_and_starts_no_ray(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming a finished graph costs a look at names and footers."""
    import cv2
    from PIL import Image

    from graphbuild.images import node

    assert cli(f"{RUN} --annotators canny,lsd").code == 0
    before = snapshot(Path("g"))

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("an image was opened")

    for owner, name in ((cv2, "imdecode"), (Image, "open"), (node, "decode_image")):
        monkeypatch.setattr(owner, name, refuse)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse() if "photos" in path.parts else read(path))
    monkeypatch.setitem(sys.modules, "graphbuild.engine.executors.ray", None)  # importing it fails
    result = cli("run --source folder --path photos --out g --annotators canny,lsd")
    assert result.code == 0 and "nothing to do, 18 of 18 units are committed" in result.out
    before["_tmp"] = snapshot(Path("g"))["_tmp"]
    assert snapshot(Path("g")) == before


def test_plan_writes_nothing(cli: Command) -> None:
    """A dry run must not make the graph, nor touch one."""
    plan = RUN.replace("run", "plan", 1).replace(" --executor inline", "")
    before = snapshot(Path())
    result = cli(f"{plan} --annotators canny")
    assert result.code == 0 and "12 of 12 units" in result.out and snapshot(Path()) == before
    assert cli(f"{RUN} --annotators canny").code == 0
    before = snapshot(Path())
    assert "nothing to do" in cli(f"{plan} --annotators canny").out
    result = cli(f"{plan} --annotators canny,lsd --json")
    assert result.json["units"] == {"todo": 6, "wanted": 18} and result.json["items"] == 6
    assert result.json["plan"] == [{"annotator": "lsd", "why": "missing", "units": 6}]
    assert snapshot(Path()) == before


def test_plan_says_why(cli: Command) -> None:
    """Changed thresholds: which units, and from what to what."""
    assert cli(f"{RUN} --annotators canny,lsd").code == 0
    line = pipeline("  - {use: canny, low: 50}\n  - lsd").replace("run", "plan", 1).replace(" --executor inline", "")
    result = cli(f"{line} --json")
    assert result.json["plan"] == [{"annotator": "canny", "why": "annotator changed: low 100.0 -> 50.0", "units": 6}]
    assert "low 100.0 -> 50.0" in cli(line).out


# ---- exit 1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Fragile", "Stopped"])
def test_what_is_left_undone_names_the_command_that_continues(cli: Command, name: str, tmp_path: Path) -> None:
    """A model that does not load, and Ctrl-C: the last line is the command, which then ends the work."""
    module = f"own_{tmp_path.name}"
    Path(f"{module}.py").write_text(MODULE)
    Path("broken").touch()
    line = f"{RUN} --annotators '{module}:{name},lsd'"
    result = cli(line)
    assert result.code == {"Fragile": 1, "Stopped": 130}[name], result.text
    command = result.last.partition("continue with: graphbuild ")[2]
    assert shlex.split(command) == shlex.split(line) and leftovers(Path("g")) == []
    Path("broken").unlink()
    assert cli(command).code == 0
    assert status(cli).units == {"done": 18, "wanted": 18} and status(cli).kinds["canny"]["ok"] == 6


def test_strict_makes_failed_rows_an_error(cli: Command) -> None:
    """Exit 0 means that every unit is committed; --strict also asks that no row failed, on every run."""
    (Path("photos") / "p99.jpg").write_bytes(b"not a picture")
    line = f"{RUN} --annotators canny"
    assert cli(f"{line} --strict").code == 1
    assert cli(line).code == 0
    assert cli(f"{line} --strict").code == 1


def test_failed_rows_are_counted_on_the_last_line(cli: Command) -> None:
    """Exit code 0 with failures must not look like success without them."""
    for name in ("p97.jpg", "p98.jpg"):
        (Path("photos") / name).write_bytes(b"not a picture")
    result = cli(f"{RUN} --annotators canny")
    assert result.code == 0
    assert "2" in result.last and "failed" in result.last, result.text


def test_a_folder_alone_is_enough(cli: Command) -> None:
    result = cli("run photos/ --executor inline --limit 2")
    assert result.code == 0, result.text
    assert Graph.open("photos-graph").kinds().keys() == {"image", "canny", "lines", "foreground_mask", "caption"}
    assert "nothing to do" in cli("plan photos --limit 2").out


# ---- exit 2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("run --source foldr --annotators canny", ["foldr", "folder", "sample", "subjects200k"]),
        (f"{RUN} --annotators cany", ["cany", "did you mean 'canny'", "lsd", "grabcut"]),
        (f"{RUN} --annotators no_such_thing", ["no_such_thing", "canny", "lsd", "module:Class"]),
        (f"{RUN} --pipeline smaple", ["smaple", "sample", "subjects200k"]),
        ("run --source manifest --path photos --out g", ["'manifest' has no pipeline of its own", "--annotators"]),
        ("run photos --path photos --out g", ["'photos' and --path", "give one of the two"]),
        ("plan photos --source sample", ["'photos' and --source", "give one of the two"]),
        ("run --source folder --annotators canny --out g", ["path"]),
        ("run --source folder --path nowhere --annotators canny --out g", ["nowhere"]),
        ("run --annotators canny", ["--source"]),
        ("run --source sample --path photos --out g", ["sample", "path"]),
        (f"{RUN} --annotators canny --executor spark", ["spark", "ray", "inline"]),
        (f"{RUN} --annotators canny --limit 0", ["--limit"]),
        (f"{RUN} --annotators 'canny,tests.support.annotators:TwoKinds'", ["canny", "two_kinds", "canny"]),
        (f"{RUN} --annotators 'tests.support.annotators:Child'", ["child", "canny"]),
        (f"{RUN} --anotators canny", ["--anotators"]),
        ("status nowhere", ["nowhere", "not a graph"]),
        ("status photos", ["photos", "not a graph"]),
        ("sample nowhere", ["nowhere", "not a graph"]),
        ("retry nowhere", ["nowhere", "not a graph"]),
        ("promote nowhere v000000000000", ["nowhere", "not a graph"]),
        ("nonsense", ["nonsense"]),
    ],
)
def test_wrong_usage_is_refused(cli: Command, line: str, parts: list[str]) -> None:
    """Exit code 2, a message that lists what is valid, no traceback, and nothing written."""
    before = snapshot(Path())
    result = cli(line)
    assert result.code == 2, result.text
    assert all(part in result.text for part in parts) and "Traceback" not in result.text, result.text
    assert snapshot(Path()) == before


def test_unknown_parameters_list_the_valid_ones(cli: Command) -> None:
    """A misspelt threshold must not run with the default."""
    result = cli(pipeline("  - {use: canny, lo: 50}"))
    assert result.code == 2 and all(word in result.err for word in ("mine.yaml", "'lo'", "low", "high"))


def test_an_existing_graph_refuses_what_would_change_it(cli: Command) -> None:
    """Another shard size, another source, a photograph whose bytes changed: refused by name, nothing written."""
    assert cli(f"{RUN} --annotators canny --shard-size 4").code == 0
    changed, other = sorted(Path("photos").iterdir())[2], next(write_photos(Path("other"), [40]).iterdir())
    assert cli(f"{RUN} --annotators canny --shard-size 4").code == 0
    before = snapshot(Path("g"))
    result = cli(f"{RUN} --annotators canny --shard-size 5")
    assert result.code == 2 and "4 items" in result.err and "--shard-size 5" in result.err
    result = cli("run --source sample --out g")
    assert result.code == 2 and "'folder'" in result.err and "'sample'" in result.err and "--out" in result.err
    shutil.copy(other, changed)
    result = cli(f"{RUN} --annotators canny")
    assert result.code == 2 and changed.name in result.err and "--accept-changed" in result.err
    assert snapshot(Path("g")) == before
    assert cli(f"{RUN} --annotators canny --accept-changed").code == 0 and status(cli).items == 7


def test_sampling_what_cannot_be_served_is_refused(cli: Command) -> None:
    """The counts per kind say what to run first; no folder is made."""
    assert cli(f"{RUN} --annotators canny").code == 0
    Path("own.yaml").write_text("paths: [{name: a, cells: [hed, image]}, {name: b, cells: [canny, image]}]\n")
    result = cli("sample g --paths own.yaml --out grids")
    assert result.code == 2 and "no hed" in result.err and "serves 1 of the 2" in result.err
    assert not Path("grids").exists()
    assert Graph.open("g").digest in cli("sample g --snapshot 0123").err


def test_path_names_may_hold_any_character(cli: Command) -> None:
    """A path called `canny/image` must not become a folder, nor lead out of the output."""
    assert cli(f"{RUN} --annotators canny").code == 0
    Path("own.yaml").write_text("paths: [{name: ../a/b, cells: [canny, image]}]\n")
    result = cli("sample g --paths own.yaml --count 1 --out grids --resolution 16")
    assert result.code == 0, result.text
    assert sorted(path.suffix for path in Path("grids").iterdir()) == [".jsonl", ".png"]
