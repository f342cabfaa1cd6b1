"""Photographs and shards in an object store, read as from a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from graphbuild.errors import GraphError, Unreachable
from graphbuild.sources import resolve
from graphbuild.sources.remote import mirror_of
from graphbuild.store import objects
from tests.support.annotators import build, complete, tree
from tests.support.object_store import ObjectStore
from tests.support.subjects import canvas, parquet, png, row


@pytest.fixture
def own(own_photos: Path) -> Path:
    """Six photographs with everything that a folder may hold beside them."""
    for photo in sorted(own_photos.iterdir())[6:]:
        photo.unlink()
    (own_photos / "p00.txt").write_text("A caption of its own.")
    (own_photos / "p01.txt").write_text("long " * 30_000)
    (own_photos / "deep/er").mkdir(parents=True)
    shutil.move(own_photos / "p02.jpg", own_photos / "deep/er/p 02+ü.jpg")
    (own_photos / "captions.csv").write_text("file,caption,grade\np03.png,From the table,4\ngone.jpg,Nothing,1\n")
    (own_photos / ".hidden.png").write_bytes(b"")
    (own_photos / "notes.md").write_text("no image")
    (own_photos / "old").mkdir()
    (own_photos / "old/graph.json").write_text('{"format": 1, "shard_size": 4, "source": {}}')
    (own_photos / "old/x.jpg").write_bytes(b"")
    return own_photos


def test_a_folder_in_a_store_is_listed_and_read_like_a_local_one(s3: ObjectStore, own: Path) -> None:
    """Guards against other keys, captions, notes or bytes, in the driver and in a worker that has listed nothing."""
    local, remote = resolve("folder", path=str(own)), resolve("folder", path=(url := s3.upload(own)))
    one, other = local.listing(), remote.listing()
    assert other.notes == tuple(note for note in one.notes if "hidden" not in note) and len(other.notes) >= 3
    assert [(e.key, e.facts, e.nbytes) for e in other.entries] == [(e.key, e.facts, e.nbytes) for e in one.entries]
    keys = [entry.key for entry in one.entries]
    assert list(remote.read(keys)) == list(local.read(keys))
    mirror_of.cache_clear()  # as a worker begins
    assert list(remote.read([*keys, "gone.jpg"]))[:-1] == list(local.read(keys))
    old = {entry.key: entry.stamp for entry in other.entries}
    s3.put(f"{url}/p00.jpg", b"another")
    s3.put(f"{url}/p00.txt", b"Another caption.")
    changed = {entry.key: entry for entry in remote.listing().entries}
    assert {key for key in old if changed[key].stamp != old[key]} == {"p00.jpg"}
    assert next(iter(remote.read(["p00.jpg"]))).caption == "Another caption."


def test_from_a_store_to_a_store(s3: ObjectStore, own: Path, tmp_path: Path) -> None:
    """Guards against a graph that depends on where the photographs lie, and against one among them."""
    url = s3.upload(own)
    complete(build(own, tmp_path / "g", ["canny"], shard_size=6))
    complete(build(resolve("folder", path=url), tmp_path / "h", ["canny"], shard_size=6))
    assert tree(tmp_path / "g", "nodes", "lineage") == tree(tmp_path / "h", "nodes", "lineage")  # stamps differ
    with pytest.raises(GraphError, match="lies in the source's folder"):
        build(resolve("folder", path=url), Path(f"{url}/graph"), ["canny"])


def test_subjects200k_from_a_store(s3: ObjectStore, tmp_path: Path) -> None:
    """Guards against Parquet shards that need another package to be read from a store, or a request a page."""
    (tmp_path / "shards").mkdir()
    pair = canvas(Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue"), 4)
    (tmp_path / "shards/a.parquet").write_bytes(parquet([row(png(pair))] * 5))
    places = str(tmp_path / "shards"), s3.upload(tmp_path / "shards")
    local, remote = (resolve("subjects200k", path=place) for place in places)
    keys = [entry.key for entry in remote.entries()]
    assert keys == [entry.key for entry in local.entries()] != []
    one, other = (next(iter(source.read(keys[:1]))) for source in (local, remote))
    assert one.original == other.original and one.caption == other.caption
    assert len([request for request in s3.requests if "a.parquet" in request and "GET" in request]) <= 4


def test_a_source_that_cannot_be_listed_says_why(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an empty source, or a page of a library's errors, where the bucket or the rights are missing."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    with s3.failing(lambda _: "403 AccessDenied"), pytest.raises(Unreachable, match="access denied"):
        resolve("folder", path=s3.new_url()).entries()
    with pytest.raises(GraphError, match="no such bucket"):
        resolve("subjects200k", path="s3://other-bucket/x").entries()
    with pytest.raises(ValueError, match=r"ftp:// is not supported; give a path, or s3://"):
        resolve("folder", path="ftp://host/x").entries()
    with pytest.raises(ValueError, match="no image files under s3://"):
        resolve("folder", path=s3.new_url()).entries()


def test_an_outage_is_no_missing_photograph(s3: ObjectStore, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against `failed: missing` rows of photographs that are there."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    source = resolve("folder", path=s3.upload(own))
    with s3.failing(lambda _: "503 SlowDown"), pytest.raises(Unreachable):
        list(source.read(["p00.jpg"]))
