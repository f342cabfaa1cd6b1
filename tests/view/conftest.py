"""One graph with something of everything, and a viewer that answers over HTTP while a test runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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


@pytest.fixture
def serve() -> Iterator[Callable[..., Viewer]]:
    """Starts viewers in this process, which end with the test."""
    running: list[tuple[Viewer, threading.Thread]] = []

    def start(graph: Path, host: str = "127.0.0.1", **settings: Any) -> Viewer:
        viewer = Viewer(Settings(graph=str(graph), **settings), host)
        thread = threading.Thread(target=viewer.run, daemon=True)
        thread.start()
        running.append((viewer, thread))
        return viewer

    yield start
    for viewer, thread in running:
        viewer.server.should_exit = True
        thread.join(10)
        viewer.socket.close()
