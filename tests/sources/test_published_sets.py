"""The data sets of the papers: from a miniature of each published layout to grids and a training step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.support.annotators import build, complete
from tests.support.published_sets import COUNT, FILES, SETS, look_at, multiview, photo, saved
from tests.support.sources import put
from tests.support.tiny_networks import save_clip, save_dino
from tests.support.training import QUICK


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
