"""The command line: a thin face of the library."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbuild.cli.application import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: errors of use end with one line and exit code 2. Modules in the working folder can be named. Ctrl-C
    or SIGTERM while modules are still being loaded ends at once: nothing has begun."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, lambda number, _: os._exit(128 + number))
    from graphbuild.config.lookup import look_in

    look_in(os.getcwd())
    __getattr__("app")()


def __getattr__(name: str) -> Any:
    """`app`, the application with all its commands, is put together on first use."""
    if name != "app":
        raise AttributeError(f"module 'graphbuild.cli' has no attribute {name!r}")
    from graphbuild.cli import bench, build, exclude, export, gc, models, schema, tasks, view
    from graphbuild.cli.application import app

    assert all((bench, build, exclude, export, gc, models, schema, tasks, view))  # they add their commands
    return app
