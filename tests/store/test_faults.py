"""A damaged or full disk: a read names what is broken, nothing is made of it, and a rerun completes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from graphbuild.errors import CorruptNode, GraphError
from graphbuild.store.files import LocalFiles
from graphbuild.store.graph import Graph
from tests.support.annotators import Child, build, complete, leftovers, tree


def _flip(path: str | Path, offset: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= 1
    Path(path).chmod(0o644)
    Path(path).write_bytes(data)


def test_a_flipped_bit_in_a_node(photos: Path, tmp_path: Path) -> None:
    """Guards against silently wrong pixels: the read names part and item, others stay readable, nothing derives."""
    complete(build(photos, tmp_path / "g", ["canny"], shard_size=6))
    edge = Graph.open(tmp_path / "g").read(8, "canny").edge
    _flip(tmp_path / "g" / edge["part"], edge["offset"] + edge["nbytes"] // 2)
    graph = Graph.open(tmp_path / "g")
    with pytest.raises(CorruptNode) as caught:
        graph.read(8, "canny")
    assert edge["part"] in str(caught.value) and "item 8" in str(caught.value)
    assert graph.read(7, "canny").array().any() and graph.read(9, "canny").array().any()
    report = build(photos, tmp_path / "g", ["canny", Child()])
    assert report.units_left and "CorruptNode" in report.errors[0]


def _read_everything(out: Path) -> None:
    graph = Graph.open(out)
    graph.items()
    graph.edges()
    graph.kinds()


@pytest.mark.parametrize("where", ["page", "footer", "cut", "empty"])
@pytest.mark.parametrize("what", ["edges", "items"])
def test_a_damaged_table(what: str, where: str, photos: Path, tmp_path: Path) -> None:
    """Guards against a pyarrow traceback, or worse rows, from a damaged edges or items part."""
    complete(build(photos, tmp_path / "g", ["canny"], shard_size=6))
    path = Path(Graph.open(tmp_path / "g").files(what)[-1])
    data = path.read_bytes()
    if where == "page":
        _flip(path, len(data) // 3 if what == "items" else 60)
    elif where == "footer":
        _flip(path, len(data) - 6)
    else:
        path.write_bytes(data[: len(data) // 2] if where == "cut" else b"")
    with pytest.raises(GraphError, match=path.name):
        _read_everything(tmp_path / "g")


@pytest.mark.parametrize("folder", ["items", "nodes", "edges", "_staging"])
@pytest.mark.parametrize("nth", [1, 2])
def test_full_disk(folder: str, nth: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against half a commit, a crash or a silent gap when the disk is full: a rerun completes."""
    publish, seen = LocalFiles.publish_file, []

    def full(files: LocalFiles, temp: str, name: str) -> bool:
        if name.startswith(folder):
            seen.append(name)
            if len(seen) >= nth:
                raise OSError(errno.ENOSPC, "No space left on device")
        return publish(files, temp, name)

    options = {"shard_size": 6, "flush_s": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "publish_file", full)
        report = build(photos, tmp_path / "g", ["canny"], **options)
    assert report.units_left and "No space left" in " ".join(report.errors)
    assert not list((tmp_path / "g/_tmp").iterdir())
    complete(build(photos, tmp_path / "g", ["canny"], **options))
    complete(build(photos, tmp_path / "whole", ["canny"], **options))
    assert tree(tmp_path / "g") == tree(tmp_path / "whole") and leftovers(tmp_path / "g") == []
