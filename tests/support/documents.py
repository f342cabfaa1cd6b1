"""The code of the documents, and running it: Python and YAML in this process, commands where they are installed.

A Python or YAML block right after a line `<!-- test -->` is run; after `<!-- test: name.py -->` it becomes that file
in the folder; after `<!-- parsed: reason -->` it only has to be Python. The Python blocks of a page share their names.
Every line of a `sh` block is a command, or, where some begin with `$ `, those; the other lines are then what it prints,
and so is a `text` block right after a Python one. `python documents.py PAGE ...` runs pages with the package that is
installed, not with the checkout's.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

import yaml

import graphbuild as gb
from graphbuild.pipeline import load_pipeline

PARSED = {
    "make ": "needs a checkout of its own; the target exists",
    "pip install ": "downloads packages; the extras exist",
    "graphbuild models fetch ": "downloads weights",
    "graphbuild run --pipeline conditions ": "needs weights",
    "graphbuild run --source subjects200k ": "downloads the data set",
    "graphbuild view ": "answers until Ctrl-C; tests/view asks it",
    "graphbuild-train run visualcloze_fill --graph s200k-graph ": "needs the data set, the weights and a GPU",
    "graphbuild-train run onepic_tryon ": "needs the weights of SDXL",
    "graphbuild-train sample lora ": "needs what that run makes",
    "accelerate launch --num_processes 8 ": "needs eight GPUs; tests/train/test_ddp.py launches two processes",
    "python tests/bench/": "takes minutes to hours; the file exists",
    "ray start ": "starts a cluster; test_plain_machines starts one",
    "ray job submit ": "needs a cluster; test_submitted_job starts one",
}
"""How a command begins that is parsed and not run -> why."""

SLOW = ("graphbuild-train ",)
"""How a command begins that takes minutes: run with the package that is installed, and only parsed by the tests."""

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>test|parsed)(?:: (?P<note>[^\n]*?))? -->[ \t]*\n+)?"
    r"```(?P<language>[a-z]*)\n(?P<code>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its language, what is marked before it, its code, and how many lines of the page precede it."""

    language: str
    mark: str
    note: str
    code: str
    line: int


class Command(NamedTuple):
    """A command line without its comment, what it is shown to print, and why it is not run."""

    line: str
    shown: tuple[str, ...]
    unrun: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(m["language"], m["mark"] or "", m["note"] or "", m["code"], text.count("\n", 0, m.start("code")))
        for m in _BLOCK.finditer(text)
    ]


def commands(code: str) -> Iterator[Command]:
    """The commands of a `sh` block."""
    lines = code.splitlines()
    if not any(line.startswith("$ ") for line in lines):
        lines = [f"$ {line}" for line in lines]
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        line = re.sub(r"\s+#\s.*", "", lines[start].removeprefix("$ "))
        why = next((why for begin, why in PARSED.items() if line.startswith(begin)), None)
        yield Command(line, tuple(lines[start + 1 : stop]), why)


Run = Callable[[Command], str]
"""What a command of a page prints, or would."""


def run_page(path: Path, run: Run) -> None:
    """Run a page from top to bottom in the current folder, with tracebacks that point into it."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(path.read_text(encoding="utf-8")):
        before, printed = printed, ""
        if block.language == "text":
            assert not before or block.code in before, f"{path}: printed {before!r}, not {block.code!r}"
        elif block.language == "sh":
            for command in commands(block.code):
                said = run(command)
                assert all(line in said for line in command.shown), said
        elif block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
        elif block.language == "yaml" and block.mark == "parsed":
            assert block.note and isinstance(yaml.safe_load(block.code), dict)
        elif block.mark == "test" and block.note:
            Path(block.note).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            printed = run_python(block, path, names)
        else:
            read_yaml(block)


def run_python(block: Block, path: Path, names: dict[str, object]) -> str:
    """What a block prints; one that is not marked only has to be Python."""
    code = compile("\n" * block.line + block.code, str(path), "exec")
    out = io.StringIO()
    with redirect_stdout(out):
        if block.mark == "test":
            exec(code, names)
    return out.getvalue()


def read_yaml(block: Block) -> None:
    """A list of annotators, a source, or a task list."""
    assert block.language == "yaml" and block.mark == "test"
    if block.code.startswith("- "):
        Path("page.yaml").write_text("source: sample\nannotators:\n" + indent(block.code, "  "))
        load_pipeline("page.yaml")
    elif block.code.startswith("source:"):
        Path("page.yaml").write_text(block.code)
        load_pipeline("page.yaml")
    else:
        Path("page.yaml").write_text(block.code)
        gb.load_paths("page.yaml")


def installed(command: Command) -> str:
    """Run a command as it is typed, unless it is only to be parsed."""
    if command.unrun is not None:
        return ""
    sys.stderr.write(f"$ {command.line}\n")
    done = subprocess.run(
        command.line, shell=True, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command.line} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@contextmanager
def prepared(folder: Path, page: str) -> Iterator[None]:
    """A current folder with six photographs in `photos`, which are in a bucket too where a page wants one, and the data
    sets made of them."""
    from tests.support.annotators import write_photos
    from tests.support.data_sets import write_data_sets

    write_photos(folder / "photos", range(6))
    write_data_sets(folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with bucket(folder / "photos") if "s3://my-bucket" in page else nullcontext():
        yield
    sys.path.remove(str(folder))


@contextmanager
def bucket(photos: Path) -> Iterator[None]:
    from tests.support.object_store import BUCKET, ObjectStore  # the core install has no server

    store = ObjectStore()
    os.environ |= store.environment
    store.upload(photos, f"s3://{BUCKET}/photos")
    yield
    store.close()


def _borrow_tests(folder: Path) -> None:
    """Make the checkout's `tests` importable, but not its packages. Installed packages bring a `tests` of their own."""
    spec = spec_from_file_location("tests", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    sys.modules["tests"] = module_from_spec(spec)


def main() -> None:
    """Run each page in a folder of its own."""
    assert Path(gb.__file__).is_relative_to(sys.prefix), f"{gb.__file__} is not installed in {sys.prefix}"
    _borrow_tests(Path(__file__).parents[1])
    pages, root = [Path(page).resolve() for page in sys.argv[1:]], Path.cwd()
    for page in pages:
        sys.stderr.write(f"== {page.name}\n")
        with prepared(root / page.stem, page.read_text(encoding="utf-8")):
            run_page(page, installed)


if __name__ == "__main__":
    main()
