"""The data sets of the papers: from a miniature of each published layout to grids and a training step."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from graphbuild.pipeline import load_pipeline
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import tiny
from graphbuild_train.config import config_from
from graphbuild_train.trainer import Trainer
from tests.sources.test_mapped import put
from tests.support.annotators import build, complete
from tests.support.training import QUICK

COUNT = 6


def photo(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    """A coloured disc on a ramp."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    picture = np.stack([rows * 3, columns * 3, np.full(size, 30 * number % 255)], 2).astype(np.uint8)
    cv2.circle(picture, (size[1] // 2, size[0] // 2), 8 + number, (250, 30 * number % 255, 40), -1)
    return picture


def saved(picture: Any, form: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(sink, form, **options)
    return sink.getvalue()


def disc(number: int) -> np.ndarray[Any, Any]:
    return cv2.circle(np.zeros((48, 64), np.uint8), (32, 24), 8 + number, 255, -1)


def flat(number: int) -> np.ndarray[Any, Any]:
    return cv2.circle(np.full((48, 64, 3), (120, 120, 120), np.uint8), (32, 24), 10 + number, (4, 200, 3), -1)


def graph200k(root: Path) -> None:
    """`save_to_disk`: 31 columns of pictures, JPEG masks and edges included."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    description = {"item": "a disc", "description_0": "on a ramp", "description_1": "again", "category": "shape"}
    rows = []
    for n in range(COUNT):
        photos = ["ref", "target", "normal", "hed", "depth", "openpose", "qwen_2_5_bounding_box", "DepthEdit"]
        styles = product(("InstantStyle", "ReduxStyle"), ("image", "ref"), range(3))
        photos += [f"{family}_{what}_{k}" for family, what, k in styles]
        photos += [f"FillEdit_image_{k}" for k in range(5)]
        row: dict[str, Any] = {name: saved(photo(n + at)) for at, name in enumerate(photos)}
        row |= {name: saved(photo(n).mean(2).astype(np.uint8)) for name in ("hed", "depth")}
        row |= {name: saved(cv2.Canny(disc(n), 100, 200), quality=75) for name in ("canny", "mlsd")}
        row |= {name: saved(flat(n), quality=90) for name in ("uniformer", "sam2_mask", "qwen_2_5_mask")}
        row["foreground"] = saved(disc(n), quality=75)
        if n == 1:
            row["DepthEdit"] = None
        cells = {name: data and {"bytes": data, "path": None} for name, data in row.items()}
        marks = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
        meta = {"name": ["x"] * 5, "description": [f"edit {k}" for k in range(5)]}
        rows.append({**cells, "quality_assessment": marks, "description": description, "collection": "collection_1",
                     "FillEdit_meta": meta})  # fmt: skip
    types = dict.fromkeys(cells, image)
    others = pa.Table.from_pylist([{name: row[name] for name in row if name not in types} for row in rows])
    schema = pa.schema([*types.items(), *others.schema])
    (root / "train").mkdir(parents=True)
    file = pa.OSFile(str(root / "train/data-00000-of-00001.arrow"), "wb")
    with file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema), max_chunksize=4)


def viton_hd(root: Path) -> None:
    palette = [0, 0, 0, 254, 85, 0, 0, 119, 221]
    for n in range(COUNT):
        parse = Image.fromarray((disc(n) // 255).astype(np.uint8)).convert("L")
        parse.putpalette(palette)
        put(root, {f"image/{n:05d}_00.jpg": saved(photo(n)), f"cloth/{n:05d}_00.jpg": saved(photo(n + 3)),
                   f"cloth-mask/{n:05d}_00.jpg": saved(disc(n)), f"agnostic-v3.2/{n:05d}_00.jpg": saved(photo(n + 1)),
                   f"image-parse-v3/{n:05d}_00.png": saved(parse, "PNG"),
                   f"openpose_img/{n:05d}_00_rendered.png": saved(photo(n + 2), "PNG")})  # fmt: skip


def edits(root: Path, columns: Callable[[int], Mapping[str, Any]]) -> None:
    root.mkdir()
    rows = [columns(n) for n in range(COUNT)]
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), root / "train-00000-of-00001.parquet")


def magicbrush(root: Path) -> None:
    edits(root, lambda n: {
        "img_id": f"{n}", "turn_index": 1, "source_img": {"bytes": saved(photo(n)), "path": None},
        "mask_img": {"bytes": saved(np.dstack([photo(n), 255 - disc(n)]), "PNG"), "path": None},
        "target_img": {"bytes": saved(photo(n + 2), "PNG"), "path": None}, "instruction": f"make the disc {n} red",
    })  # fmt: skip


def omniedit(root: Path) -> None:
    edits(root, lambda n: {
        "omni_edit_id": f"task_{n}", "task": ("addition", "removal")[n % 2], "o_score": 9.0,
        "src_img": {"bytes": saved(photo(n)), "path": None}, "edited_img": {"bytes": saved(photo(n + 1)), "path": None},
        "edited_prompt_list": [f"add a disc {n}", f"put a disc {n} in"],
    })  # fmt: skip


def dreambooth(root: Path) -> None:
    put(root, {f"{subject}/{view:02d}.jpg": saved(photo(view + at * 7))
               for at, subject in enumerate(("dog", "clock", "vase")) for view in range(4)})  # fmt: skip


def multiview(root: Path) -> None:
    for at, sequence in enumerate(("110_1", "110_2", "245_7")):
        for view in range(4):
            name = f"apple/{sequence}/{{}}/frame{view:06d}.{{}}"
            put(root, {name.format("images", "jpg"): saved(photo(view + at * 7)),
                       name.format("masks", "png"): saved(disc(view), "PNG")})  # fmt: skip


def coco(root: Path) -> None:
    import json

    people = [40, 10, 2] + [0, 0, 0] * 4 + [20, 20, 2, 44, 20, 2] + [0, 0, 0] * 10
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 64, "height": 48} for n in range(COUNT)]
    box = {"category_id": 1, "bbox": [10, 10, 30, 20], "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]], "iscrowd": 0}
    objects = [{**box, "id": n, "image_id": n, "keypoints": people} for n in range(COUNT)]
    captions = [{"id": n * 9 + k, "image_id": n, "caption": f"a disc, {k}"} for n in range(COUNT) for k in range(5)]
    for name, listed in {"person_keypoints": objects, "captions": captions}.items():
        said = {"images": images, "annotations": listed, "categories": [{"id": 1, "name": "person"}]}
        put(root, {f"annotations/{name}_train2017.json": json.dumps(said).encode()})
    put(root, {f"train2017/{n:012d}.jpg": saved(photo(n)) for n in range(COUNT)})


SETS: Mapping[str, Callable[[Path], None]] = {
    "graph200k": graph200k, "viton_hd": viton_hd, "magicbrush": magicbrush, "omniedit": omniedit,
    "dreambooth": dreambooth, "multiview": multiview, "coco": coco,
}  # fmt: skip
LISTS = {"multiview": "dreambooth"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "fill")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graph]:
    """The graph of a set's miniature, built once."""
    root, made = tmp_path_factory.mktemp("sets"), dict[str, Graph]()

    def graph(name: str) -> Graph:
        if name not in made:
            SETS[name](root / f"{name}-data")
            pipeline = load_pipeline(name, path=str(root / f"{name}-data"))
            complete(build(pipeline.source, root / name, pipeline.annotators))
            made[name] = Graph.open(root / name)
        return made[name]

    return graph


@pytest.mark.parametrize("name", SETS)
def test_from_the_published_layout_to_a_training_step(
    name: str, graphs: Callable[[str], Graph], model: Path, tmp_path: Path
) -> None:
    graph, paths = graphs(name), LISTS.get(name, name)
    assert verify(graph.url, "full").problems == []
    statuses = {(row["kind"], row["status"]) for row in graph.edges().to_pylist()}
    assert not [kind for kind, status in statuses if status == "failed"]
    sampler = PathSampler(graph, paths=paths, seed=1)
    assert len(sampler.paths) == len(sampler.listed.paths), "every task of its list is served"
    for index in range(3):
        task = sampler.task(index, resolution=32)
        assert task.image().size > (32, 32) and task.prompt is not None
    changes = {"steps": 1, "batch": 2, "model": str(model), "paths": paths, "sampler": {"rows": [0.5, 0.5]}}
    trainer = Trainer(
        config_from({**QUICK, **changes}), graph.url, tmp_path / "lora", console=Console(file=io.StringIO())
    )
    trainer.fit()
    assert (tmp_path / "lora").is_dir()


def test_graph200k_keeps_styles_with_their_references_and_cleans_its_jpegs(graphs: Callable[[str], Graph]) -> None:
    graph = graphs("graph200k")
    assert graph.kinds()["style_reference"] == 6 * COUNT and graph.kinds()["edit_local"] == 5 * COUNT
    assert graph.kinds()["edit_global"] == COUNT - 1
    assert set(np.unique(graph.read(0, "canny").values())) == {0, 255}
    assert len(graph.read(2, "segments").attrs["palette"]) == 2
    assert graph.read(3, "caption").text == "a disc on a ramp" and graph.read(0, "edit_text", 3).text == "edit 3"
    edge = graph.read(0, "style_semantic", 1).edge
    assert [(parent["kind"], parent["variant"]) for parent in edge["parents"]] == [("style_reference", 4)]
    sampler = PathSampler(graph, paths="graph200k", seed=0)
    drawn = set()
    for index in range(400):
        walk = sampler.walk(index)
        for variants in walk.variants:
            found = dict(zip(walk.kinds, variants, strict=True))
            if "style_reference" in found:
                (kind,) = found.keys() & {"style_content", "style_semantic"}
                drawn.add((kind, found[kind], found["style_reference"]))
    first = {"style_content": 0, "style_semantic": 3}
    assert drawn == {(kind, n, n + first[kind]) for kind in first for n in range(3)}


def test_what_omniedit_holds_out_is_never_drawn(graphs: Callable[[str], Graph]) -> None:
    sampler = PathSampler(graphs("omniedit"), paths="omniedit", seed=0)
    assert {sampler.walk(index).path.name for index in range(20)} == {"add", "remove"}
