"""Sources: what they list, what they deliver, and what they say when they cannot."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from graphbuild.images.codecs import check_image
from graphbuild.sources import SOURCES, resolve
from graphbuild.sources.base import Source, SourceItem, Unusable, source_params
from graphbuild.sources.folder import Folder
from graphbuild.sources.sample import PHOTOS, Sample


def read_all(source: Source) -> list[SourceItem]:
    return list(source.read([entry.key for entry in source.entries()]))


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
        ("photos", {}, "unknown source 'photos'; known: coco, compose, folder, manifest, pairs, parquet, sample"),
        ("sample", {"path": "x"}, "source 'sample' has no path; it takes colours"),
        ("folder", {"path": 5}, "source 'folder': path: 5; allowed: "),
        ("folder", {"root": "x", "deep": True}, "has no deep, root; it takes colours, path"),
        ("nowhere.at_all:Source", {}, "No module named 'nowhere'; it is looked for in the current folder"),
        ("graphbuild.sources.folder:Nothing", {}, "folder:Nothing': cannot load it: AttributeError"),
        ("graphbuild.sources.folder:Path", {}, "is no subclass of graphbuild.Source"),
    ],
)
def test_resolve_refuses_with_the_valid_choices(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name, **kwargs)


def test_where_the_data_is_does_not_count_as_configuration() -> None:
    assert [source_params(resolve(name)) for name in ("folder", "sample", "subjects200k")] == [{}, {}, {}]
    assert [name for name in SOURCES if "path" in source_params(resolve(name))] == []


# --- sample


def test_sample_lists_photographs_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    items = read_all(Sample())
    assert [item.key for item in items] == list(PHOTOS)
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


# --- folder: what is read


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
        (
            {"captions.csv": "file,caption\n/abs/b.png,x\n"},
            "names none of the images: it has '/abs/b.png', the fold",
        ),
        ({"captions.jsonl": '{"file": "b.png"}\n{oops\n'}, "captions.jsonl line 2 is not JSON"),
        ({"captions.jsonl": "[1]\n"}, "captions.jsonl line 1 is not a JSON object"),
        ({"captions.jsonl": '{"file": "b.png", "text": ["a"]}\n'}, "has .'a'. as caption; it must be text"),
        ({"captions.csv": "file\nb.png", "metadata.csv": "file\nb.png"}, "captions.csv and metadata.csv: keep one"),
    ],
)
def test_a_wrong_table_is_refused(photos: Path, files: Mapping[str, str], message: str) -> None:
    for name, text in files.items():
        (photos / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Folder(path=photos).entries()


def test_a_table_that_is_not_utf8_is_refused(photos: Path) -> None:
    (photos / "captions.csv").write_bytes(b"file,caption\nb.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"captions\.csv is not UTF-8 .*; convert it, for example with iconv"):
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
    assert "outside.png" not in images
    (item,) = Folder(path=photos).read(["outside.png"])
    assert item.nodes == {"image": Unusable("unreadable", "a link that leaves the folder")}
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
        (tmp_path / "empty", r"no image files under .*/empty; give another path .*\.avif .*\.mpo"),
    ]:
        with pytest.raises(ValueError, match=message):
            Folder(path=path).entries()
