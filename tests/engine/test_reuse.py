"""A second graph over photographs that overlap: only what is new is computed, and comes out as if all had been."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graphbuild.annotators.base import Request
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.grabcut import Grabcut
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from tests.support.annotators import build, complete


def counting(monkeypatch: pytest.MonkeyPatch, *classes: Any) -> list[str]:
    """Annotator and key of every request from now on."""
    made = list[str]()
    for cls in classes:
        real = cls.annotate

        def annotate(self: Any, batch: Sequence[Request], model: Any, real: Any = real) -> Any:
            made.extend(f"{type(self).__name__} {request.item.key}" for request in batch)
            return real(self, batch, model)

        monkeypatch.setattr(cls, "annotate", annotate)
    return made


def test_nodes_of_another_graph_are_copied_where_they_would_be_the_same(
    own_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(own_photos.iterdir())
    for folder, chosen in (("first", files[:4]), ("second", files[2:6])):
        (tmp_path / folder).mkdir()
        for file in chosen:
            shutil.copy(file, tmp_path / folder)
    shutil.copy(files[0], tmp_path / "second" / files[3].name)  # of one name, and another picture
    complete(build(tmp_path / "first", tmp_path / "g1", ["canny", "grabcut", "source_caption"]))
    complete(build(tmp_path / "second", tmp_path / "whole", ["canny", "grabcut"]))
    made = counting(monkeypatch, Canny, Grabcut)
    report = complete(build(tmp_path / "second", tmp_path / "g2", ["canny", "grabcut"], reuse=tmp_path / "g1"))
    new = sorted(file.name for file in files[3:6])
    assert sorted(made) == sorted(f"{name} {key}" for name in ("Canny", "Grabcut") for key in new)
    assert report.annotators["canny"].reused == 1 and verify(tmp_path / "g2", "full").problems == []
    whole, again = Graph.open(tmp_path / "whole"), Graph.open(tmp_path / "g2")
    for kind in ("canny", "foreground_mask"):
        hashes = [graph.edges(kind).select(["item_ix", "status", "content_hash"]) for graph in (whole, again)]
        assert hashes[0].equals(hashes[1])
    assert again.read(0, "canny").attrs["reused"] == Graph.open(tmp_path / "g1").digest
    assert "reused" not in again.read(2, "canny").attrs


def test_another_version_is_not_reused(own_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in sorted(own_photos.iterdir())[2:]:
        file.unlink()
    complete(build(own_photos, tmp_path / "g1", [Canny(low=50)]))
    made = counting(monkeypatch, Canny)
    complete(build(own_photos, tmp_path / "g2", [Canny()], reuse=tmp_path / "g1"))
    assert len(made) == 2
