"""The code of the documents, and running it: Python and YAML in this process, commands where they are installed.

A Python or YAML block right after a line `<!-- test -->` is run; after `<!-- test: name.py -->` it becomes that file
in the folder; after `<!-- parsed: reason -->` it only has to be Python. The Python blocks of a page share their names.
Every line of a `sh` block is a command, or, where some begin with `$ `, those; the other lines are then what it prints,
and so is a `text` block right after a Python one. `python documents.py PAGE ...` runs the commands of pages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PARSED = {
    "make ": "needs a checkout of its own; the target exists",
    "pip install ": "downloads packages; the extras exist",
    "graphbuild models fetch ": "downloads weights",
    "graphbuild run --pipeline conditions ": "needs weights",
    "graphbuild run --source subjects200k ": "downloads the data set",
    **dict.fromkeys(
        ("graphbuild run --source parquet ", "graphbuild run --source pairs ", "graphbuild run --source coco "),
        "needs a data set; tests/sources/test_mapped.py reads a miniature of each",
    ),
    "graphbuild import ": "needs annotations; tests/engine/test_imported.py runs it",
    "graphbuild-train ": "takes minutes; tests/train/test_cli.py runs each of its commands",
    "accelerate launch ": "needs several GPUs",
    "python tests/bench/": "takes minutes to hours; the file exists",
    "ray start ": "starts a cluster; tests/conftest.py starts one",
    "ray job submit ": "needs a cluster; what it submits is parsed",
}
"""How a command begins that is parsed and not run -> why."""

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


def main() -> None:
    """Run the commands of pages in the current folder, as they are typed."""
    for page in sys.argv[1:]:
        for block in blocks(Path(page).read_text(encoding="utf-8")):
            for command in commands(block.code) if block.language == "sh" else ():
                if command.unrun is None:
                    sys.stderr.write(f"$ {command.line}\n")
                    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
                    done = subprocess.run(command.line, shell=True, check=False, text=True, **streams)
                    if done.returncode or not all(line in done.stdout for line in command.shown):
                        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}")


if __name__ == "__main__":
    main()
