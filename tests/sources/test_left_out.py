"""Every file that a folder holds is an item, belongs to one, or is said to be left out."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.images.decode import suffixes
from graphbuild.sources.base import Unusable
from graphbuild.sources.captions import MAX_TEXT
from graphbuild.sources.folder import Folder
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

NFC, NFD = "caf\u00e9.png", unicodedata.normalize("NFD", "caf\u00e9.png")


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path, "PNG")
    return root


def keys(folder: Folder) -> list[str]:
    return [entry.key for entry in folder.entries()]


def notes(root: Path, **config: bool) -> list[str]:
    return list(Folder(path=root, **config).listing().notes)


def captions(folder: Folder) -> Mapping[str, str | None]:
    return {item.key: item.caption for item in folder.read(keys(folder))}


# --- endings and names


def test_files_that_are_no_items_are_counted_by_ending(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.jpe", "c.j2k", "IMG_1.HEIC", "d.jxl", "noending", "a.b.c.d-e f g")
    (tmp_path / "a.txt").write_text("caption of a")
    (tmp_path / "lonely.txt").write_text("of nothing")
    (tmp_path / "notes.md").touch()
    assert keys(Folder(path=tmp_path)) == ["a.png", "b.jpe", "c.j2k"]
    if ".heic" not in suffixes():
        (line,) = notes(tmp_path)
        assert line.startswith("left out: 6 files with other endings (no ending 2, ")
        assert all(part in line for part in (".heic 1", ".jxl 1", ".txt 1", ".md 1"))
        assert line.endswith(
            ": 'IMG_1.HEIC', 'a.b.c.d-e f g', 'd.jxl' and 3 more): pip install 'graphbuild[heif]' 'pillow-jxl-plugin'"
        )


def test_nothing_is_noted_of_a_folder_of_images_and_captions(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b/c.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b/c.png", "text": "c"}')
    assert notes(tmp_path) == []


def test_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.raw").touch()
    with pytest.raises(
        ValueError,
        match=r"no image files under .*; left out: 1 file .*'a\.raw'\); give another path",
    ):
        Folder(path=tmp_path).entries()


def test_odd_names_are_items_or_named(tmp_path: Path) -> None:
    odd = ["a\nb.png", 'it\'s "q".png', "right\u202eleft.png", "x" * 251 + ".png"]
    make(tmp_path, *odd)
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "t", "PNG")
    os.rename(tmp_path / "t", bad)
    folder = Folder(path=tmp_path)
    assert keys(folder) == sorted(odd)
    assert [item.original is not None for item in folder.read(sorted(odd))] == [True] * 4
    assert notes(tmp_path) == [r"left out: 1 file whose name is not UTF-8 (b'caf\xe9.png'): rename"]


def test_hidden_images_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "._a.png", ".thumbnails/b.png")
    assert keys(Folder(path=tmp_path)) == ["a.png"]
    assert notes(tmp_path) == ["left out: 1 hidden image file ('._a.png')"]


# --- links


def linked(tmp_path: Path) -> Path:
    """As the Hugging Face cache, DVC and git-annex lay a data set out."""
    make(tmp_path, "blobs/1", "blobs/2", "blobs/more/d.png")
    root = tmp_path / "snapshot"
    root.mkdir()
    for number in (1, 2):
        (root / f"{number}.png").symlink_to(f"../blobs/{number}")
    (root / "more").symlink_to("../blobs/more")
    (root / "self").symlink_to(".")
    return root


def test_a_folder_of_links_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image files .*2 links out of the folder .*: --follow-links reads"):
        Folder(path=linked(tmp_path)).entries()


def test_links_are_read_on_request_and_loops_end(tmp_path: Path) -> None:
    folder = Folder(path=linked(tmp_path), follow_links=True)
    assert keys(folder) == ["1.png", "2.png", "more/d.png"]
    assert all(item.original for item in folder.read(keys(folder)))
    assert folder.listing().notes == ()


def test_single_links_are_named(tmp_path: Path) -> None:
    root = make(linked(tmp_path), "real.png")
    assert keys(Folder(path=root)) == ["real.png"]
    assert notes(root) == [
        "left out: 2 links out of the folder ('1.png', '2.png'): --follow-links reads what links lead to",
        "left out: 2 linked folders ('more', 'self'): --follow-links reads what links lead to",
    ]


def test_a_table_that_is_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "a.png")
    (tmp_path / "secret.csv").write_text("file,caption\na.png,secret\n")
    (root / "captions.csv").symlink_to("../secret.csv")
    assert captions(Folder(path=root)) == {"a.png": None} and "captions.csv" in notes(root)[0]
    assert captions(Folder(path=root, follow_links=True)) == {"a.png": "secret"}


def test_a_graph_inside_the_folder_is_no_source_of_images(tmp_path: Path) -> None:
    """`--out` may lie inside the folder, with pictures that `sample` wrote into it."""
    make(tmp_path, "a.png", "g/samples/task.png")
    (tmp_path / "g/graph.json").write_text(json.dumps({"format": 1, "shard_size": 1, "source": {}}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/graph.json").write_text("[]")
    make(tmp_path, "other/b.png")
    assert keys(Folder(path=tmp_path)) == ["a.png", "other/b.png"]
    assert notes(tmp_path) == [
        "left out: 1 file with other endings (.json 1: 'other/graph.json')",
        "left out: 1 graph ('g')",
    ]


# --- tables


def table(root: Path, rows: Mapping[str, str], name: str = "metadata.jsonl") -> None:
    (root / name).write_text("\n".join(json.dumps({"file_name": file, "text": text}) for file, text in rows.items()))


def test_rows_find_files_that_are_spelled_otherwise(tmp_path: Path) -> None:
    make(tmp_path, NFD, "sub/b.png", "c.PNG")
    table(tmp_path, {NFC: "e", "sub\\b.png": "b", "C.png": "c"})
    assert captions(Folder(path=tmp_path)) == {NFD: "e", "sub/b.png": "b", "c.PNG": "c"}
    assert notes(tmp_path) == []


def test_a_row_belongs_to_the_file_it_names_exactly(tmp_path: Path) -> None:
    """Files that differ in case or normalisation alone are different pictures on most servers."""
    make(tmp_path, "a.png", "A.png", NFC, NFD)
    table(tmp_path, {"A.png": "upper", NFC: "composed"})
    found = captions(Folder(path=tmp_path))
    assert found == {"A.png": "upper", "a.png": None, NFC: "composed", NFD: None}


def test_rows_that_name_no_image_are_said(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    table(tmp_path, {"a.png": "a", "gone.png": "x", "x\u202e.png": "y"})
    assert notes(tmp_path) == [r"metadata.jsonl: 2 of 3 rows name no image: 'gone.png', 'x\u202e.png'"]


def test_files_with_several_rows_are_said(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\na.png,first\na.png,last\n")
    assert captions(Folder(path=tmp_path)) == {"a.png": "last"}
    assert notes(tmp_path) == ["captions.csv: 1 file with several rows, of which the last counts: 'a.png'"]


def test_tables_of_subfolders_count_for_their_folder(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png", "sub/deep/d.png")
    table(tmp_path, {"a.png": "a", "sub/b.png": "from above", "sub/deep/d.png": "d"})
    table(tmp_path / "sub", {"b.png": "b", "deep/c.png": "c", "gone.png": ""})
    assert captions(Folder(path=tmp_path)) == {"a.png": "a", "sub/b.png": "b", "sub/deep/c.png": "c",
                                               "sub/deep/d.png": "d"}  # fmt: skip
    assert notes(tmp_path) == [
        "metadata.jsonl: 1 of 3 rows name no image: 'sub/b.png'",
        "sub/metadata.jsonl: 1 of 3 rows name no image: 'gone.png'",
    ]


def test_further_columns_are_kept_as_numbers_and_words(tmp_path: Path) -> None:
    """For conditions on items: `where: {quality: {">=": 3}}`."""
    make(tmp_path, "a.png", "b.png", "c/d.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,quality,camera,id\na.png,1,4.5,X100,007\nb.png,b,3,,1e999\n")
    pq.write_table(pa.table({"file_name": ["d.png"], "shot": [date(2020, 1, 2)], "tags": [["x"]]}),
                   tmp_path / "c/metadata.parquet")  # fmt: skip
    a, b, d = Folder(path=tmp_path).read(["a.png", "b.png", "c/d.png"])
    assert (a.caption, dict(a.meta)) == ("1", {"quality": 4.5, "camera": "X100", "id": "007"})
    assert dict(b.meta) == {"quality": 3, "id": "1e999"}
    assert dict(d.meta) == {"shot": "2020-01-02", "tags": ["x"]}
    assert notes(tmp_path) == []


def test_a_cell_too_many_is_refused(tmp_path: Path) -> None:
    """The caption would end at its first comma."""
    make(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\na.png,red, round\n")
    with pytest.raises(ValueError, match=r"captions\.csv line 2 has more cells than the header: quote"):
        Folder(path=tmp_path).listing()


def test_odd_files_of_all_kinds_cost_one_row_each(tmp_path: Path) -> None:
    """Guards against a shard, or a folder, that is lost to one file."""
    root = make(tmp_path / "photos", "good.png", "wordy.png")
    os.rename(make(root, "t.png") / "t.png", os.fsencode(root) + b"/caf\xe9.png")
    Image.new("RGB", (64, 64), "red").save(root / "cut.avif")
    (root / "cut.avif").write_bytes((root / "cut.avif").read_bytes()[:200])
    (root / "wordy.txt").write_text("x" * 10_000_000)
    complete(build(root, tmp_path / "g", ["canny"], shard_size=10))
    graph = Graph.open(tmp_path / "g")
    reasons = dict(
        zip(graph.items().column("key").to_pylist(), graph.edges("image").column("reason").to_pylist(), strict=True)
    )
    assert reasons == {"cut.avif": "undecodable", "good.png": None, "wordy.png": "too_large"}
    assert graph.kinds()["canny"] == 1


# --- encodings and lengths


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_honoured(tmp_path: Path, encoding: str) -> None:
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("ein K\u00e4tzchen", encoding=encoding)
    (tmp_path / "captions.csv").write_text("file,caption\nb.png,\u732b\n", encoding=encoding)
    assert captions(Folder(path=tmp_path)) == {"a.png": "ein K\u00e4tzchen", "b.png": "\u732b"}


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "ein K\u00e4tzchen"), ("shift-jis", "\u732b\u5199")])
def test_captions_in_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str, text: str) -> None:
    make(tmp_path, "sub/a.png")
    (tmp_path / "sub/a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"sub/a\.txt is not UTF-8 .*iconv"):
        Folder(path=tmp_path).listing()


def test_a_caption_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    """A link that leads out of the folder, as caches lay them: the picture would train without its words."""
    root = make(tmp_path / "photos", "a.png")
    (tmp_path / "aside.txt").write_text("a cat")
    (root / "a.txt").symlink_to("../aside.txt")
    with pytest.raises(ValueError, match=r"a\.txt: a link that leaves the folder; make it readable"):
        Folder(path=root).listing()
    assert captions(Folder(path=root, follow_links=True)) == {"a.png": "a cat"}


@pytest.mark.parametrize("name", ["a.txt", "captions.csv", "captions.jsonl"])
def test_an_endless_caption_refuses_its_item_alone(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.png", "b.png")
    long = "x" * (MAX_TEXT + 1)
    rows = {"a.txt": long, "captions.csv": f"file,caption\na.png,{long}\n"}
    (tmp_path / name).write_text(rows.get(name, json.dumps({"file": "a.png", "caption": long})))
    refused, other = Folder(path=tmp_path).read(["a.png", "b.png"])
    image = refused.nodes["image"]
    assert isinstance(image, Unusable) and image.reason == "too_large"
    assert name in image.detail and "the limit is 100000" in image.detail
    assert refused.caption is None and isinstance(other.nodes["image"], bytes)


# --- the commands say it


@pytest.mark.parametrize("command", ["plan", "run"])
def test_commands_print_what_is_left_out(tmp_path: Path, command: str) -> None:
    root = make(tmp_path / "photos", "a.png")
    (root / "b.raw").touch()
    (root / "c.png").symlink_to(tmp_path / "elsewhere.png")
    args = [command, "--source", "folder", "--path", str(root), "--annotators", "canny", "--out", str(tmp_path / "g")]
    args += ["--executor", "inline"] if command == "run" else []
    for _ in range(2):  # also when there is nothing to do
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 0, done.output
        assert (
            "left out: 1 file with other endings (.raw 1: 'b.raw')" in done.output
            and "left out: 1 link out" in done.output
        )
    done = CliRunner().invoke(app, [*args, "--follow-links"])
    assert "(.raw 1: 'b.raw')" in done.output and "link" not in done.output
