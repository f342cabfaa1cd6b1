"""Subjects200K: geometry, reasons, and what a graph of it holds."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from graphbuild.engine.run import run as build
from graphbuild.kinds.registry import kind_of
from graphbuild.sources.base import Source, SourceItem, Unusable
from graphbuild.sources.sample import Sample
from graphbuild.sources.subjects200k import Subjects200K, squares
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from tests.support.subjects import QUALITY, canvas, parquet, png, row


def read_all(source: Source) -> list[SourceItem]:
    return list(source.read([entry.key for entry in source.entries()]))


def photo(name: str) -> Image.Image:
    (item,) = Sample().read([name])
    return Image.open(io.BytesIO(item.original or b"")).convert("RGB")


@pytest.fixture(scope="module")
def pair() -> tuple[Image.Image, Image.Image]:
    left = photo("chelsea.png").resize((512, 512))
    return left, photo("coffee.png").resize((512, 512))


@pytest.fixture
def shards(tmp_path: Path, pair: tuple[Image.Image, Image.Image]) -> Path:
    """Two shards: p = 8, p = 16 and null quality, swapped; then broken, a wrong canvas, null, null, empty, p = 0."""
    first = [
        row(png(canvas(*pair, 8))),
        row(png(canvas(*pair, 16)), "collection_2", None),
        row(png(canvas(*pair[::-1], 8)), description_valid=None),
    ]
    good = png(canvas(*pair, 8))
    second = [
        row(good[:2000]),
        row(png(Image.new("RGB", (100, 100)))),
        row(None) | {"image": None},
        row(None),
        row(b""),
        row(png(canvas(*pair, 0))),
        row(good, item="", description_1=None),
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000.parquet").write_bytes(parquet(first))
    (tmp_path / "data/train-00001.parquet").write_bytes(parquet(second))
    return tmp_path


def test_the_two_squares_of_a_canvas() -> None:
    assert squares(1048, 528) == ((8, 8, 520, 520), (528, 8, 1040, 520))
    assert squares(1072, 544) == ((16, 16, 528, 528), (544, 16, 1056, 528))
    assert squares(1024, 512) == ((0, 0, 512, 512), (512, 0, 1024, 512))
    assert [squares(*size) for size in [(1025, 512), (768, 512), (512, 512), (1, 1)]] == [None] * 4


def test_rows_are_listed_from_the_footers(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("a row was read"))
    entries = Subjects200K(path=shards).entries()
    assert [entry.key for entry in entries] == [
        *(f"data/train-00000.parquet#{index:07d}" for index in range(3)),
        *(f"data/train-00001.parquet#{index:07d}" for index in range(7)),
    ]
    found = (shards / "data/train-00000.parquet").stat()
    assert entries[0].stamp == entries[2].stamp == f"{found.st_size}-{found.st_mtime}" != entries[3].stamp


def test_pairs_of_both_collections_are_cut_exactly(shards: Path, pair: tuple[Image.Image, Image.Image]) -> None:
    left, right = (np.asarray(image) for image in pair)
    first, second, third = read_all(Subjects200K(path=shards))[:3]
    for item in (first, second):
        np.testing.assert_array_equal(np.asarray(item.nodes["image"]), left)
        np.testing.assert_array_equal(np.asarray(item.nodes["reference"]), right)
    np.testing.assert_array_equal(np.asarray(third.nodes["image"]), right)
    assert first.original == pq.read_table(shards / "data/train-00000.parquet")["image"][0].as_py()["bytes"]
    assert (first.caption, first.reference_caption) == ("Cat a cat on a sofa", "Cat a cat in a garden")
    assert (first.subject, first.category, first.group) == ("Cat", "animal", None)
    assert (first.licence, first.attribution) == ("Apache-2.0", "Yuanshi/Subjects200K")
    assert first.uri == first.key == "data/train-00000.parquet#0000000"
    assert first.meta == {"collection": "collection_1", "quality_assessment": QUALITY, "description_valid": True}
    assert second.meta == {"collection": "collection_2", "quality_assessment": None, "description_valid": True}
    assert third.meta["description_valid"] is None


def test_unusable_rows_say_why_on_both_sides(shards: Path) -> None:
    items = read_all(Subjects200K(path=shards))[3:]
    assert all(item.nodes["image"] == item.nodes["reference"] for item in items[:5])
    nodes = [item.nodes["image"] for item in items]
    reasons = [node.reason for node in nodes if isinstance(node, Unusable)]
    assert reasons == ["undecodable", "bad_geometry", "undecodable", "undecodable", "empty_file"]
    null = Unusable("undecodable", "null image")
    assert nodes[1:4] == [Unusable("bad_geometry", "100x100"), null, null]
    assert items[0].original and items[1].original and [item.original for item in items[2:5]] == [None, None, b""]
    assert np.asarray(nodes[5]).shape == (512, 512, 3)
    assert (items[6].subject, items[6].caption, items[6].reference_caption) == (None, "a cat on a sofa", None)


def test_captions_name_the_subject(shards: Path) -> None:
    """A row of the published shape. Guards against training on words that never say what is shown."""
    published = row(
        None,
        item="Eames Lounge Chair",
        description_0="In a modern city loft, this item is positioned near a large window at dusk.",
        description_1="Nestled in a cozy nook of a rustic cabin, this item is seen beside a roaring fireplace.",
        category="Furniture",
    )
    (shards / "data/train-00002.parquet").write_bytes(parquet([published]))
    (item,) = Subjects200K(path=shards).read(["data/train-00002.parquet#0000000"])
    assert (item.caption, item.reference_caption) == (
        "Eames Lounge Chair In a modern city loft, this item is positioned near a large window at dusk.",
        "Eames Lounge Chair Nestled in a cozy nook of a rustic cabin, this item is seen beside a roaring fireplace.",
    )
    assert item.subject == "Eames Lounge Chair"


def test_only_needed_row_groups_are_read_and_the_order_is_kept(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        asked.append(tuple(kwargs["row_groups"]))
        return real(self, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    keys = [f"data/train-0000{key}" for key in ("1.parquet#0000004", "1.parquet#0000005", "0.parquet#0000001")]
    assert [item.key for item in Subjects200K(path=shards).read(keys)] == keys
    assert asked == [(2,), (0,)]
    backwards = [entry.key for entry in Subjects200K(path=shards).entries()][::-1]
    assert [item.key for item in Subjects200K(path=shards).read(backwards)] == backwards
    assert Subjects200K(path=shards).codec(kind_of("image")) == "jpeg444"


def test_a_large_row_group_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(png(Image.new("RGB", (4, 2), (index, 0, 0)))) for index in range(100)]
    (tmp_path / "one.parquet").write_bytes(parquet(rows, row_group_size=100))
    taken: list[int] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in real(self, *args, **kwargs):
            taken.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    keys = [f"one.parquet#{index:07d}" for index in (3, 15, 16, 40)]
    reds = [np.asarray(item.nodes["image"])[0, 0, 0] for item in Subjects200K(path=tmp_path).read(keys)]
    assert reds == [3, 15, 16, 40] and taken == [8] * 6
    backwards = Subjects200K(path=tmp_path).read(keys[::-1])
    assert [np.asarray(item.nodes["image"])[0, 0, 0] for item in backwards] == [40, 16, 15, 3]


def test_units_share_what_is_read_of_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a row group that is read from its start for each unit, a file that was replaced meanwhile, and a
    reader that moves another one on."""
    red = [row(png(Image.new("RGB", (4, 2), (number, 0, 0)))) for number in range(100)]
    (file := tmp_path / "data/one.parquet").parent.mkdir()
    file.write_bytes(parquet(red[:80], row_group_size=40))
    taken: list[tuple[int, int]] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, row_groups: list[int], **kwargs: Any) -> Iterator[Any]:
        for batch in real(self, *args, row_groups=row_groups, **kwargs):
            taken.append((row_groups[0], batch.num_rows))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    source = Subjects200K(path=file.parent)
    report = build(source, [], tmp_path / "g", executor="inline", shard_size=7, console=Console(quiet=True))
    assert report.units_done == 12 and taken == [(0, 8)] * 5 + [(1, 8)] * 5
    keys = [entry.key for entry in source.entries()]
    one, other = source.read(keys[:60]), source.read(keys[20:])
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        assert [np.asarray(item.nodes["image"])[0, 0, 0] for item in (a, b)] == [number, number + 20]
    file.write_bytes(parquet(red[20:], row_group_size=40))
    assert np.asarray(next(iter(source.read(keys[3:]))).nodes["image"])[0, 0, 0] == 23


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(500_000)
    rows = [row(bytes([index]) + noise) for index in range(60)]
    (tmp_path / "one.parquet").write_bytes(parquet(rows, row_group_size=60))
    del rows
    source = Subjects200K(path=tmp_path)
    keys = [entry.key for entry in source.entries()]
    tracemalloc.start()  # sees what Python hands to Arrow; Arrow's own pool is counted by itself
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0] for _ in source.read(keys)]
    tracemalloc.stop()
    assert len(held) == 60 and max(held) < 20_000_000 < (tmp_path / "one.parquet").stat().st_size


def test_shards_behind_any_fsspec_url(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    for path in shards.glob("data/*.parquet"):
        memory.pipe(f"{root}/data/{path.name}", path.read_bytes())
    memory.pipe(f"{root}/.cache/old.parquet", b"")
    here, there = Subjects200K(path=shards), Subjects200K(path=f"memory:/{root}")
    entries = there.entries()
    assert [entry.key for entry in entries] == [entry.key for entry in here.entries()]
    for local, remote in zip(read_all(here), read_all(there), strict=True):
        assert (local.key, local.original, local.meta) == (remote.key, remote.original, remote.meta)
        np.testing.assert_array_equal(np.asarray(local.nodes["image"]), np.asarray(remote.nodes["image"]))
    memory.pipe(f"{root}/data/train-00000.parquet", (shards / "data/train-00000.parquet").read_bytes())
    assert there.entries()[0].stamp != entries[0].stamp


def test_the_default_is_on_the_hub_and_its_stamp_is_a_blob(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    from huggingface_hub import HfFileSystem

    root = "datasets/Yuanshi/Subjects200K"
    file = shards / "data/train-00000.parquet"
    info = {"name": f"{root}/data/{file.name}", "size": file.stat().st_size, "type": "file", "blob_id": "c0ffee"}
    monkeypatch.setattr(HfFileSystem, "find", lambda self, path, detail: {info["name"]: info} if path == root else {})
    monkeypatch.setattr(HfFileSystem, "info", lambda self, path: {info["name"]: info}[path])
    monkeypatch.setattr(
        HfFileSystem, "open", lambda self, path, mode: (shards / path.removeprefix(root)[1:]).open(mode)
    )
    entries = Subjects200K().entries()
    assert len(entries) == 3 and entries[0].key == f"data/{file.name}#0000000"
    assert entries[0].stamp == f"{file.stat().st_size}-c0ffee"
    assert len(read_all(Subjects200K())) == 3


def test_linked_shards_have_the_stamp_of_the_file(shards: Path, tmp_path: Path) -> None:
    # What `huggingface-cli download` leaves: links into a folder of blobs.
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/a.parquet").symlink_to(shards / "data/train-00000.parquet")
    found = (shards / "data/train-00000.parquet").stat()
    entries = Subjects200K(path=tmp_path / "linked").entries()
    assert {entry.stamp for entry in entries} == {f"{found.st_size}-{found.st_mtime}"}


def test_shards_that_are_not_subjects200k_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(ValueError, match=f"no Parquet rows in {path}; give the folder"):
            Subjects200K(path=path).entries()
    (tmp_path / "a.parquet").write_bytes(parquet([row(b"")], drop=["quality_assessment", "collection"]))
    message = r"a\.parquet lacks the columns collection, quality_assessment; it has image\.bytes, image\.path, desc"
    with pytest.raises(ValueError, match=message):
        Subjects200K(path=tmp_path).entries()
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read .*; fetch it again"):
        Subjects200K(path=tmp_path).entries()


def test_a_replaced_or_damaged_shard_stops_the_read(shards: Path) -> None:
    file = shards / "data/train-00000.parquet"
    whole = file.read_bytes()
    keys = [f"data/{file.name}#{index:07d}" for index in range(3)]
    file.write_bytes(parquet([row(b"")]))
    with pytest.raises(ValueError, match="row 1 asked of a file with 1; it was replaced"):
        list(Subjects200K(path=shards).read(keys))
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(OSError, match=r"train-00000\.parquet: .*CRC"):
        list(Subjects200K(path=shards).read(keys))
    file.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.parquet cannot be read"):
        list(Subjects200K(path=shards).read(keys))


@pytest.mark.data
def test_real_pairs_survive_the_round_through_parquet(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("subjects")
    with (folder / "pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))[:8]
    images = [[Image.open(folder / p[side]).resize((512, 512)) for side in ("left", "right")] for p in pairs]
    rows = [
        row(png(canvas(left, right, 8 + 8 * (index % 2))), f"collection_{1 + index % 2}", item=pairs[index]["item"])
        for index, (left, right) in enumerate(images)
    ]
    (tmp_path / "pairs.parquet").write_bytes(parquet(rows, row_group_size=3))
    items = read_all(Subjects200K(path=tmp_path))
    assert [item.subject for item in items] == [p["item"] for p in pairs]
    for item, (left, right) in zip(items, images, strict=True):
        np.testing.assert_array_equal(np.asarray(item.nodes["image"]), np.asarray(left))
        np.testing.assert_array_equal(np.asarray(item.nodes["reference"]), np.asarray(right))


def test_a_graph_of_pairs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Guards against pairs that get mixed up, or reasons that get lost, on the way into the graph."""
    out = tmp_path_factory.mktemp("graph")
    report = build(Subjects200K(path=shards), ["canny", "source_caption"], out, executor="inline")
    graph = Graph.open(out)
    assert report.units_left == [] and verify(out, "full").problems == []
    for number, pair in enumerate(read_all(Subjects200K(path=shards))[:3]):
        for kind, crop in pair.nodes.items():
            assert np.abs(graph.read(number, kind).array().astype(int) - np.asarray(crop)).mean() < 3
    items = graph.items().to_pylist()
    assert items[0]["caption"] and items[0]["reference_caption"] != items[0]["caption"]
    assert graph.read(0, "caption").text == items[0]["caption"]
    assert json.loads(items[1]["meta"])["quality_assessment"] is None
    reasons = [row["reason"] for row in graph.edges("reference").to_pylist() if row["status"] == "failed"]
    assert reasons == ["undecodable", "bad_geometry", "undecodable", "undecodable", "empty_file"]
    skipped = [row["reason"] for row in graph.edges("canny").to_pylist() if row["status"] == "skipped"]
    assert skipped == ["parent_failed"] * 5


def test_a_corrected_row_of_a_shard_is_one_correction(tmp_path: Path, pair: tuple[Image.Image, Image.Image]) -> None:
    """A data set that was published again with better captions: whole files are new, few rows are."""
    canvases = [png(canvas(*pair, 8)), png(canvas(*pair, 16)), png(canvas(*pair[::-1], 8))]

    def published(**second: Any) -> Subjects200K:
        rows = [row(data) for data in canvases]
        rows[1] = row(canvases[1], **second)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data/train-00000.parquet").write_bytes(parquet(rows))
        return Subjects200K(path=tmp_path / "data")

    out, annotators = tmp_path / "g", ["canny", "source_caption"]
    build(published(quality=None), annotators, out, executor="inline", shard_size=3)
    before = {file: file.read_bytes() for file in out.glob("nodes/**/*.parquet")}
    build(published(description_0="a cat under a table"), annotators, out, executor="inline")
    graph = Graph.open(out)
    assert graph.read(1, "caption").text == "Cat a cat under a table"
    quality = [json.loads(item["meta"])["quality_assessment"] for item in graph.items().to_pylist()]
    assert quality == [QUALITY] * 3
    new = [file for file in out.glob("nodes/**/*.parquet") if file not in before]
    assert [file.parts[-3] for file in new] == ["kind=caption"] and verify(out, "full").problems == []
