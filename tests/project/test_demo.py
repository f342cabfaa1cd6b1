"""The demo: two commands in an empty folder, as `make demo` gives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphbuild.sources.sample import Sample
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify

NO_RAY_NO_IMAGE = """
import sys
import cv2, PIL.Image
from graphbuild import cli
from graphbuild.images import codecs, node

def refuse(*args, **options):
    raise AssertionError("an image was opened")

cv2.imdecode = PIL.Image.open = node.decode_image = codecs.check_image = refuse
try:
    cli.main()
finally:
    assert "ray" not in sys.modules, "Ray was imported"
"""


def command(folder: Path, *args: str, prefix: tuple[str, ...] = ("-m", "graphbuild.cli")) -> str:
    """Standard output of one command that ends well; `prefix` is what Python runs."""
    argv = [sys.executable, *prefix, *args]
    done = subprocess.run(argv, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo_ends_with_pictures(tmp_path: Path) -> None:
    """A fresh clone gives a sound graph of all sample photographs and six grids; again, there is nothing to do."""
    from PIL import Image

    command(tmp_path, "run", "--source", "sample", "--executor", "inline")
    graph = Graph.open(tmp_path / "sample-graph")
    photos = len(Sample().entries())
    assert photos >= 10 and graph.kinds() == dict.fromkeys(
        ("canny", "caption", "foreground_mask", "image", "lines"), photos
    )
    assert verify(graph.url, "full").problems == []

    printed = command(tmp_path, "sample", "sample-graph", "--count", "6").splitlines()
    pictures = [tmp_path / line for line in printed if line.endswith(".png")]
    assert len(pictures) == len(set(pictures)) == 6 and all(path.is_file() for path in pictures)
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 384
    (walks,) = (tmp_path / line for line in printed if line.endswith(".jsonl"))
    lines = [json.loads(line) for line in walks.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert {line["snapshot"] for line in lines} == {graph.digest}
    assert (tmp_path / "sample-graph" / "snapshots" / f"{graph.digest}.parquet").is_file()

    again = command(tmp_path, "run", "--source", "sample", prefix=("-c", NO_RAY_NO_IMAGE))
    assert "nothing to do" in again and again.count("\n") == 1
