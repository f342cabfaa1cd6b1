"""Several graphs sampled together: which one draws is as fixed as what it draws, and no picture is on two sides."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.data import GridTasks, collate
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import DataConfig, HeldOut, SamplerConfig
from graphbuild.tasks.mixture import TaskMixture, open_mixture
from graphbuild.tasks.paths import PathSet, load
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete, write_photos
from tests.support.graphs import same, write_graph

LISTS = {
    "sketches": "paths:\n  - {name: sketch, cells: [canny, image]}\n  - {name: trace, cells: [image, canny]}\n",
    "lines": "kinds:\n  strokes: {codec: png1, phrases: [strokes]}\n"
    "paths:\n  - {name: lines, cells: [lines, image]}\n  - {name: grey, cells: [gray, image], weight: 2}\n"
    "  - {name: drawn, cells: [strokes, image], weight: 0}\n",
}
WEIGHTS = (3.0, 1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two graphs that share photographs 6..11, of one list each."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, numbers, kind in (("sketches", range(12), "canny"), ("lines", range(6, 18), "lsd")):
        complete(build(write_photos(folder / f"{name}-photos", numbers), folder / name, [kind]))
        (folder / f"{name}.yaml").write_text(LISTS[name])
    return folder


def mixture(world: Path, weights: tuple[float, ...] = WEIGHTS, **options: object) -> TaskMixture:
    lists = zip(LISTS, weights, strict=True)
    data = [(Graph.open(world / name), world / f"{name}.yaml", weight) for name, weight in lists]
    return TaskMixture(data, **options)  # type: ignore[arg-type]


def test_a_task_of_a_mixture_is_the_one_its_graph_draws(world: Path) -> None:
    mixed = mixture(world, seed=3)
    alone = {name: PathSampler(Graph.open(world / name), world / f"{name}.yaml", seed=3) for name in LISTS}
    for index, walk in enumerate(mixed.walks(0, 200)):
        part = mixed.part(index)
        assert walk == mixed.walk(index) == alone[part.listed.name].walk(index)
    document = mixed.task(5, 32).document()
    assert document.snapshot == mixed.part(5).graph.digest and document.paths == mixed.part(5).listed.name
    assert mixed.snapshot == "+".join(part.graph.digest for part in mixed.parts)


def test_graphs_are_drawn_by_their_weights_and_by_the_seed_alone(world: Path) -> None:
    mixed = mixture(world, seed=1)
    drawn = Counter(mixed.part(index).listed.name for index in range(4000))
    assert drawn["lines"] == pytest.approx(1000, abs=4 * np.sqrt(750))
    again = mixture(world, seed=1).walks(100, 50)
    assert again == mixed.walks(0, 200)[100:150]
    assert again != mixture(world, seed=2).walks(100, 50)


def test_consecutive_tasks_share_graph_path_and_rows(world: Path) -> None:
    walks = mixture(world, path_repeat=4).walks(0, 80)
    blocks = [walks[at : at + 4] for at in range(0, 80, 4)]
    assert all(len({(walk.path.name, len(walk.rows)) for walk in block}) == 1 for block in blocks)
    assert {block[0].path.name for block in blocks} >= {"sketch", "trace", "grey"}


def pictures(sampler: TaskMixture, count: int = 400) -> set[str]:
    """The photographs of its walks."""
    keys = {part.listed.name: part.graph.items()["key"].to_pylist() for part in sampler.parts}
    walks = sampler.walks(0, count)
    return {keys[sampler.part(index).listed.name][item] for index, walk in enumerate(walks) for item in walk.rows}


def test_a_picture_of_two_graphs_is_on_one_side_of_the_split(world: Path) -> None:
    """The graphs number the photographs differently, and each alone would hold out others."""
    sides = {
        split: pictures(mixture(world, config=SamplerConfig(split=split, validation=0.4, rows=(1,))))
        for split in ("train", "validation")
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert len(sides["train"] | sides["validation"]) == 18
    assert mixture(world, config=SamplerConfig(split="train", validation=0.4)).task(0).document().switches["beside"]


def test_the_first_graph_decides_and_its_own_sides_stay(tmp_path: Path) -> None:
    """Equal bytes, near hashes, and groups of one source link items of different graphs; groups of others do not."""
    first = [{"sha256": f"{n:064x}", "phash": n * 0x0101_0101_0101, "group": f"g{n}", "source": "a"} for n in range(60)]
    moved = [{**first[n], "phash": None, "group": None} for n in reversed(range(20))]
    near = [{"sha256": f"{n + 100:064x}", "phash": n * 0x0101_0101_0101 + 1, "group": None} for n in range(20, 40)]
    grouped = [{"sha256": f"{n + 200:064x}", "group": f"g{n}", "source": "a"} for n in range(40, 50)]
    others = [{"sha256": f"{n + 300:064x}", "group": f"g{n}", "source": "b"} for n in range(50, 60)]
    one = write_graph(tmp_path / "one", first, {"canny": same(60, 1, "image")})
    two = write_graph(tmp_path / "two", [*moved, *near, *grouped, *others], {"canny": same(60, 1, "image")})
    listed = load(_written(tmp_path / "sketch.yaml", LISTS["sketches"]))

    def held(graph: Graph, data: list[tuple[Graph, PathSet, float]]) -> set[int]:
        config = SamplerConfig(split="validation", validation=0.5, rows=(1,))
        (part,) = [part for part in TaskMixture(data, config=config).parts if part.graph is graph]
        return {walk.rows[0] for walk in part.walks(0, 1000)}

    both = [(one, listed, 1.0), (two, listed, 1.0)]
    sides = held(one, both)
    assert sides == held(one, [(one, listed, 1.0)]), "what comes later does not move it"
    assert {n for n in held(two, both) if n < 50} == {n for n in range(50) if (19 - n if n < 20 else n) in sides}
    assert {n for n in held(two, both) if n >= 50} == {n for n in held(two, [(two, listed, 1.0)]) if n >= 50}


def test_what_is_held_out_is_held_out_in_every_list(world: Path) -> None:
    config = SamplerConfig(held_out=(HeldOut(holes="image"), HeldOut(given="strokes")), rows=(1,))
    mixed = mixture(world, config=config, on_missing="drop")
    assert all("image" not in {walk.kinds[hole] for hole in walk.holes} for walk in mixed.walks(0, 300))
    with pytest.raises(ValueError, match="strokez"):
        mixture(world, config=SamplerConfig(held_out=(HeldOut(given="strokez"),)))


def test_what_cannot_be_mixed_is_refused_or_named(world: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: \[3.0, 0.0\]"):
        mixture(world, (3.0, 0.0))
    graph = Graph.open(world / "lines")
    data = [(graph, world / "lines.yaml", 1.0), (graph, world / "sketches.yaml", 1.0)]
    with pytest.raises(GraphError, match="no canny"):
        TaskMixture(data)
    dropped = TaskMixture(data, on_missing="drop")
    assert len(dropped.parts) == 1 and "no canny" in dropped.lacking[0]


def test_loaders_take_a_mixture_and_begin_anywhere(world: Path) -> None:
    mixed = mixture(world, path_repeat=2)
    tasks = GridTasks(mixed, resolution=32, batch=2, stop=24, rank=0, world=1)
    whole = list(DataLoader(tasks, batch_size=2, collate_fn=collate))
    later = GridTasks(pickle.loads(pickle.dumps(mixed)), resolution=32, batch=2, stop=24, rank=0, world=1)
    later.load_state_dict({"next": 10})
    rest = list(DataLoader(later, batch_size=2, num_workers=1, collate_fn=collate))
    assert [batch.index.tolist() for batch in rest] == [batch.index.tolist() for batch in whole[5:]]
    for found, wanted in zip(rest, whole[5:], strict=True):
        assert found.cells.equal(wanted.cells) and found.prompts == wanted.prompts and found.keys == wanted.keys
        assert found.snapshot == mixed.snapshot
    graphs = {mixed.part(index).graph.url for batch in whole for index in batch.index.tolist()}
    assert len(graphs) == 2


def test_from_the_command_line(world: Path, tmp_path: Path) -> None:
    data = [f"{{graph: {world / name}, paths: {world / name}.yaml, weight: 2}}" for name in LISTS]
    options = [option for text in data for option in ("--data", text)]
    out = tmp_path / "grids"
    drawn = CliRunner().invoke(app, ["sample", *options, "--count", "12", "--resolution", "32", "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    lines = [json.loads(line) for line in (out / "walks.jsonl").read_text().splitlines()]
    assert {line["paths"] for line in lines} == set(LISTS) and len(list(out.glob("*.png"))) == 12
    parts = [DataConfig(graph=str(world / name), paths=str(world / f"{name}.yaml"), weight=2) for name in LISTS]
    assert [line["path"] for line in lines] == [walk.path.name for walk in open_mixture(parts).walks(0, 12)]
    for wrong in ([], ["graph", *options]):
        refused = CliRunner().invoke(app, ["sample", *wrong])
        assert refused.exit_code == 2 and "--data" in refused.output


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file
