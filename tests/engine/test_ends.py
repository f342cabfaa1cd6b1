"""How processes end: finished work exits with 0, what is stopped keeps what is committed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.annotators import build, complete

THREADS = """
import os, sys
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
before = os.listdir("/proc/self/task")
graph = Graph.open(sys.argv[1])
assert graph.items().num_rows == graph.edges("canny").num_rows == 4
assert not verify(graph.url, "full").problems
print(len(os.listdir("/proc/self/task")) - len(before))
"""


def test_reading_starts_no_threads_of_arrow(photos: Path, tmp_path: Path) -> None:
    """Guards against SIGABRT after finished work: a thread of Arrow that frees Python's bytes at exit."""
    complete(build(photos, tmp_path / "g", ["canny"], limit=4))
    done = subprocess.run([sys.executable, "-c", THREADS, tmp_path / "g"], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
