"""One command of the command line, what it printed, and lines that are often typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphbuild.contracts import StatusDocument

Command = Callable[..., "Result"]
RUN = "run --source folder --path photos --out g --executor inline"


class Result:
    """Exit code and what was printed; `last` is the last line of standard error, or of standard output."""

    def __init__(self, result: Any) -> None:
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.text = self.out + self.err
        self.last = ([line for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()] or [""])[-1]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def pipeline(text: str, name: str = "mine.yaml") -> str:
    Path(name).write_text(f"source: folder\nannotators:\n{text}\n")
    return f"run --pipeline {name} --path photos --out g --executor inline"


def status(cli: Command) -> StatusDocument:
    return StatusDocument.model_validate_json(cli("status g --json").out)
