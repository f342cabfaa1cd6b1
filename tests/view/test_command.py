"""`graphbuild view` as it is typed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphbuild.cli import app


def test_it_answers_until_it_is_stopped(seen: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from graphbuild.cli import main; main()",
        "view",
        str(seen / "graph"),
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert server.stdout is not None and server.stderr is not None
    url = server.stdout.readline().strip()
    with urllib.request.urlopen(url) as answer:
        assert b"<h1>13 items</h1>" in answer.read()
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    assert "Traceback" not in server.stderr.read()
    server.stdout.close()
    server.stderr.close()


def test_what_it_refuses(seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["view", str(seen / "graph"), "--port", port])
    assert result.exit_code == 2 and f"127.0.0.1 port {port}: Address already in use; choose another" in result.output
    result = CliRunner().invoke(app, ["view", str(tmp_path)])
    assert result.exit_code == 2 and "not a graph" in result.output
    for package in ("graphbuild.view.pages", "graphbuild.view.html", "jinja2"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = CliRunner().invoke(app, ["view", str(seen / "graph")])
    assert result.exit_code == 2 and "pip install 'graphbuild[view]'" in result.output
