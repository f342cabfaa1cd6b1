"""The documents say what is true: their marked examples run, their commands and kinds exist.

A ```python block right after a line `<!-- test -->` is executed; the blocks of one file share their names and run in
order, in an empty folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

import graphbuild as gb
from graphbuild.annotators import BUILTIN, load_class
from graphbuild.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
_MARKED = re.compile(r"^<!-- test -->[ \t]*\n+```python\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The marked Python blocks of a page."""
    return _MARKED.findall(text)


def run_blocks(path: Path) -> int:
    """Execute the marked blocks of a file, with tracebacks that point into it; returns how many there were."""
    names: dict[str, object] = {"__name__": "__main__"}
    text = path.read_text(encoding="utf-8")
    found = list(_MARKED.finditer(text))
    for match in found:
        padding = "\n" * text.count("\n", 0, match.start(1))
        exec(compile(padding + match.group(1), str(path), "exec"), names)
    return len(found)


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
    assert blocks("<!-- test -->\n```\nx = 1\n```\n") == blocks("```python\nx = 1\n```\n") == []


def test_blocks_share_names_and_errors_point_into_the_page(tmp_path: Path) -> None:
    """The second block sees the first; a failing one names the file and line."""
    path = tmp_path / "page.md"
    path.write_text("<!-- test -->\n```python\nx = 1\n```\n\n<!-- test -->\n```python\nassert x == 1\nx.missing\n```\n")
    with pytest.raises(AttributeError) as caught:
        run_blocks(path)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(path), 9)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that does not run teaches something false."""
    monkeypatch.chdir(tmp_path)
    if not run_blocks(path):
        pytest.skip(f"{path.name} has no marked example")


def commands(text: str) -> set[str]:
    """Sub-commands in the code of a page: `graphbuild run ...`, at a line's start or between backticks."""
    return set(re.findall(r"(?:^[ \t]*(?:\$ )?|`)graphbuild ([a-z]+)", text, re.MULTILINE))


def test_commands_are_recognised() -> None:
    """In a code block, after a prompt, and inside a sentence; prose is not a command."""
    text = "    graphbuild run --source x\n$ graphbuild status g\nuse `graphbuild promote g v1`; graphbuild turns images"
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
