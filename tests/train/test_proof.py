"""The proof of in-context learning, in a form of seconds: its tasks, its model, and that it runs from end to end."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.trainer import Trainer

BENCH = Path(__file__).parents[1] / "bench" / "bench_proof.py"
SMALL = ("steps=2", "batch=4", "micro_batch=2", "watch.sample_steps=1", "lora.rank=8", "sampler.validation=0.5")
FILL = "visualcloze_fill"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    before, threads = [*sys.path], torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("bench_proof", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    bench.graph_of(folder, 16)
    return folder


@cache
def trained(bench: ModuleType, folder: Path, objective: str) -> Trainer:
    console = Console(file=io.StringIO())
    made = Trainer(bench.recipe(folder, objective, SMALL), folder / "graph", folder / objective, console=console)
    made.fit()
    return made


@pytest.fixture(scope="module")
def trainer(bench: ModuleType, folder: Path) -> Trainer:
    return trained(bench, folder, FILL)


def changes(bench: ModuleType) -> ModuleType:
    return sys.modules[bench.write_scenes.__module__]


def test_tasks_differ_and_one_changes_nothing(bench: ModuleType) -> None:
    tasks, scene = bench.TASKS, changes(bench).scene(5)
    made = {name: change(scene) for name, change in tasks.items()}
    assert len(tasks) == 64 and len({picture.tobytes() for picture in made.values()}) == 64
    assert np.array_equal(made["turn0_012"], scene)
    assert np.array_equal(made["turn1_012"], np.rot90(scene)) and np.array_equal(
        made["turn0m_210"], scene[:, ::-1, ::-1]
    )
    assert len(bench.HELD_OUT) == 12 + 3
    turned = {name for name, change in tasks.items() if np.array_equal(change(scene)[..., 0], np.rot90(scene)[..., 0])}
    assert turned and turned <= {*bench.HELD_OUT}  # no trained task turns so


def test_rows_of_the_opposite_task_look_different(bench: ModuleType) -> None:
    scene = changes(bench).scene(5)
    for name, change in bench.TASKS.items():
        other = bench.opposite(name)
        assert bench.opposite(other) == name != other
        assert not np.array_equal(bench.TASKS[other](scene), change(scene))


def test_light_tells_how_a_picture_was_turned(bench: ModuleType) -> None:
    mean = np.mean([changes(bench).scene(number) for number in range(400)], 0)
    assert mean[:4].mean() > 1.2 * mean[4:].mean() and mean[:, :4].mean() > 1.1 * mean[:, 4:].mean()
    assert [*mean.mean((0, 1)).argsort()] == [2, 1, 0]


def test_no_held_out_task_is_trained_and_no_held_out_picture(bench: ModuleType, trainer: Trainer) -> None:
    drawn = list(trainer.sampler.walks(0, 400))
    assert not {walk.path.name for walk in drawn} & set(bench.HELD_OUT)
    asked = bench.questions(trainer.graphs[0], trainer, 8)
    assert [walk.path.name in bench.HELD_OUT for walk in asked.walks] == [False, True] * 4
    assert not {row for walk in drawn for row in walk.rows} & {row for walk in asked.walks for row in walk.rows}


def test_latents_are_the_colours(bench: ModuleType, trainer: Trainer) -> None:
    vae = sys.modules["pixels"].PixelVae()
    cell = torch.from_numpy(changes(bench).enlarged(changes(bench).scene(3))).permute(2, 0, 1)[None] / 127.5 - 1
    mean = vae.encode(cell).latent_dist.parameters[:, :3]
    assert mean.shape == (1, 3, 8, 8) and torch.allclose(vae.decode(mean)[0], cell)
    said = [trainer.base.words(words) for words in ("turn", "tint")]
    assert torch.equal(said[0]["prompt_embeds"], said[1]["prompt_embeds"])  # words tell nothing


def test_every_walk_is_filled_and_measured_once(bench: ModuleType, trainer: Trainer, tmp_path: Path) -> None:
    asked = bench.questions(trainer.graphs[0], trainer, 2)
    with trainer.finished():
        found = bench.measured(trainer, asked, tmp_path / "errors.json")
        again = bench.measured(trainer, asked, tmp_path / "errors.json")
    assert found == again and set(found) == {"R=1", "R=2", "R=3", *bench.CONTROLS}
    assert all(set(values) == {0, 1} for values in found.values())
    assert json.loads((tmp_path / "errors.json").read_text())["R=3"]["1"] == found["R=3"][1]
    identity = asked.walks[0]
    assert identity.path.name == "turn0_012" and found["copied condition"][0] == 0 < found["R=3"][0]


def test_exchanged_rows_have_each_others_results(bench: ModuleType, trainer: Trainer) -> None:
    config = SamplerConfig(rows=(0.0, 0.0, 1.0), mask="target")
    task = PathSampler(trainer.graphs[0], trainer.lists[0], config=config).task(3, 64)
    exchanged = bench.Exchanged(task.walk, task.drawing, 64)
    items = [[node.item_ix for node in row] for row in exchanged.rows]
    one, other, query = task.walk.rows
    assert items == [[one, other], [other, one], [query, query]]


def test_lines_hold_only_with_their_whole_interval(bench: ModuleType, trainer: Trainer, capsys: Any) -> None:
    asked = bench.questions(trainer.graphs[0], trainer, 40)
    draws = np.random.default_rng(0)
    levels = {"R=1": 1.0, "R=2": 0.5, "R=3": 0.2, "wrong rows": 1.4, "exchanged pairs": 1.0, "copied condition": 1.0,
              "mean picture": 0.9}  # fmt: skip
    errors = {name: {at: level * float(draws.uniform(0.9, 1.1)) for at in range(40)} for name, level in levels.items()}
    held, figures = bench.told(FILL, errors, asked)
    assert held and "FAILS" not in capsys.readouterr().out
    assert figures["seen tasks"]["R=1"][0] == pytest.approx(1.0, abs=0.1)
    noisy = {**errors, "R=2": {at: value + (0.4 if at % 4 < 2 else -0.4) for at, value in errors["R=3"].items()}}
    assert not bench.told(FILL, noisy, asked)[0] and "FAILS: R=3 below R=2" in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["visualcloze_dev", "onediffusion", "onepic", "flux2_klein"])
def test_every_objective_fills_what_its_rows_are_for(bench: ModuleType, folder: Path, objective: str) -> None:
    trainer = trained(bench, folder, objective)
    asked = bench.questions(trainer.graphs[0], trainer, 4)
    with trainer.finished():
        together = bench.filled(trainer, asked, "R=3", asked.walks)
        alone = bench.filled(trainer, asked, "R=3", asked.walks[2:3])
    assert all(made.shape == (64, 64, 3) for made in together)
    assert np.abs(together[2].astype(int) - alone[0]).max() <= 1  # one at a time or all at once
    assert len({made.tobytes() for made in together}) == 4


def test_the_trained_model_is_given_back_its_own_target(
    bench: ModuleType, folder: Path, trainer: Trainer, monkeypatch: Any
) -> None:
    """A model that predicts the truth's velocity makes the truth: the hole is cut out of the right place."""
    asked = bench.questions(trainer.graphs[0], trainer, 2)
    tasks = [asked.task(walk, 2) for walk in asked.walks]
    for objective in ("visualcloze_fill", "visualcloze_dev", "onediffusion", "flux2_klein"):
        base = trained(bench, folder, objective).base
        truths = torch.cat([truth(base, task) for task in tasks])

        def velocity(x: Any, level: Any, batch: Any, truths: Any = truths) -> Any:
            return (x - truths) / level[..., None].clamp(min=1e-6)

        monkeypatch.setattr(base, "predict", velocity)
        made = base.sample(tasks, steps=2, guidance=1.0, seed=0)
        for (picture,), task in zip(made, tasks, strict=True):
            assert np.abs(np.asarray(picture).astype(int) - task.cell(-1, task.holes[0])).max() <= 2, objective


def truth(base: Any, task: Any) -> Any:
    """Latents with the hole's own."""
    from graphbuild.data import at_inference

    grid = at_inference(task)
    cells = grid.cells.clone()
    shown = torch.from_numpy(task.cell(-1, task.holes[0])).permute(2, 0, 1)
    cells[0, -1, task.holes[0]] = shown
    return base.encode(replace(grid, cells=cells), 0).z
