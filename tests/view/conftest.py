"""One graph with something of everything, and a viewer that answers over HTTP while a test runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from graphbuild.view.pages import Settings
from graphbuild.view.server import Viewer
from tests.support.viewed import training_folder, viewed_graph


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `graph` and `lora`."""
    folder = tmp_path_factory.mktemp("seen")
    viewed_graph(folder)
    training_folder(folder / "lora")
    return folder


@contextmanager
def running(graph: Path, host: str = "127.0.0.1", **settings: Any) -> Iterator[Viewer]:
    """A viewer that answers in this process meanwhile."""
    viewer = Viewer(Settings(graph=str(graph), **settings), host)
    thread = threading.Thread(target=viewer.run, daemon=True)
    thread.start()
    yield viewer
    viewer.server.should_exit = True
    thread.join(10)
    viewer.socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Viewer]]:
    """Starts viewers, which end with the test."""
    with ExitStack() as stack:
        yield lambda *graph, **settings: stack.enter_context(running(*graph, **settings))


@pytest.fixture(scope="module")
def viewer(seen: Path) -> Iterator[Viewer]:
    """Of that graph and training folder, only read."""
    with running(seen / "graph", training=(seen / "lora",)) as found:
        yield found
