"""A graph in layouts that others read: with their own readers, complete, continued, with its licences."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.errors import GraphError
from graphbuild.sources import resolve
from graphbuild.store.export import layouts
from graphbuild.store.export.coco import run_lengths
from graphbuild.store.export.run import export
from graphbuild.store.graph import Graph
from tests.sources.test_mapped import coco, picture
from tests.support.annotators import build, complete
from tests.support.sources import put

LABELS = {"of": "seg", "labels": ["background", "cup"]}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Four items: pictures, edges, label maps with names, two references, captions."""
    root = tmp_path_factory.mktemp("export")
    for n in range(4):
        labels = np.zeros((16, 24), np.uint8)
        labels[4:9, 3 : 8 + n] = 1
        sink = io.BytesIO()
        Image.fromarray(labels).save(sink, "PNG")
        files = {f"image/{n}.jpg": picture(50 * n, form="JPEG"), f"a/{n}.png": picture(n), f"b/{n}.png": picture(9 + n)}
        put(root / "in", {**files, f"seg/{n}.png": sink.getvalue(), f"caption/{n}.txt": f"cup {n}".encode()})
    nodes = {"image": "image", "mask": LABELS, "caption": "caption", "reference": ["a", "b"]}
    source = resolve(
        "pairs", path=root / "in", nodes=nodes, licence="CC0-1.0", attribution="ours", facts={"group": "g"}
    )
    complete(build(source, root / "g", ["canny"], shard_size=2))
    return Graph.open(root / "g")


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """One picture with boxes, label map, pose and captions."""
    root = tmp_path_factory.mktemp("coco")
    complete(build(resolve("coco", path=coco(root / "in")), root / "g", []))
    return Graph.open(root / "g")


def test_datasets_loads_pictures_lists_and_words(graph: Graph, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = export(graph, tmp_path / "out", "datasets")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    row = loaded[3]
    assert loaded.num_rows == 4 and row["image"].size == (24, 16) and row["caption"] == "cup 3"
    assert [np.asarray(each)[0, 0, 0] for each in row["reference"]] == [3, 12]
    mask = row["mask"]
    assert mask.mode == "P" and np.asarray(mask)[5, 5] == 1
    assert json.loads(row["nodes"])["mask"][0]["labels"] == ["background", "cup"]
    card = (out / "README.md").read_text()
    assert "| CC0-1.0 | 4 |" in card and "| mask | 4 | `source:pairs`" in card and "- ours (4 items)" in card


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_iterates(graph: Graph, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = export(graph, tmp_path / "out", "webdataset", kinds=["image", "canny", "caption"])
    tars = [str(path) for path in sorted(out.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(tars) == 2 and len(samples) == 4
    assert samples[1]["image.jpg"] == graph.read(1, "image").bytes and samples[1]["caption.txt"] == b"cup 1"
    assert json.loads(samples[1]["json"])["licence"] == "CC0-1.0"


def test_a_folder_is_read_by_imagefolder_and_comes_in_again_with_the_same_bytes(graph: Graph, tmp_path: Path) -> None:
    out = export(graph, tmp_path / "out", "folder")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"image/{n:08d}.jpg" for n in range(4)]
    assert (out / lines[2]["canny_file_name"]).read_bytes() == graph.read(2, "canny").bytes
    nodes = {
        "image": "file_name",
        "canny": "canny_file_name",
        "reference": ["reference_0_file_name", "reference_1_file_name"],
        "caption": "caption",
        "mask": {"of": "mask_file_name", "labels": ["background", "cup"]},
    }
    back = resolve("manifest", path=out / "metadata.jsonl", nodes=nodes)
    complete(build(back, tmp_path / "g", []))
    again = Graph.open(tmp_path / "g")
    assert again.kinds() == graph.kinds()
    second = export(again, tmp_path / "second", "folder")
    for file in sorted(path for path in out.rglob("0*.*") if ".shards" not in path.parts):
        assert (second / file.relative_to(out)).read_bytes() == file.read_bytes(), file


def test_coco_is_loaded_by_pycocotools(annotated: Graph, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    out = export(annotated, tmp_path / "out", "coco")
    files = {path.stem: path for path in (out / "annotations").iterdir()}
    assert sorted(files) == ["captions_caption", "instances_boxes", "person_keypoints_pose", "segments_mask"]
    with contextlib.redirect_stdout(io.StringIO()):
        read = {stem: COCO(str(path)) for stem, path in files.items()}
    (box,) = read["instances_boxes"].loadAnns(read["instances_boxes"].getAnnIds())
    assert box["bbox"] == [2, 2, 6, 10] and read["instances_boxes"].loadCats(box["category_id"])[0]["name"] == "person"
    segments = read["segments_mask"]
    masks = {segments.loadCats(each["category_id"])[0]["name"]: each for each in segments.anns.values()}
    assert masks["car"]["area"] == 64 and masks["person"]["bbox"] == [2, 2, 6, 10]
    (person,) = read["person_keypoints_pose"].anns.values()
    assert person["num_keypoints"] == 4 and person["keypoints"][:3] == [4, 3, 2]
    assert [each["caption"] for each in read["captions_caption"].anns.values()] == ["a car, 0", "a car, 1"]
    with Image.open(next((out / "pose").iterdir())) as drawn:
        assert drawn.size == (24, 16)


def test_run_lengths_are_those_of_pycocotools() -> None:
    import warnings

    from pycocotools import mask as rle

    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    for each in (mask, ~mask, mask & False, mask | True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = rle.decode(rle.frPyObjects(run_lengths(each), 7, 9))
        assert np.array_equal(np.asarray(decoded, bool), each)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_croissant_is_valid_and_names_every_column(graph: Graph, tmp_path: Path) -> None:
    croissant: Any = pytest.importorskip("mlcroissant")
    out = export(graph, tmp_path / "out", "croissant", kinds=["image", "mask", "caption"])
    loaded = croissant.Dataset(jsonld=str(out / "croissant.json"))
    assert loaded.metadata.issues.errors == set()
    fields = {field.name for record in loaded.metadata.record_sets for field in record.fields}
    assert {"image", "mask", "caption", "licence"} <= fields


def test_visualcloze_has_the_json_and_files_of_the_reference_trainer(graph: Graph, tmp_path: Path) -> None:
    out = export(graph, tmp_path / "out", "visualcloze")
    rows = json.loads((out / "data.json").read_text())
    assert (
        len(rows) == 4 and rows[1]["description"]["description_0"] == "cup 1" and rows[1]["quality_assessment"] is None
    )
    assert sorted(rows[1]["condition"]) == ["canny", "mask", "reference", "target"]
    for path in rows[1]["condition"].values():
        assert Path(path).is_absolute()
        with Image.open(path) as opened:
            assert opened.convert("RGB").size == (24, 16)
    assert "image_grid_graph200k" in (out / "train.yaml").read_text()


def test_duckdb_answers_from_the_files_alone(graph: Graph, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    out = export(graph, tmp_path / "out", "datasets", where={"key": {"in": ["1", "3"]}})
    query = f"SELECT caption, octet_length(image.bytes) FROM '{out}/data/*.parquet' ORDER BY key"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == ["cup 1", "cup 3"]


def test_a_stopped_export_goes_on_and_another_one_is_refused(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(graph, tmp_path / "whole", "datasets")
    written, stops, real = list[str](), ["shard-00001"], layouts.Datasets.write

    def write(self: Any, label: str, items: Any) -> list[str]:
        if label in stops:
            raise KeyboardInterrupt
        written.append(label)
        return real(self, label, items)

    monkeypatch.setattr(layouts.Datasets, "write", write)
    with pytest.raises(KeyboardInterrupt):
        export(graph, tmp_path / "out", "datasets")
    stops.clear()
    export(graph, tmp_path / "out", "datasets")
    assert written == ["shard-00000", "shard-00001"]
    for file in sorted((whole / "data").iterdir()):
        assert (tmp_path / "out/data" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(GraphError, match="holds an export with another kinds"):
        export(graph, tmp_path / "out", "datasets", kinds=["image"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(GraphError, match="neither empty nor an export"):
        export(graph, tmp_path / "full", "datasets")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"form": "datsets"}, r"no format 'datsets' \(did you mean 'datasets'\?\); allowed: datasets, webdataset"),
        ({"kinds": ["cany"]}, r"has no kind 'cany' \(did you mean 'canny'\?\)"),
        ({"where": {"key": "nine"}}, "no item to export meets"),
    ],
)
def test_what_cannot_be_exported_is_said(graph: Graph, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        export(graph, tmp_path / "out", **{"form": "folder", **options})
    assert not (tmp_path / "out").exists()


def test_computed_kinds_are_exported_when_they_are_named(graph: Graph, tmp_path: Path) -> None:
    out = export(graph, tmp_path / "out", "datasets", kinds=["image", "gray"])
    (table,) = [pq.read_table(path) for path in sorted((out / "data").iterdir())[:1]]
    picture = Image.open(io.BytesIO(table["gray"][0].as_py()["bytes"])).convert("RGB")
    assert len(set(picture.getpixel((0, 0)))) == 1
