"""What somebody gets wrong on the first day: each message says what, where, and what mends it. Locations are text."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.models.checkpoint import Checkpoint
from tests.support.annotators import build

Refusal = Callable[[str], str]
RUN = "run --source folder --path photos --out g --executor inline"
YAML = "source: {use: folder, path: photos}\nannotators: "


@pytest.fixture
def refused(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """What a command says that is refused, in a folder with two photographs in `photos` and nothing in `empty`. It
    leaves no file and no folder."""
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    for file in sorted(photos.iterdir())[:2]:
        shutil.copy2(file, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)

    def command(line: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["graphbuild", *shlex.split(line)])
        result = CliRunner().invoke(app, sys.argv[1:])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output and sorted(tmp_path.rglob("*")) == before
        return " ".join(result.output.split())

    return command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # a wrong name
        (f"{RUN} --annotators cany", "unknown annotator 'cany' (did you mean 'canny'?)"),
        (f"{RUN} --annotators depht", "unknown annotator 'depht' (did you mean 'depth'?)"),
        ("run --source foldr --path photos --annotators canny", "unknown source 'foldr' (did you mean 'folder'?)"),
        ("run --pipeline conditons --path photos", "no pipeline 'conditons' (did you mean 'conditions'?)"),
        ("tasks --paths graph20k", "no task list 'graph20k' (did you mean 'graph200k'?)"),
        ("models fetch depht_anything", "unknown annotator 'depht_anything' (did you mean 'depth_anything'?)"),
        (f"{RUN} --annotators ','", "--annotators ',' is empty: a shell variable that is not set? Give a value"),
        # a wrong path
        ("run --source folder --path '' --annotators canny", "--path '' is empty: a shell variable that is not set?"),
        ("run --source sample --out ''", "--out '' is empty: a shell variable that is not set?"),
        ("run --source folder --path empty --annotators canny --out photos/p00.jpg", "p00.jpg: Not a directory; give"),
        ("run --source folder --path photoz --annotators canny", "photoz is not a folder; give the folder with the im"),
        ("run --pipeline mine.yaml", "no pipeline 'mine.yaml': no such file in {here}"),
        ("status nowhere", ("{here}/nowhere is not a graph (no graph.json); give the folder that was --out of a run, "
         "or make one with: graphbuild run --source sample")),
        ("run --source folder", "needs a path: the folder with the images (--path FOLDER)"),
        ("run --source video", "say what to make with --annotators canny,hed or --pipeline NAME ("),
        ("run --source folder --annotators canny", "needs a path: the folder with the images (--path FOLDER)"),
        ("run --source folder --path photos --annotators canny --out photos/g", ("{here}/photos/g lies in the source's "
         "folder photos; give an --out beside it")),
        # a wrong type
        (f"{RUN} --annotators canny --limit ten", "Invalid value for '--limit': Input should be a valid integer"),
        # an empty folder
        ("run --source folder --path empty --annotators canny", "no image files under empty; give another path"),
        # weights that are not here
        (f"{RUN} --annotators hed", ("hed: lllyasviel/Annotators (0.03 GB, apache-2.0): graphbuild models fetch "
         "lllyasviel/Annotators")),
        (f"{RUN} --annotators style_picker", ("style_picker: folder: not given; name a folder of style pictures in a "
         "pipeline: {{use: style_picker, folder: styles}}")),
        # a wrong range
        (f"{RUN} --annotators canny --limit 0", "Invalid value for '--limit': Input should be greater than or equal t"),
        # a module of one's own
        (f"{RUN} --annotators sketches:Pencil", ("annotator 'sketches:Pencil': No module named 'sketches'; it is "
         "looked for in the current folder ({here}), beside the YAML file that names it, and among installed packag")),
        (f"{RUN} --annotators graphbuild.annotators.canny:Cany", "has no attribute 'Cany' (did you mean 'Canny'?)"),
        (f"{RUN} --annotators os:path", "annotator 'os:path': it is no subclass of graphbuild.Annotator"),
        (f"{RUN} --annotators sketches.py:Pencil", "allowed: module:Class, such as sketches:Pencil"),
        (f"{RUN} --annotators ./sketches:", "'./sketches:': allowed: module:Class, such as sketches:Class"),
        (f"{RUN} --annotators graphbuild:Annotator", "'graphbuild:Annotator': Can't instantiate abstract"),
        ("schema --write photos/p00.jpg", "photos/p00.jpg/v1: Not a directory; give another name"),
    ],
)  # fmt: skip
def test_first_errors(refused: Refusal, line: str, said: str, tmp_path: Path) -> None:
    """Guards against a message that leaves a newcomer with nothing to type next."""
    assert said.format(here=tmp_path) in refused(line)


@pytest.mark.parametrize(
    ("annotators", "said"),
    [
        ("[{use: canny, low: much}]", "annotator 'canny': low: 'much'; allowed: a number 0..2040"),
        ("[{use: grabcut, iterations: 0}]", "annotator 'grabcut': iterations: 0; allowed: an integer 1..100"),
        ("[{use: canny, lo: 50}]", "annotator 'canny': unknown key 'lo'; allowed: resources, of, low, high (did you m"),
        ("canny", "annotators: 'canny'; allowed: a list"),
        ("[canny]\npaths: graph200k", "unknown key 'paths'; allowed: source, annotators"),
        ("['ends:Pencil']", "annotator 'ends:Pencil': cannot load it: SystemExit: 3"),
        ("['broken:Pencil']", "annotator 'broken:Pencil': cannot load it: SyntaxError: invalid syntax (broken.py, lin"),
    ],
)
def test_first_errors_in_a_file(refused: Refusal, annotators: str, said: str) -> None:
    """The message names the file too."""
    Path("broken.py").write_text("x = = 1\n")
    Path("ends.py").write_text("raise SystemExit(3)\n")
    Path("mine.yaml").write_text(YAML + annotators)
    assert f"mine.yaml: {said}" in refused("run --pipeline mine.yaml --out g")


def _hub_error(error: type[Exception]) -> Exception:
    made = error.__new__(error)
    Exception.__init__(made, "403 Client Error")
    return made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatedRepoError, ("is gated: accept its licence at https://huggingface.co/black-forest-labs/FLUX.1-Fill-dev, "
         "log in with: hf auth login (or set HF_TOKEN), then run again: graphbuild models fetch black-forest-labs/")),
        (RepositoryNotFoundError, "there is no such repository, or a private one; see https://huggingface.co/black"),
        (LocalEntryNotFoundError, "cannot be downloaded: 403 Client Error"),
    ],
)  # fmt: skip
def test_weights_that_are_not_given(
    refused: Refusal, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gated weights: the page of the licence, and how to log in."""

    def fetch(self: Checkpoint, **_: Any) -> Path:
        raise _hub_error(error)

    monkeypatch.setattr(Checkpoint, "fetch", fetch)
    assert said in refused("models fetch black-forest-labs/FLUX.1-Fill-dev")


@pytest.mark.parametrize(
    ("closed", "line"),
    [
        ("g", "status g"),
        ("g", "verify g"),
        ("g", f"{RUN} --annotators canny"),
        ("photos", f"{RUN} --annotators canny"),
        ("mine.yaml", "run --pipeline mine.yaml"),
        ("mine.yaml", "tasks --paths mine.yaml"),
        ("new", "schema --write new"),
    ],
)
def test_no_permission(refused: Refusal, closed: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says no, also where root runs the tests: the message says where, and how to see why."""
    build(Path("photos"), Path("g"), ["canny"])
    Path("mine.yaml").write_text(f"{YAML}[canny]\n")
    forbidden = os.path.abspath(closed)

    def deny(name: str) -> None:
        call = getattr(os, name)

        def checked(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and f"{os.path.abspath(path)}/".startswith(f"{forbidden}/"):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return call(path, *args, **options)

        monkeypatch.setattr(os, name, checked)

    for name in ("open", "scandir", "listdir", "stat", "mkdir"):
        deny(name)
    monkeypatch.setattr("builtins.open", _denied_open(forbidden))
    said = refused(line)
    assert closed in said and ("ls -ld" in said or "Permission denied" in said), said


def _denied_open(forbidden: str) -> Callable[..., Any]:
    real = open

    def checked(file: Any, *args: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and f"{os.path.abspath(file)}/".startswith(f"{forbidden}/"):
            raise PermissionError(13, "Permission denied", os.fspath(file))
        return real(file, *args, **options)

    return checked


URL, STORE = "hdfs://bucket/x", "s3://bucket/x"


@pytest.mark.parametrize(
    "line",
    [
        f"run --source sample --out {URL}",
        f"run --source folder --path {URL} --annotators canny",
        f"run --pipeline {URL}.yaml",
        f"plan --source sample --out {URL}",
        *(f"{name} {URL}" for name in ("status", "verify", "retry", "sample", "tasks")),
        f"promote {URL} v0123456789ab",
        f"explain {URL} 0 canny",
        f"tasks --paths {URL}.yaml",
        f"schema --write {URL}",
        f"sample g --on-missing drop --count 1 --out {URL}",
        f"models --pipeline {URL}.yaml",
        f"models fetch {URL}",
        f"schema --write {STORE}",
        f"tasks --paths {STORE}.yaml",
        f"sample g --on-missing drop --count 1 --out {STORE}",
    ],
)
def test_a_url_is_never_a_folder(refused: Refusal, line: str) -> None:
    """Guards against `--out s3://bucket/x` that builds into a local folder called `s3:`."""
    if " g " in line:
        build(Path("photos"), Path("g"), ["canny"])
    said = refused(line)
    assert URL in said or STORE in said
