"""The command line: a thin face of the library."""

from __future__ import annotations

from graphbuild.cli import build, models, schema, tasks
from graphbuild.cli.app import app

__all__ = ["app", "build", "main", "models", "schema", "tasks"]


def main() -> None:
    """Entry point: errors of use end with one line and exit code 2."""
    app()
