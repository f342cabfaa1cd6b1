"""The documents say what is true: their marked examples run, their commands and kinds exist.

A ```python block right after a line `<!-- test -->` is executed; the blocks of one page share their names and run in
order, in an empty folder. After `<!-- test: name.py -->` the block becomes that file in the folder, to be imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer.main

import graphbuild as gb
from graphbuild.annotators import BUILTIN, load_class
from graphbuild.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
_MARKED = re.compile(
    r"^<!-- test(?:: (?P<file>[a-z_]+\.(?:py|yaml)))? -->[ \t]*\n+```(?:python|yaml)\n(?P<code>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def blocks(text: str) -> list[str]:
    """The marked Python blocks of a page."""
    return [match["code"] for match in _MARKED.finditer(text)]


def run_blocks(path: Path, folder: Path) -> int:
    """Execute the marked blocks of a page, with tracebacks that point into it; returns how many there were."""
    names: dict[str, object] = {"__name__": "__main__"}
    text = path.read_text(encoding="utf-8")
    found = list(_MARKED.finditer(text))
    for match in found:
        if match["file"]:
            (folder / match["file"]).write_text(match["code"], encoding="utf-8")
            continue
        padding = "\n" * text.count("\n", 0, match.start("code"))
        exec(compile(padding + match["code"], str(path), "exec"), names)
    return len(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which modules can be imported as long as the test runs."""
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


def test_only_marked_blocks_are_collected() -> None:
    """A mechanism that collects nothing would pass for ever."""
    marked = "<!-- test -->\n```python\nx = 1\n```\n"
    assert blocks(f"# A\n\n{marked}\n```python\nno = 1\n```\n\n<!-- test -->\n\n```python\ny = x\n\n```\n") == [
        "x = 1\n",
        "y = x\n\n",
    ]
    assert blocks("<!-- test: mine.py -->\n```python\nx = 1\n```\n") == ["x = 1\n"]
    assert blocks("<!-- test -->\n```\nx = 1\n```\n") == blocks("```python\nx = 1\n```\n") == []


def test_files_of_a_page_can_be_imported(folder: Path) -> None:
    """A page that shows a module of one's own and then uses it."""
    path = folder / "page.md"
    shown = "<!-- test: mine.py -->\n```python\nx = 1\n```\n"
    path.write_text(f"{shown}<!-- test -->\n```python\nfrom mine import x\n```\n")
    assert run_blocks(path, folder) == 2


def test_blocks_share_names_and_errors_point_into_the_page(folder: Path) -> None:
    """The second block sees the first; a failing one names the file and line."""
    path = folder / "page.md"
    path.write_text("<!-- test -->\n```python\nx = 1\n```\n\n<!-- test -->\n```python\nassert x == 1\nx.missing\n```\n")
    with pytest.raises(AttributeError) as caught:
        run_blocks(path, folder)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(path), 9)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_run(path: Path, folder: Path) -> None:
    """An example that does not run teaches something false."""
    if not run_blocks(path, folder):
        pytest.skip(f"{path.name} has no marked example")


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


def commands(text: str) -> set[str]:
    """Sub-commands of `graphbuild` in the code of a page, fenced or between backticks."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {name for code in [*fenced, *inline]
            for name in re.findall(r"^[ \t]*(?:\$ )?graphbuild ([a-z]+)", code, re.MULTILINE)}  # fmt: skip


def test_commands_are_recognised() -> None:
    """In a code block, after a prompt, and inside a sentence; prose is not a command."""
    fenced = "```\ngraphbuild run --source x  # graphbuild stays\n$ graphbuild status g\n```\n"
    text = f"graphbuild turns images\n{fenced}\nuse `graphbuild promote g v1`; graphbuild reads"
    assert commands(text) == {"run", "status", "promote"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documented_commands_exist(path: Path) -> None:
    """A command that a page names must be one that the CLI has."""
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {"run", "plan", "status", "sample", "verify", "retry", "promote", "schema"} <= known
    assert commands(path.read_text(encoding="utf-8")) <= known


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
        made = [kind for kind in load_class(name).makes if kind in gb.KINDS]
        assert made, name
        assert all(f"`{word}`" in text for word in [name, *made]), (name, made)
