"""The index of places behind the loader: it serves what the edges parts say, and survives a damaged cache."""

from __future__ import annotations

import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.errors import MissingNode
from graphbuild.store.cache import KEPT_SNAPSHOTS
from graphbuild.store.graph import Graph


def test_reading_by_offsets_is_reading(folder: Path) -> None:
    """Guards against an index that serves another node, loses attributes, or hides why one is missing."""
    plain, indexed = Graph.open(folder), Graph.open(folder)
    for kind in ("image", "canny", "style_content"):
        offsets = indexed.offsets(kind)
        for item_ix in range(plain.num_items):
            for variant in range(offsets.num_variants):
                ours, theirs = indexed.read(item_ix, kind, variant), plain.read(item_ix, kind, variant)
                assert ours == replace(theirs, edge=ours.edge) and dict(ours.edge) == dict(theirs.edge)
                assert pickle.loads(pickle.dumps(ours)).edge["item_ix"] == item_ix
        for item_ix, variant in ((-1, 0), (18, 0), (0, -1), (0, offsets.num_variants)):
            with pytest.raises(MissingNode):
                indexed.read(item_ix, kind, variant)


def test_a_damaged_index_is_built_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a cut-off cache file, and a cache folder that cannot be written."""
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path / "cache"))
    Graph.open(folder).offsets("canny")
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    assert [file.name for file in files] == ["attrs.npy", "names.npy", "records.npy"]
    for file in files:
        whole = file.read_bytes()
        for damage in (b"", whole[:100], whole[:-1]):
            file.unlink()
            file.write_bytes(damage)
            assert Graph.open(folder).offsets("canny").spot(0, 0) is not None
            assert file.read_bytes() == whole
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path / "file"))
    assert Graph.open(folder).offsets("canny").spot(0, 0) is not None


def test_a_cut_off_table_is_computed_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an empty file of the cache, as a power cut leaves it, that stops every command."""
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path))
    present = Graph.open(folder).presence("canny")
    (path,) = tmp_path.rglob("presence-canny.npy")
    for damage in (b"", path.read_bytes()[:20], b"not an array"):
        path.write_bytes(damage)
        assert np.array_equal(Graph.open(folder).presence("canny"), present)


def test_a_cache_folder_keeps_what_is_not_ours(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against deleting the folders of somebody who gave us their home as cache, and against keeping all ours."""
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path))
    foreign = [tmp_path / f"project {number}" for number in range(40)]
    for number, path in enumerate([*foreign, *(tmp_path / f"{number:016x}" for number in range(40))]):
        path.mkdir()
        os.utime(path, (number, number))
    Graph.open(folder).presence("canny")
    Graph.open(folder).offsets("canny")
    assert all(path.is_dir() for path in foreign) and len(list(tmp_path.iterdir())) == 40 + KEPT_SNAPSHOTS


def test_a_full_cache_is_left_without_pieces(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a full disk that every command fills further."""

    def full(file: Path, array: Any, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path))
    monkeypatch.setattr(np, "save", full)
    assert Graph.open(folder).presence("canny").all()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_wrong_index_does_not_serve_wrong_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against trusting a cache: what it finds is checked, and the edges part decides."""
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path / "cache"))
    expected = Graph.open(folder).read(1, "canny").bytes
    Graph.open(folder).offsets("canny")
    (path,) = (tmp_path / "cache").rglob("records.npy")
    whole = np.load(path)
    for field, value in (("offset", whole["offset"] + 1), ("part", 99), ("format", 99), ("nbytes", -5)):
        records = whole.copy()
        records[field] = value
        path.unlink()  # the file of before may still be mapped
        np.save(path, records)
        graph = Graph.open(folder)
        graph.offsets("canny")
        assert graph.read(1, "canny").bytes == expected
    (names,) = (tmp_path / "cache").rglob("names.npy")
    reversed_names = np.load(names)[::-1]
    names.unlink()
    np.save(names, reversed_names)
    assert Graph.open(folder).offsets("canny").spot(0, 0) is not None
