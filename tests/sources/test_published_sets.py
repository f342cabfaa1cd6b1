"""The data sets of the papers: from a miniature of each published layout to grids and a training step."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from graphbuild.images.cameras import plucker
from graphbuild.pipeline import load_pipeline
from graphbuild.sources import resolve
from graphbuild.store.export.run import export
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train import cli_evaluate
from graphbuild_train.bases import tiny
from graphbuild_train.config import config_from
from graphbuild_train.trainer import Trainer
from tests.sources.test_mapped import put
from tests.support.annotators import build, complete
from tests.support.tiny_networks import save_clip, save_dino
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


def look_at(angle: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """PyTorch3D's R and T of a camera two units from the origin, which it looks at."""
    forward = -np.array([np.sin(angle), 0.2, np.cos(angle)])
    forward /= np.linalg.norm(forward)
    left = np.cross([0.0, 1.0, 0.0], forward)
    left /= np.linalg.norm(left)
    rotation = np.stack([left, np.cross(forward, left), forward], axis=1)
    return rotation, -rotation.T @ (-2 * forward)


def multiview(root: Path) -> None:
    frames = []
    for at, sequence in enumerate(("110_1", "110_2", "245_7")):
        for view in range(4):
            name = f"apple/{sequence}/{{}}/frame{view:06d}.{{}}"
            put(root, {name.format("images", "jpg"): saved(photo(view + at * 7)),
                       name.format("masks", "png"): saved(disc(view), "PNG")})  # fmt: skip
            rotation, shift = look_at(0.4 * view)
            frames.append({
                "sequence_name": sequence, "frame_number": view,
                "image": {"path": name.format("images", "jpg"), "size": [48, 64]},
                "mask": {"path": name.format("masks", "png"), "mass": 200.0},
                "viewpoint": {"R": rotation.tolist(), "T": shift.tolist(), "focal_length": [2.0, 2.5],
                              "principal_point": [0.0, 0.0], "intrinsics_format": "ndc_norm_image_bounds"},
            })  # fmt: skip
    put(root, {"apple/frame_annotations.jgz": gzip.compress(json.dumps(frames).encode())})


def id_sets(root: Path) -> None:
    put(root, {f"p{at}/{view}.jpg": saved(photo(view + at * 7)) for at in range(3) for view in range(2 + at)})
    put(root, {"p0/0.txt": b"a person on a ramp", "p2/1.txt": b"a person again"})


def photodoodle(root: Path) -> None:
    lines = [{"source": f"{n}_a.png", "target": f"{n}_b.jpg", "text": f"add a halo to disc {n} by sksmagiceffects"}
             for n in range(COUNT)]  # fmt: skip
    put(root, {f"{n}_a.png": saved(photo(n), "PNG") for n in range(COUNT)})
    put(root, {f"{n}_b.jpg": saved(photo(n + 3)) for n in range(COUNT)})
    put(root, {"meta.jsonl": "\n".join(map(json.dumps, lines)).encode()})


def hypersim(root: Path) -> None:
    distance = np.where(disc(5) > 0, 1500, 6000).astype(np.uint16)
    distance[:4] = 0
    for scene, frame in product(("ai_001_001", "ai_001_002", "ai_003_010"), range(2)):
        name = f"{scene}/images/scene_cam_00_{{}}/frame.{frame:04d}.{{}}"
        put(root, {name.format("final_preview", "tonemap.jpg"): saved(photo(frame + 3 * int(scene[-1]))),
                   name.format("geometry_png", "depth_meters.png"): saved(distance, "PNG")})  # fmt: skip


def dreambench(root: Path) -> None:
    """Three subjects before two prompts each."""
    lines = ["id,reference,view,subject,prompt"]
    for at, subject in enumerate(("dog", "clock", "vase")):
        put(root, {f"{subject}/{view:02d}.jpg": saved(photo(view + at * 7)) for view in range(2)})
        lines += [f"{subject}-{n},{subject}/00.jpg,{subject}/01.jpg,{subject},a {subject} {where}"
                  for n, where in enumerate(("in the snow", "on a beach"))]  # fmt: skip
    put(root, {"prompts.csv": "\n".join(lines).encode()})


def nyu_depth(root: Path) -> None:
    distance = np.where(disc(5) > 0, 1500, 6000).astype(np.uint16)
    for (at, scene), frame in product(enumerate(("bath_0", "bed_0", "study_0")), range(2)):
        put(root, {f"{scene}/rgb_{frame:05d}.jpg": saved(photo(frame + 7 * at)),
                   f"{scene}/sync_depth_{frame:05d}.png": saved(distance, "PNG")})  # fmt: skip


def coco(root: Path) -> None:
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
    "dreambooth": dreambooth, "multiview": multiview, "coco": coco, "id_sets": id_sets, "photodoodle": photodoodle,
    "hypersim": hypersim, "dreambench": dreambench, "nyu_depth": nyu_depth,
}  # fmt: skip
FILES = {"photodoodle": "meta.jsonl", "dreambench": "prompts.csv"}
"""What of a set is named, where it is not the folder."""


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
            pipeline = load_pipeline(name, path=str(root / f"{name}-data" / FILES.get(name, "")))
            complete(build(pipeline.source, root / name, pipeline.annotators))
            made[name] = Graph.open(root / name)
        return made[name]

    return graph


@pytest.mark.parametrize("name", SETS)
def test_from_the_published_layout_to_a_training_step(
    name: str, graphs: Callable[[str], Graph], model: Path, tmp_path: Path
) -> None:
    graph = graphs(name)
    assert verify(graph.url, "full").problems == []
    statuses = {(row["kind"], row["status"]) for row in graph.edges().to_pylist()}
    assert not [kind for kind, status in statuses if status == "failed"]
    sampler = PathSampler(graph, paths=name, seed=1)
    assert len(sampler.paths) == len(sampler.listed.paths), "every task of its list is served"
    for index in range(3):
        task = sampler.task(index, resolution=32)
        assert task.image().size > (32, 32) and task.prompt is not None
    changes = {"steps": 1, "batch": 2, "model": str(model), "paths": name, "sampler": {"rows": [0.5, 0.5]}}
    trainer = Trainer(
        config_from({**QUICK, **changes}), graph.url, tmp_path / "lora", console=Console(file=io.StringIO())
    )
    trainer.fit()
    assert (tmp_path / "lora").is_dir()


@pytest.mark.parametrize(
    ("name", "metrics", "tables"),
    [
        ("dreambench", "dino,clip_i,clip_t", {"subject": {"dino", "clip_i", "clip_t"}}),
        ("nyu_depth", "rmse,ssim", {"estimation": {"rmse"}}),
        ("id_sets", "psnr,clip_score", {"generation": {"psnr"}}),
        ("multiview", "psnr", {"generation": {"psnr"}}),
        ("magicbrush", "psnr,clip_score", {"generation": {"psnr", "clip_score"}}),
    ],
)
def test_benchmarks_are_judged_by_their_metrics(
    name: str, metrics: str, tables: Mapping[str, set[str]], graphs: Callable[[str], Graph], tmp_path: Path
) -> None:
    """From a benchmark's layout to its table, with the baseline that needs no model."""
    saved = {"clip": save_clip, "dino": save_dino} if "clip" in metrics else {}
    weights = [f"--weights={network}={save(tmp_path / network)}" for network, save in saved.items()]
    sets = [f"--set={said}" for said in (f"paths={name}", "sampler.split=null", "resolution=32")]
    command = ["evaluate", "--graph", graphs(name).url, "--baseline", "mean", "--metrics", metrics, "--count", 2,
               "--context", 1, "--out", tmp_path / "out", *sets, *weights]  # fmt: skip
    done = CliRunner().invoke(cli_evaluate.app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())["figures"]
    assert {figure["table"] for figure in found} >= set(tables)
    for table, wanted in tables.items():
        assert {figure["metric"] for figure in found if figure["table"] == table} == wanted


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


def test_rays_go_through_the_pixels_of_their_cameras(graphs: Callable[[str], Graph]) -> None:
    """Every camera looks at the origin: the ray of its middle passes there, and rays to its right turn right."""
    graph = graphs("multiview")
    for item in range(4):
        camera = graph.read(item, "camera").values()
        assert camera["focal"] == [64.0, 60.0] and camera["centre"] == [32.0, 24.0]
        rays = plucker(camera, 49, 65)
        moment, direction = rays[24, 32, :3], rays[24, 32, 3:]
        position = np.array(camera["pose"])[:, 3]
        assert np.linalg.norm(position) <= 1.0001
        np.testing.assert_allclose(np.cross(position, direction), moment, atol=1e-5)
        np.testing.assert_allclose((rays[..., :3] * rays[..., 3:]).sum(-1), 0, atol=1e-5)
        right, down = np.array(camera["pose"])[:, 0], np.array(camera["pose"])[:, 1]
        assert (rays[24, :, 3:] @ right)[[0, -1]].tolist() == pytest.approx([-0.4417, 0.4417], abs=1e-3)
        assert (rays[:, 32, 3:] @ down)[0] < 0 < (rays[:, 32, 3:] @ down)[-1] and down[1] < 0, "y is up in the scene"
        shown = graph.read(item, "ray_directions").array()
        assert shown.shape == (48, 64, 3)
        expected = np.round(127.5 + 127.5 * plucker(camera, 48, 64)[..., 3:])
        assert np.abs(shown.astype(int) - expected).max() <= 1
    centres = np.array([graph.read(item, "camera").values()["pose"] for item in range(4)])[:, :, 3]
    axes = np.array([graph.read(item, "camera").values()["pose"] for item in range(4)])[:, :, 2]
    planes = [np.eye(3) - np.outer(axis, axis) for axis in axes]
    offsets = [plane @ centre for plane, centre in zip(planes, centres, strict=True)]
    nearest = np.linalg.lstsq(np.concatenate(planes), np.concatenate(offsets), rcond=None)[0]  # where all of them look
    distances = np.linalg.norm(centres - nearest, axis=1)
    np.testing.assert_allclose(distances, distances[0], rtol=1e-4)


def test_a_scene_of_nerfstudio_has_the_same_cameras(tmp_path: Path) -> None:
    """The same four cameras as OpenGL matrices in a transforms.json."""
    frames = []
    for view in range(4):
        rotation, shift = look_at(0.4 * view)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation @ np.diag([-1.0, 1.0, -1.0]), -rotation @ shift
        frames.append({"file_path": f"images/{view}.jpg", "transform_matrix": matrix.tolist()})
        put(tmp_path, {f"s/images_4/{view}.jpg": saved(photo(view))})
    lens = {"w": 256, "h": 192, "fl_x": 256.0, "fl_y": 240.0, "cx": 128.0, "cy": 96.0}
    put(tmp_path, {"s/transforms.json": json.dumps({**lens, "frames": frames}).encode()})
    multiview(tmp_path / "co3d")
    theirs = resolve("scenes", path=str(tmp_path / "co3d"))
    ours = resolve("scenes", path=str(tmp_path), images="images_4")
    keys = [[entry.key for entry in source.entries()][:4] for source in (theirs, ours)]
    for one, other in zip(theirs.read(keys[0]), ours.read([f"s/images_4/{n}.jpg" for n in range(4)]), strict=True):
        first, second = (item.nodes["camera"] for item in (one, other))
        assert second["width"] == 64 and other.group == "s"  # type: ignore[index]
        for name in ("focal", "centre", "pose"):
            np.testing.assert_allclose(first[name], second[name], atol=1e-5)  # type: ignore[index]


def test_distances_become_depth_near_is_bright(graphs: Callable[[str], Graph]) -> None:
    node = graphs("hypersim").read(0, "depth")
    assert node.values()[24, 32] == 255 and node.values()[40, 5] == node.values()[1, 1] == 0
    assert (node.attrs["nearest"], node.attrs["farthest"]) == (1500, 6000)


def test_sets_of_one_person_have_two_to_five_views(graphs: Callable[[str], Graph]) -> None:
    graph = graphs("id_sets")
    groups = dict(zip(*(graph.items()[name].to_pylist() for name in ("item_ix", "group")), strict=True))
    sampler = PathSampler(graph, paths="id_sets", seed=0)
    walks = [sampler.walk(index) for index in range(60)]
    assert {len(walk.rows) for walk in walks} == {2, 3, 4}, "the largest set here has four pictures"
    assert all(len({groups[item] for item in walk.rows}) == 1 for walk in walks)


# ---- and back out: what the reference trainer of VisualCloze reads --------------------------------------------------


class ReferenceRows:
    """The rows of an export as the reference trainer's data class takes them, written from its documented rules: the
    files of `META`, which rows serve a path, and the pictures and words of a row."""

    plain = frozenset({"target", "mask", "bbox", "canny", "depth", "hed", "normal", "openpose", "mlsd", "sam2_mask",
                       "uniformer", "DepthEdit", "FillEdit", "ReduxStyle", "InstantStyle"})  # fmt: skip

    def __init__(self, config: Path) -> None:
        (meta,) = yaml.safe_load(config.read_text())["META"]
        assert meta["type"] == "image_grid_graph200k"
        self.rows = json.loads(Path(meta["path"]).read_text())

    def serves(self, row: Mapping[str, Any], path: list[str]) -> bool:
        """Degradations are always there; a reference has to be rated as showing the same thing."""
        have, marks = row["condition"], row["quality_assessment"]
        for node in path:
            if node in self.plain and node not in have:
                return False
            if node in ("foreground", "background") and "foreground" not in have:
                return False
            if node == "reference" and (marks is None or marks["objectConsistency"] < 3):
                return False
        return True

    def pictures(self, row: Mapping[str, Any], node: str) -> list[np.ndarray[Any, Any]]:
        """A style is two pictures; cut-outs are the target times a mask of two levels; an edit is one of several."""
        have = row["condition"]
        if node in ("InstantStyle", "ReduxStyle"):
            styles = have[node]
            assert len(styles["style_path"]) == len(styles["image_path"]) == 3
            return [self.opened(styles["style_path"][1]), self.opened(styles["image_path"][1])]
        if node in ("foreground", "background"):
            white = self.opened(have["foreground"], "L") / 255 > 0.5
            return [self.opened(have["target"]) * (white if node == "foreground" else ~white)[..., None]]
        if node == "FillEdit":
            assert len(have[node]["image_path"]) == 5
            return [self.opened(have[node]["image_path"][4])]
        return [self.opened(have[node if node in self.plain | {"reference"} else "target"])]

    @staticmethod
    def opened(path: str, mode: str = "RGB") -> np.ndarray[Any, Any]:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))


def test_the_reference_trainer_reads_every_path_of_an_export(
    graphs: Callable[[str], Graph], tmp_path: Path, spec_file: Callable[[str], Path]
) -> None:
    graph = graphs("graph200k")
    reader = ReferenceRows(export(graph, tmp_path / "out", "visualcloze") / "train.yaml")
    assert len(reader.rows) == COUNT
    types = yaml.safe_load(spec_file("graph200k_tasks.yaml").read_text())["train_tasks"]
    paths = [entry["path"] for each in types for entry in each["paths"]] + [["bbox", "target"]]
    assert len(paths) == 130
    for path in paths:
        served = [row for row in reader.rows if reader.serves(row, path)]
        assert len(served) == COUNT - ("DepthEdit" in path), path
        shapes = {picture.shape for node in path for picture in reader.pictures(served[0], node)}
        assert shapes == {(48, 64, 3)}, path
    row = reader.rows[0]
    same = {"canny": ("canny", 0), "InstantStyle": ("style_content", 1), "ReduxStyle": ("style_semantic", 1),
            "FillEdit": ("edit_local", 4), "foreground": ("foreground", 0), "bbox": ("boxes", 0)}  # fmt: skip
    for node, (kind, variant) in same.items():
        assert np.array_equal(reader.pictures(row, node)[-1], graph.read(0, kind, variant).array()), node
    references = [reader.pictures(row, node)[0] for node in ("InstantStyle", "ReduxStyle")]
    stored = [graph.read(0, "style_reference", variant).array() for variant in (1, 4)]
    assert all(map(np.array_equal, references, stored))
    assert f"{row['description']['item']} {row['description']['description_0']}" == graph.read(0, "caption").text
