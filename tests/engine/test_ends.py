"""How processes end: finished work exits with 0, what is stopped keeps what is committed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals

import pytest
import ray
import typer

from graphbuild.cli.console import refusing
from graphbuild.engine.executors.connection import connected
from graphbuild.store.graph import Graph
from tests.support.annotators import build, calls, complete

THREADS = """
import os, sys
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
before = os.listdir("/proc/self/task")
graph = Graph.open(sys.argv[1])
graph = Graph.open(sys.argv[1], snapshot=graph.digest)
assert graph.items().num_rows == graph.edges("canny").num_rows == 4
assert not verify(graph.url, "full").problems
print(len(os.listdir("/proc/self/task")) - len(before))
"""


def test_reading_starts_no_threads_of_arrow(photos: Path, tmp_path: Path) -> None:
    """Guards against SIGABRT after finished work: a thread of Arrow that frees Python's bytes at exit."""
    complete(build(photos, tmp_path / "g", ["canny"], limit=4))
    done = subprocess.run([sys.executable, "-c", THREADS, tmp_path / "g"], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def _stopped(number: Signals, photos: Path, out: Path, tag: str, *options: str | Path) -> tuple[int, str]:
    """Exit code and last words of a run of two shards that got a signal in the middle of the second."""
    pipeline = out.parent / "mine.yaml"
    pipeline.write_text(f"source: folder\nannotators: [{{use: 'tests.support.annotators:Slow', tag: {tag}}}]\n")
    given = ["--pipeline", pipeline, "--path", photos, "--out", out, "--shard-size", "9", *options]
    command = [sys.executable, "-m", "graphbuild.cli", "run", *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(calls(tag)) < 11 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_run(number: Signals, photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against a job of a cluster, or a terminal that hangs up, whose end leaves temporary files behind."""
    code, said = _stopped(number, photos, tmp_path / "g", control(), "--executor", "inline")
    assert code == 128 + number and "continue with: graphbuild run" in said
    assert not list((tmp_path / "g/_tmp").iterdir())
    assert Graph.open(tmp_path / "g").kinds()["canny"] == 9


def test_sigterm_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against Ray's own handler of that moment, which ends the command with code 15."""

    def start(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    for name, call in {"init": start, "is_initialized": lambda: False, "shutdown": lambda: None}.items():
        monkeypatch.setattr(ray, name, call)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended, refusing(), connected(None, []):
        pass
    assert ended.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.ray
def test_sigterm_ends_a_run_on_ray(photos: Path, tmp_path: Path, control: Callable[..., str], ray_address: str) -> None:
    """Guards against Ray's own way with SIGTERM, which is SIGABRT."""
    code, said = _stopped(signal.SIGTERM, photos, tmp_path / "g", control(), "--address", ray_address)
    assert code == 143 and "continue with: graphbuild run" in said
    assert not list((tmp_path / "g/_tmp").iterdir())
    assert Graph.open(tmp_path / "g").kinds()["image"] == 18
