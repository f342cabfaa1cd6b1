"""Sources: what they list, what they deliver, and what they say when they cannot."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
import textwrap
import tracemalloc
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.codecs import check_image
from graphbuild.kinds import kind_of
from graphbuild.sources import SOURCES, resolve
from graphbuild.sources.base import Source, SourceItem, Unusable, source_params
from graphbuild.sources.folder import Folder
from graphbuild.sources.sample import PHOTOS, Sample
from graphbuild.sources.subjects200k import Subjects200K, squares

DATA = Path(os.environ.get("GRAPHBUILD_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
QUALITY = {"compositeStructure": 5, "objectConsistency": 4, "imageQuality": 5}


def read_all(source: Source) -> list[SourceItem]:
    return list(source.read([entry.key for entry in source.entries()]))


def photo(name: str) -> Image.Image:
    (item,) = Sample().read([name])
    return Image.open(io.BytesIO(item.original or b"")).convert("RGB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# --- looking sources up


def test_resolve_builds_every_shipped_source() -> None:
    assert {name: resolve(name).name for name in SOURCES} == {name: name for name in SOURCES}


def test_resolve_takes_a_dotted_class_and_its_fields(tmp_path: Path) -> None:
    assert resolve("graphbuild.sources.folder:Folder", path=tmp_path) == Folder(path=tmp_path)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("photos", {}, "unknown source 'photos'; there are folder, sample, subjects200k, or pkg.mod:Class"),
        ("sample", {"path": "x"}, "source 'sample' has no path; it takes no settings"),
        ("folder", {"root": "x", "deep": True}, "has no deep, root; it takes path"),
        ("nowhere.at_all:Source", {}, "cannot be loaded: No module named 'nowhere'"),
        ("graphbuild.sources.folder:Nothing", {}, "cannot be loaded: .*Nothing"),
        ("graphbuild.sources.folder:Path", {}, "is not a Source class"),
    ],
)
def test_resolve_refuses_with_the_valid_choices(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name, **kwargs)


def test_where_the_data_is_does_not_count_as_configuration() -> None:
    assert [source_params(resolve(name)) for name in SOURCES] == [{}, {}, {}]


# --- sample


def test_sample_lists_photographs_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    items = read_all(Sample())
    assert [item.key for item in items] == sorted(PHOTOS)
    for item in items:
        assert isinstance(item.original, bytes) and item.nodes == {"image": item.original}
        assert check_image(item.original)[0].width
        assert item.caption and item.uri == f"skimage/data/{item.key}" and item.meta == {}


def test_sample_says_whose_a_photograph_is_or_nothing() -> None:
    items = {item.key: item for item in read_all(Sample())}
    assert (items["chelsea.png"].licence, items["chelsea.png"].attribution) == ("CC0-1.0", "Stefan van der Walt")
    assert items["moon.png"].licence is None and items["moon.png"].attribution is None
    assert items["motorcycle_left.png"].group == items["motorcycle_right.png"].group == "motorcycle"


def test_listing_the_sample_imports_neither_skimage_nor_cv2() -> None:
    code = """
        import sys
        from graphbuild.sources import resolve
        assert resolve("sample").entries()
        print(sorted({"skimage", "cv2", "torch", "ray", "PIL"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, two of them in subfolders, and things that are no items."""
    root = tmp_path / "photos"
    for name in ("b.png", "a/c.JPG", "a/deep/d.webp", ".hidden.png", ".cache/e.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(Image.new("RGB", (8, 8), "red")))
    (root / "notes.md").write_text("not an image")
    return root


def test_folder_is_recursive_sorted_and_passes_bytes_as_they_are(photos: Path) -> None:
    entries = Folder(path=photos).entries()
    assert [entry.key for entry in entries] == ["a/c.JPG", "a/deep/d.webp", "b.png"]
    found = (photos / "b.png").stat()
    assert entries[2].stamp == f"{found.st_size}-{found.st_mtime_ns}"
    item = read_all(Folder(path=str(photos)))[2]
    assert item.uri == "b.png" and item.original == (photos / "b.png").read_bytes()
    assert item.nodes == {"image": item.original} and item.caption is None


def test_a_changed_file_has_another_stamp(photos: Path) -> None:
    before = Folder(path=photos).entries()
    os.utime(photos / "b.png", ns=(1, 1))
    after = Folder(path=photos).entries()
    assert before[:2] == after[:2] and before[2] != after[2]


def test_folder_reads_in_the_order_asked_for(photos: Path) -> None:
    keys = ["b.png", "a/c.JPG", "b.png"]
    assert [item.key for item in Folder(path=photos).read(keys)] == keys


TABLE = {"caption": "one", "licence": "CC0-1.0", "attribution": "me", "group": "g", "split": "test"}


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if path.suffix == ".jsonl":
        import json

        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        return
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv"])
def test_captions_and_more_from_a_table(photos: Path, name: str) -> None:
    rows = [{"file": "./a/c.JPG", **TABLE}, {"file": "gone.png", **TABLE}]
    write_table(photos / name, rows)
    items = {item.key: item for item in read_all(Folder(path=photos))}
    assert {key: getattr(items["a/c.JPG"], key) for key in TABLE} == TABLE
    assert items["b.png"].caption is None and items["b.png"].split is None


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_the_column_names_of_hugging_face(photos: Path, name: str) -> None:
    write_table(photos / name, [{"file_name": "b.png", "text": "a red square, and so on", "license": "MIT"}])
    item = read_all(Folder(path=photos))[2]
    assert (item.caption, item.licence) == ("a red square, and so on", "MIT")


def test_a_sidecar_wins_over_the_table(photos: Path) -> None:
    write_table(photos / "captions.csv", [{"file": "b.png", "caption": "table"}, {"file": "a/c.JPG", "caption": "t2"}])
    (photos / "b.txt").write_text(" beside \n", encoding="utf-8-sig")
    (photos / "a/c.txt").write_text("\n")
    captions = {item.key: item.caption for item in read_all(Folder(path=photos))}
    assert captions == {"a/c.JPG": "t2", "a/deep/d.webp": None, "b.png": "beside"}


def test_a_changed_table_is_read_again(photos: Path) -> None:
    for caption in ("first", "second one"):
        write_table(photos / "captions.csv", [{"file": "b.png", "caption": caption}])
        assert read_all(Folder(path=photos))[2].caption == caption


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions.csv": "name,caption\nb.png,x\n"}, "row of captions.csv has no file or file_name, only name, cap"),
        ({"captions.csv": "file,caption\n/abs/b.png,x\n"}, "none of the 3 images: it has '/abs/b.png', the folder has"),
        ({"captions.jsonl": '{"file": "b.png"}\n{oops\n'}, "captions.jsonl line 2 is not JSON"),
        ({"captions.jsonl": "[1]\n"}, "captions.jsonl line 1 is not a JSON object"),
        ({"captions.jsonl": '{"file": "b.png", "text": ["a"]}\n'}, "has .'a'. as caption; it must be text"),
        ({"captions.csv": "file\nb.png", "metadata.csv": "file\nb.png"}, "captions.csv.*metadata.csv; keep one"),
    ],
)
def test_a_wrong_table_is_refused(photos: Path, files: Mapping[str, str], message: str) -> None:
    for name, text in files.items():
        (photos / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Folder(path=photos).entries()


def test_a_table_that_is_not_utf8_is_refused(photos: Path) -> None:
    (photos / "captions.csv").write_bytes(b"file,caption\nb.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"captions\.csv: 'utf-8' codec"):
        Folder(path=photos).entries()


def test_files_that_cannot_be_read_are_items_with_a_reason(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"secret")
    (photos / "empty.png").touch()
    (photos / "dangling.png").symlink_to("nothing.png")
    (photos / "inside.png").symlink_to("b.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "outside.png").symlink_to(outside)
    os.mkfifo(photos / "pipe.png")
    (photos / "x.jpg").mkdir()
    (photos / "x.jpg/y.jpg").write_bytes(b"not an image")
    items = {item.key: item for item in read_all(Folder(path=photos))}
    images = {key: item.nodes["image"] for key, item in items.items()}
    assert images["empty.png"] == b"" and images["x.jpg/y.jpg"] == b"not an image" and "x.jpg" not in images
    assert images["inside.png"] == (photos / "b.png").read_bytes()
    assert images["dangling.png"] == Unusable("missing")
    assert images["outside.png"] == Unusable("unreadable", "a link that leaves the folder")
    assert images["pipe.png"] == Unusable("unreadable", "not a regular file")
    assert isinstance(loop := images["loop.png"], Unusable) and loop.reason == "unreadable"
    assert all((item.original is None) == isinstance(images[key], Unusable) for key, item in items.items())


def test_a_vanished_file_is_missing(photos: Path) -> None:
    source = Folder(path=photos)
    keys = [entry.key for entry in source.entries()]
    (photos / "b.png").unlink()
    assert [item.nodes["image"] == Unusable("missing") for item in source.read(keys)] == [False, False, True]


def test_an_io_error_is_unreadable_without_a_path(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", broken)
    (item,) = Folder(path=photos).read(["b.png"])
    assert item.nodes == {"image": Unusable("unreadable", "Input/output error")} and item.original is None


def test_a_huge_file_is_not_loaded(photos: Path) -> None:
    with (photos / "huge.png").open("wb") as file:
        file.truncate(300_000_000)
    (item,) = Folder(path=photos).read(["huge.png"])
    assert item.nodes == {"image": Unusable("too_large", "300000000 bytes, the limit is 200000000")}


def test_links_to_folders_are_not_followed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/f.png").write_bytes(b"")
    (photos / "linked").symlink_to(tmp_path / "other")
    (photos / "self").symlink_to(photos)
    assert len(Folder(path=photos).entries()) == 3
    (tmp_path / "root").symlink_to(photos)
    assert len(read_all(Folder(path=tmp_path / "root"))) == 3


def test_folder_refuses_what_it_cannot_list(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in [
        (None, "needs a path"),
        (tmp_path / "no", r"/no is not a folder; give"),
        (photos / "b.png", r"b\.png is not a folder"),
        (tmp_path / "empty", r"no image files under .*/empty .*\.avif"),
    ]:
        with pytest.raises(ValueError, match=message):
            Folder(path=path).entries()
    Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")).touch()
    with pytest.raises(ValueError, match="not UTF-8; rename"):
        Folder(path=photos).entries()


# --- subjects200k


def canvas(left: Image.Image, right: Image.Image, padding: int) -> Image.Image:
    side = left.width
    whole = Image.new("RGB", (2 * side + 3 * padding, side + 2 * padding), (7, 90, 200))
    whole.paste(left, (padding, padding))
    whole.paste(right, (side + 2 * padding, padding))
    return whole


def row(data: bytes | None, collection: str = "collection_1", quality: Any = QUALITY, **texts: Any) -> dict[str, Any]:
    description = {
        "item": "Cat",
        "description_0": "a cat on a sofa",
        "description_1": "a cat in a garden",
        "category": "animal",
        "description_valid": True,
    }
    return {
        "image": {"bytes": data, "path": None},
        "collection": collection,
        "quality_assessment": quality,
        "description": description | texts,
    }


def parquet(rows: list[dict[str, Any]], row_group_size: int = 2, drop: Sequence[str] = ()) -> bytes:
    scores = pa.struct([(name, pa.int64()) for name in QUALITY])
    texts = [(name, pa.string()) for name in ("item", "description_0", "description_1", "category")]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("collection", pa.string()),
            ("quality_assessment", scores),
            ("description", pa.struct([*texts, ("description_valid", pa.bool_())])),
        ]
    )
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema).drop_columns(drop)
    pq.write_table(table, sink, row_group_size=row_group_size, write_batch_size=1, write_page_checksum=True)
    return sink.getvalue()


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
    assert (first.caption, first.reference_caption) == ("a cat on a sofa", "a cat in a garden")
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
    assert (items[6].subject, items[6].reference_caption) == (None, None)


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
    assert reds == [3, 15, 16, 40] and taken == [16, 16, 16]
    backwards = Subjects200K(path=tmp_path).read(keys[::-1])
    assert [np.asarray(item.nodes["image"])[0, 0, 0] for item in backwards] == [40, 16, 15, 3]


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
    with pytest.raises(ValueError, match="row 1 asked of a shard with 1; it was replaced"):
        list(Subjects200K(path=shards).read(keys))
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(OSError, match=r"train-00000\.parquet: .*CRC"):
        list(Subjects200K(path=shards).read(keys))
    file.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.parquet cannot be read"):
        list(Subjects200K(path=shards).read(keys))


@pytest.mark.skipif(not (DATA / "subjects/pairs.csv").exists(), reason="needs subjects/ in GRAPHBUILD_TEST_DATA")
def test_real_pairs_survive_the_round_through_parquet(tmp_path: Path) -> None:
    with (DATA / "subjects/pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))[:8]
    images = [[Image.open(DATA / "subjects" / p[side]).resize((512, 512)) for side in ("left", "right")] for p in pairs]
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
