"""The documents say what is true: their examples run, and their commands, kinds, names and links exist."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import graphbuild as gb
from graphbuild.annotators import BUILTIN, load_class
from graphbuild.annotators.base import Score
from graphbuild.cli import app
from graphbuild.store.verify import verify
from graphbuild_train.cli_evaluate import app as train_app
from tests.support.data_sets import write_data_sets
from tests.support.documents import PARSED, SLOW, Command, blocks, commands, run_page
from tests.support.object_store import BUCKET, ObjectStore

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
APPS: Mapping[str, Any] = {"graphbuild": app, "graphbuild-train": train_app}


@pytest.fixture
def folder(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder that has six photographs in `photos`, from which modules can be imported meanwhile."""
    (tmp_path / "photos").mkdir()
    for file in sorted(photos.iterdir())[:6]:
        shutil.copy2(file, tmp_path / "photos")
    write_data_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").is_file():
            del sys.modules[name]


def page(name: str) -> str:
    path = ROOT / name
    if not path.is_file():
        pytest.skip(f"there is no {name}")
    return path.read_text(encoding="utf-8")


# ---- what is run -------------------------------------------------------------------------------------------------


def run_command(command: Command) -> str:
    """What a command prints that ends well; in this process, and without a Ray instance for each."""
    if command.unrun or command.line.startswith(SLOW):
        return parse(command.line)
    argv = shlex.split(command.line)
    inline = ["--executor", "inline"] if argv[1] == "run" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        result = CliRunner().invoke(APPS[argv[0]], [*argv[1:], *inline])
    assert result.exit_code == 0, (command.line, result.output, result.exception)
    return result.stdout + result.stderr


def parse(line: str) -> str:
    """Check words and options of a command that is not run."""
    argv = shlex.split(line.replace("--steps N", "--steps 1"))
    if argv[0] == "make":
        assert re.search(rf"^{argv[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif argv[0] == "python":
        assert (ROOT / argv[1]).is_file(), line
    elif argv[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", argv[-1])) <= {*known, "graphbuild"}, line
    else:
        argv = [word for word in (word.strip("[]") for word in argv) if word != "..."]
        if argv[:2] == ["ray", "start"]:
            import_module("ray.scripts.scripts").start.make_context("start", argv[2:])
            return ""
        if argv[0] == "ray":
            argv = argv[argv.index("--") + 1 :]
        if argv[0] == "accelerate":
            argv = ["graphbuild-train", *argv[argv.index("graphbuild_train") + 1 :]]
        if argv[1].endswith(".yaml"):
            argv.insert(1, "run")
        command, rest = typer.main.get_command(APPS[argv[0]]), argv[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]  # type: ignore[attr-defined]
        assert all(word.startswith("-") for word in rest[:1]) or not hasattr(command, "commands"), (
            f"{line}: {rest[0]} is no command"
        )
        command.make_context(argv[0], rest)
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_run(path: Path, folder: Path, s3: ObjectStore) -> None:
    """An example that does not run teaches something false. Every Python and YAML block is run, or says why not."""
    s3.upload(folder / "photos", f"s3://{BUCKET}/photos")
    run_page(path, run_command)
    if path.name == "README.md":
        graph = gb.Graph.open("sample-graph")
        assert graph.kinds() == dict.fromkeys(("canny", "caption", "image", "lines"), 15) | {"foreground_mask": 9}
        assert verify(graph.url, "full").problems == []
        assert (folder / "sample-graph" / "snapshots" / f"{graph.digest}.parquet").is_file()


def test_all_code_is_collected() -> None:
    """A mechanism that collects nothing, or a block without a language, would pass for ever."""
    found = {path.name: blocks(path.read_text(encoding="utf-8")) for path in PAGES}
    for name, of_page in found.items():
        for block in of_page:
            assert block.language in {"sh", "bash", "python", "yaml", "text"}, (name, block)
            assert block.mark or block.language in {"sh", "bash", "text"}, (
                f"{name}, line {block.line}: run it, or say why not"
            )
    lines = [c for of_page in found.values() for b in of_page if b.language == "sh" for c in commands(b.code)]
    assert {c.unrun for c in lines if c.unrun} == set(PARSED.values())
    assert sum(c.unrun is None for c in lines) >= 10
    assert sum(b.language == "python" and b.mark == "test" for of_page in found.values() for b in of_page) >= 9


def test_what_a_page_shows_is_compared(folder: Path) -> None:
    """The second block sees the first; a failing one names the file and line; output and options are checked."""
    first = "<!-- test: mine.py -->\n```python\nx = 1\n```\n<!-- test -->\n```python\nfrom mine import x\n```\n"
    wrong: dict[str, type[Exception]] = {
        "<!-- test -->\n```python\n\nx.missing\n```\n": AttributeError,
        "<!-- test -->\n```python\nprint(x)\n```\n\n```text\n2\n```\n": AssertionError,
        "```sh\n$ graphbuild --version\ngraphbuild 9\n```\n": AssertionError,
        "```sh\ngraphbuild verify nowhere  # a comment\n```\n": AssertionError,
        "```sh\ngraphbuild models fetch --all\n```\n": Exception,
    }
    for text, error in wrong.items():
        Path("page.md").write_text(first + text)
        with pytest.raises(error) as caught:
            run_page(folder / "page.md", run_command)
        if error is AttributeError:
            assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(folder / "page.md"), 12)


@pytest.mark.parametrize("name", APPS)
def test_examples_of_help_parse(name: str) -> None:
    """What `--help` shows can be typed, and the command is the one that is installed."""
    (point,) = entry_points(group="console_scripts", name=name)
    assert point.load().__module__.startswith(name.replace("-", "_"))
    waiting = [typer.main.get_command(APPS[name])]
    lines = []
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        lines += re.findall(rf"^ *((?:[A-Z_]+=\S+ )*(?:accelerate .*|{name} .*))$", command.help or "", re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        parse(re.sub(r"^[A-Z_]+=\S+ ", "", line))


# ---- what exists -------------------------------------------------------------------------------------------------


SUB_PACKAGES = {"graphbuild", "graphbuild.data", "graphbuild_train"}
"""What users import from: the public face, the torch room, the trainer."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_exported(path: Path) -> None:
    """What a page imports of ours, or reads of `gb`, is public: no page teaches a module that may move."""
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                ours = [alias.name for alias in node.names if alias.name.partition(".")[0] in SUB_PACKAGES]
                assert set(ours) <= SUB_PACKAGES
            elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in SUB_PACKAGES:
                assert node.module in SUB_PACKAGES
                assert {alias.name for alias in node.names} <= set(import_module(node.module).__all__)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gb":
                assert node.attr in gb.__all__


def named_commands(text: str) -> set[str]:
    """Sub-commands of `graphbuild` in the code of a page, fenced or between backticks."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {name for code in [*fenced, *inline]
            for name in re.findall(r"^[ \t]*(?:\$ )?graphbuild ([a-z]+)", code, re.MULTILINE)}  # fmt: skip


def test_commands_are_recognised() -> None:
    """In a code block, after a prompt, and inside a sentence; prose is not a command."""
    fenced = "```\ngraphbuild run --source x  # graphbuild stays\n$ graphbuild status g\n```\n"
    text = f"graphbuild turns images\n{fenced}\nuse `graphbuild promote g v1`; graphbuild reads"
    assert named_commands(text) == {"run", "status", "promote"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documented_commands_exist(path: Path) -> None:
    """A command that a page names must be one that the CLI has."""
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {"run", "plan", "status", "sample", "verify", "retry", "promote", "schema"} <= known
    assert named_commands(path.read_text(encoding="utf-8")) <= known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_linked_files_exist(path: Path) -> None:
    """A link or picture that points at nothing."""
    targets = re.findall(r"\]\(([^)#?\s]+)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_every_annotator_and_its_kinds_are_documented() -> None:
    """Whoever looks for a kind finds what makes it."""
    text = page("docs/annotators.md")
    for name in BUILTIN:
        cls = load_class(name)
        made = [kind if isinstance(kind, str) else kind.name for kind in cls.makes]
        assert made or issubclass(cls, Score), name
        assert all(f"`{word}`" in text for word in [name, *made]), (name, made)
