"""Sources whose files have any names: columns, endings, folders and annotations become kinds and facts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.sources import resolve
from graphbuild.sources.base import Given, Source, SourceItem, Unusable
from graphbuild.sources.testing import check_source
from tests.support.sources import put


def picture(value: int, mode: str = "RGB", form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (24, 16), (value, 40, 90) if mode == "RGB" else value).save(sink, form)
    return sink.getvalue()


def read(source: Source) -> dict[str, SourceItem]:
    check_source(source)
    return {item.key: item for item in source.read([entry.key for entry in source.listing().entries])}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "target": {"bytes": picture(n), "path": None},
            "looks": [{"bytes": picture(100 + n), "path": None}, {"bytes": picture(110 + n), "path": None}],
            "mask": picture(255, "L"),
            "words": {"item": "a cup", "text": f"on table {n}"},
            "edits": [{"text": "make it red"}, {"text": "make it blue"}],
            "score": n,
        }
        for n in range(5)
    ]  # fmt: skip


MAP: dict[str, Any] = {
    "nodes": {
        "image": "target",
        "reference": {"of": "looks", "variants": 2},
        "foreground_mask": "mask",
        "edit_text": {"of": "edits.text", "variants": 2},
        "words": {"of": "words", "codec": "json"},
    },
    "facts": {"caption": "{words.item} {words.text}", "split": "__split__", "meta": ["score"]},
    "dataset": "org/cups",
    "licence": "CC0-1.0",
}


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk"])
def test_columns_of_a_table_become_kinds_variants_and_facts(tmp_path: Path, layout: str) -> None:
    table = pa.Table.from_pylist(rows())
    if layout == "parquet":
        pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
        key = "train-00000-of-00001.parquet#0000003"
    else:
        (tmp_path / "train").mkdir()
        with pa.OSFile(str(tmp_path / "train/data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
            key = "train/data-00000-of-00001.arrow#0000003"
        (tmp_path / "train/cache-1.arrow").write_bytes(b"not one of ours")
    items = read(resolve("parquet", path=tmp_path, **MAP))
    item = items[key]
    assert len(items) == 5 and item.original == item.nodes["image"] == picture(3)
    assert item.nodes["reference"] == [picture(103), picture(113)]
    assert item.nodes["edit_text"] == ["make it red", "make it blue"]
    assert item.nodes["words"] == {"item": "a cup", "text": "on table 3"}
    assert (item.caption, item.split, item.meta, item.licence) == ("a cup on table 3", "train", {"score": 3}, "CC0-1.0")


def test_a_wrong_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "a.parquet")
    wrong = resolve("parquet", path=tmp_path, nodes={"image": "targte"})
    with pytest.raises(ValueError, match=r"a.parquet has no column 'targte' \(did you mean 'target'\?\)"):
        wrong.entries()


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ({"garment": "cloth"}, "garment is no kind of graphbuild: say how it is stored"),
        ({"image": {"of": "a", "codec": "jpg"}}, "image: codec: 'jpg'; allowed: source"),
        ({"image": {"column": "a"}}, "unknown key 'column'"),
    ],
)
def test_a_wrong_map_is_refused_before_anything_is_read(nodes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        resolve("parquet", path="nowhere", nodes=nodes)


def test_pictures_of_a_table_may_be_paths_but_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(picture(1))
    (tmp_path / "secret.png").write_bytes(picture(2))
    paths = ["a.png", "../secret.png", "https://example.org/a.png", "b.png"]
    pq.write_table(pa.table({"file": paths}), tmp_path / "data/t.parquet")
    source = resolve("parquet", path=tmp_path / "data", nodes={"image": "file"})
    nodes = [item.nodes["image"] for item in source.read([entry.key for entry in source.entries()])]
    assert nodes[0] == picture(1) and nodes[3] == Unusable("missing")
    details = [node.detail for node in nodes[1:3] if isinstance(node, Unusable)]
    assert "leads out of the folder" in details[0] and "img2dataset" in details[1]


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_tars_of_img2dataset_are_read_as_they_are(tmp_path: Path) -> None:
    members = {"000000000.jpg": picture(1, form="JPEG"), "000000000.txt": b"a red cup", "000000001.json": b"{}"}
    members |= {"000000000.json": b'{"url": "u", "k": 7}', "a/000000002.webp": picture(2, form="WEBP")}
    tar(tmp_path / "00000.tar", {**members, "a/000000002.seg.png": picture(0, "L")})
    source = resolve("webdataset", path=tmp_path)
    items = read(source)
    assert list(items) == ["00000.tar#000000000", "00000.tar#a/000000002"]
    assert items["00000.tar#000000000"].caption == "a red cup"
    assert source.listing().notes == ("left out: 1 sample without a picture ('00000.tar#000000001')",)
    own = {"nodes": {"image": "jpg;webp", "foreground_mask": "seg.png"}, "facts": {"meta": ["json.k"]}}
    items = read(resolve("webdataset", path=tmp_path, **own))
    assert items["00000.tar#000000000"].meta == {"k": 7}
    assert items["00000.tar#a/000000002"].nodes["foreground_mask"] == picture(0, "L")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_manifest_names_files_and_facts(tmp_path: Path, form: str) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        (tmp_path / f"{n}_mask.png").write_bytes(picture(255, "L"))
    table = [{"photo": f"{n}.png", "cut": f"{n}_mask.png", "says": f"cup, {n}", "who": "me"} for n in range(2)]
    if form == "jsonl":
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, table)))
    else:
        lines = [f'{row["photo"]},{row["cut"]},"{row["says"]}",{row["who"]}' for row in table]
        (tmp_path / "m.csv").write_text("\n".join(["photo,cut,says,who", *lines]))
    facts = {"caption": "says", "group": "{who}"}
    own = {"path": tmp_path / f"m.{form}", "nodes": {"image": "photo", "foreground_mask": "cut"}, "facts": facts}
    items = read(resolve("manifest", **own))
    assert items["1.png"].nodes["image"] == picture(1) and items["1.png"].caption == "cup, 1"
    assert items["0.png"].group == "me"


def test_a_manifest_of_addresses_is_refused_with_the_way_to_fetch_them(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("url\nhttps://example.org/a.jpg\n")
    with pytest.raises(ValueError, match=r"img2dataset --url_list m.csv .* use the source webdataset"):
        resolve("manifest", path=tmp_path / "m.csv", nodes={"image": "url"}).entries()


def test_folders_named_like_kinds_are_matched_by_name(tmp_path: Path) -> None:
    put(tmp_path, {"image/a.png": picture(1), "image/b/c.jpg": picture(2, form="JPEG"), "depth/a.png": picture(9, "L"),
                   "caption/b/c.txt": b"a cup", "notes/a.png": picture(3)})  # fmt: skip
    source = resolve("pairs", path=tmp_path)
    items = read(source)
    assert [kind.name for kind in source.kinds()] == ["image", "caption", "depth"] and list(items) == ["a", "b/c"]
    assert items["a"].nodes["depth"] == picture(9, "L") and items["a"].nodes["caption"] is None
    assert items["b/c"].nodes["caption"] == b"a cup"
    assert "depth: no file for 1 item ('b/c')" in source.listing().notes


def test_patterns_take_other_pictures_of_the_subject_as_references(tmp_path: Path) -> None:
    """DreamBooth's layout: one folder a subject."""
    put(tmp_path, {f"{subject}/{n:02d}.png": picture(n + 50 * (subject == "dog"))
                   for subject in ("cat", "dog") for n in range(4)})  # fmt: skip
    nodes = {"image": "{subject}/{view}.png", "reference": {"of": "{subject}/*.png", "variants": 3}}
    items = read(resolve("pairs", path=tmp_path, nodes=nodes, facts={"group": "{subject}", "caption": "a {subject}"}))
    assert items["dog/02"].nodes["reference"] == [picture(53), picture(50), picture(51)]
    assert (items["dog/02"].group, items["cat/00"].caption) == ("dog", "a cat")


def coco(root: Path) -> Path:
    image = {"id": 7, "file_name": "0007.jpg", "width": 24, "height": 16, "license": 1, "flickr_url": "f"}
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    points = [[4, 3, 2], *[[0, 0, 0]] * 4, [3, 6, 2], [7, 6, 1], *[[0, 0, 0]] * 10]
    person = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 2, 6, 10], "iscrowd": 0}
    counts = {"counts": [16 * 10, 16 * 4, 16 * 10], "size": [16, 24]}
    objects = [
        {**person, "segmentation": [[2, 2, 8, 2, 8, 12, 2, 12]]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [10, 0, 4, 16], "iscrowd": 1, "segmentation": counts},
    ]
    documents: dict[str, list[dict[str, Any]]] = {
        "instances": objects,
        "person_keypoints": [{**person, "keypoints": [part for point in points for part in point]}],
        "captions": [{"id": n, "image_id": 7, "caption": f"a car, {n}\n"} for n in range(2)],
    }
    for name, listed in documents.items():
        licences = [{"id": 1, "name": "CC-BY 2.0"}]
        said = {"images": [image], "annotations": listed, "categories": categories, "licenses": licences}
        put(root, {f"annotations/{name}_val.json": json.dumps(said).encode()})
    return put(root, {"val/0007.jpg": picture(1, form="JPEG")})


def test_coco_gives_boxes_masks_keypoints_and_captions(tmp_path: Path) -> None:
    (item,) = read(resolve("coco", path=coco(tmp_path))).values()
    assert (item.licence, item.attribution, item.nodes["caption"]) == ("CC-BY 2.0", "f", ["a car, 0", "a car, 1"])
    boxes: Any = item.nodes["boxes"]
    assert [(each["label"], each["box"]) for each in boxes["boxes"]] == [("person", [2, 2, 8, 12])]
    mask = item.nodes["mask"]
    assert isinstance(mask, Given) and mask.attrs["labels"] == ["", "car", "person"]
    labels: Any = mask.value
    assert (labels[5, 4], labels[5, 11], labels[5, 20]) == (2, 1, 0)
    pose: Any = item.nodes["pose"]
    points = pose["people"][0]["keypoints"]
    assert points[0] == [4, 3, 1.0] and points[1] == [5.0, 6.0, 0.75] and points[5] == [3, 6, 1.0]


def test_listings_say_how_large_items_are(tmp_path: Path) -> None:
    """Guards against shards of a thousand large pictures, which take twice their bytes of disk while they are read."""
    data, other = np.random.default_rng(0).bytes(3000), picture(2)
    put(tmp_path, {"pairs/image/a.png": data, "pairs/depth/a.png": other, "list/a.png": data})
    (tmp_path / "list/m.csv").write_text("photo\na.png\n")
    (tmp_path / "tars").mkdir()
    tar(tmp_path / "tars/0.tar", {"a.png": data, "a.depth.png": other})
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"photo": [data, data[::-1]]}), tmp_path / "tables/t.parquet", write_statistics=False)
    photo = {"nodes": {"image": "photo"}}
    for source, wanted in (
        (resolve("pairs", path=tmp_path / "pairs"), len(data) + len(other)),
        (resolve("manifest", path=tmp_path / "list/m.csv", **photo), len(data)),
        (resolve("webdataset", path=tmp_path / "tars"), len(data) + len(other)),
        (resolve("parquet", path=tmp_path / "tables", **photo), len(data)),
        (resolve("coco", path=coco(tmp_path / "coco")), len(picture(1, form="JPEG"))),
    ):
        found = next(iter(source.listing().entries)).nbytes
        assert wanted <= found <= wanted + 100, source.name


def test_frames_of_videos_are_items_of_one_group_or_variants(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for n in range(12):
        video.write(np.full((48, 64, 3), 20 * n, np.uint8))
    video.release()
    items = read(resolve("video", path=tmp_path, frames=4))
    assert list(items) == [f"clip.avi#{n:07d}" for n in (0, 3, 6, 9)] and {i.group for i in items.values()} == {"clip"}
    data = items["clip.avi#0000006"].nodes["image"]
    assert isinstance(data, bytes) and abs(int(np.asarray(Image.open(io.BytesIO(data)))[9, 9, 0]) - 120) < 6
    (clip,) = read(resolve("video", path=tmp_path, frames=4, each="variant")).values()
    references: Any = clip.nodes["reference"]
    assert clip.nodes["image"] == items["clip.avi#0000000"].nodes["image"] and references[1] == data


def test_reading_a_table_through_the_map_holds_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the columns that are asked for are read: a row of Graph200K has 31 pictures."""
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "a.parquet")
    asked: list[Any] = []
    real: Callable[..., Any] = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **k: (asked.append(k["columns"]), real(self, *a, **k))[1]
    )
    source = resolve("parquet", path=tmp_path, nodes={"image": "target"})
    next(source.read([source.entries()[2].key]))
    assert asked == [["target.bytes", "target.path"]]
