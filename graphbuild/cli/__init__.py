"""The command line: a thin face of the library."""

from __future__ import annotations

import os

from graphbuild.cli import build, exclude, models, schema, tasks
from graphbuild.cli.app import app
from graphbuild.lookup import look_in

__all__ = ["app", "build", "exclude", "main", "models", "schema", "tasks"]


def main() -> None:
    """Entry point: errors of use end with one line and exit code 2. Modules in the working folder can be named."""
    look_in(os.getcwd())
    app()
