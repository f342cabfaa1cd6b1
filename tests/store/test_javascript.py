"""What docs/format.md says is enough for a reader in another language."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from graphbuild.annotators.canny import Canny
from graphbuild.annotators.source_caption import SourceCaption
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

READER = Path(__file__).parents[1] / "support" / "reader.mjs"
PACKAGES = ("hyparquet@1.33.0", "hyparquet-compressors@1.1.2", "hash-wasm@4.13.0")
"""Parquet, zstd and xxh3 of npm."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader beside its packages."""
    folder = tmp_path_factory.mktemp("javascript")
    if not (npm := shutil.which("npm")):
        pytest.skip("there is no npm")
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=20000"]
    done = subprocess.run([npm, "install", *options, *PACKAGES], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("npm's registry does not answer")
    return Path(shutil.copy(READER, folder))


def test_a_reader_in_javascript_reads_what_ours_reads(reader: Path, photos: Path, tmp_path: Path) -> None:
    """Guards against a format that only its own library can read: pictures, words, and a node that is not there."""
    complete(build(photos, tmp_path / "g", [Canny(), SourceCaption()], limit=3, shard_size=2))
    graph = Graph.open(tmp_path / "g")

    def read(item: int, kind: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["node", reader, graph.url, str(item), kind], cwd=reader.parent, capture_output=True, check=False
        )

    for item, kind in ((0, "image"), (1, "canny"), (2, "canny")):
        assert read(item, kind).stdout == graph.read(item, kind).bytes
    assert b"not stored: no_caption" in read(0, "caption").stderr
    assert b"there is no item 3" in read(3, "image").stderr
    node = graph.read(0, "canny")
    part = tmp_path / "g" / node.edge["part"]
    data = bytearray(part.read_bytes())
    data[data.index(node.bytes) + 40] ^= 1
    part.chmod(0o644)
    part.write_bytes(data)
    assert b"damaged" in read(0, "canny").stderr
