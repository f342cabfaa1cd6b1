"""What a user may ask of a LoRA: own tasks and kinds, any holes, folders of pictures, larger ones, frozen walks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import graphbuild_train
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import document_of, load, load_task, path_set, shipped
from graphbuild.tasks.row_folder import read_rows
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train import cli, sampling
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.export.lora_file import read_diffusers, save_diffusers
from tests.support.training import Ground

OWN = """
kinds:
  saliency: {codec: png8, phrases: [a map of what draws the eye]}
  canny: {phrases: [my own edges]}
paths:
  - {name: look, cells: [saliency, image]}
  - {name: draw, cells: [canny, image], where: {width: {">=": 8}}, weight: 2}
  - {name: place, canvas: [[canny, image], [canny, saliency]], target: image}
  - {name: several, cells: [image], views: [2, 5], token: faceid, layout: views}
"""


@pytest.fixture(scope="module")
def lora(ground: Ground) -> Path:
    trainer = ground.trained("run", steps=1, watch={"checkpoint": 0, "validate": 0, "sample": 0, "sample_steps": 1})
    return trainer.export()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GridTask, int]]:
    """Tasks and seeds that a base was asked for; it answers with flat grey."""
    asked: list[tuple[GridTask, int]] = []

    def sample(self: FluxFill, tasks: Sequence[GridTask], *, seed: int, **_: Any) -> list[list[Image.Image]]:
        asked.extend((task, seed) for task in tasks)
        return [[Image.new("RGB", (32, 32), (90, 90, 90)) for _ in task.holes] for task in tasks]

    monkeypatch.setattr(FluxFill, "sample", sample)
    return asked


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["sample", *map(str, arguments)])


def done(*arguments: object) -> list[Path]:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return [Path(line) for line in result.stdout.split()]


def drawn(folder: Path, **rows: Sequence[str]) -> Path:
    """Rows of pictures of one colour each, named; `r1=["1-a.png"]` is row 1."""
    for number, (row, names) in enumerate(rows.items()):
        (folder / row[1:]).mkdir(parents=True)
        for at, name in enumerate(names):
            Image.new("RGB", (40, 40), (20 * number, 60 * at, 200)).save(folder / row[1:] / name)
    return folder


# ---- a file says what it was trained on --------------------------------------------------------------------------


def test_a_list_survives_as_a_document(tmp_path: Path) -> None:
    """Guards against phrases, conditions or layouts that are lost on the way into a file."""
    (tmp_path / "own.yaml").write_text(OWN)
    for name in (*shipped(), str(tmp_path / "own.yaml")):
        listed = load(name)
        assert path_set(listed.name, json.loads(json.dumps(document_of(listed)))) == listed
    assert load(tmp_path / "own.yaml").paths[1].declared[0].phrases == ("my own edges",)


def test_a_lora_of_an_own_kind_is_sampled_elsewhere(
    lora: Path, tmp_path: Path, asked: list[tuple[GridTask, int]]
) -> None:
    """Guards against a file that is of use only beside the recipe that made it."""
    (tmp_path / "own.yaml").write_text(OWN)
    read, listed = read_diffusers(lora), load(tmp_path / "own.yaml")
    recipe = {**read.recipe, "paths": "/nowhere/own.yaml", "tasks": [{"name": "own", **document_of(listed)}]}
    recipe["tasks"][0]["paths"] = recipe["tasks"][0]["paths"][:2]
    elsewhere = save_diffusers(replace(read, recipe=recipe), tmp_path / "elsewhere")
    rows = drawn(tmp_path / "rows", r1=["1.png", "2.png"], r2=["1.png"])
    done(elsewhere, "--rows", rows, "--kinds", "saliency,image", "--out", tmp_path / "a")
    done(elsewhere, "--rows", rows, "--path", "draw", "--out", tmp_path / "b")
    assert "[IMAGE1] a map of what draws the eye" in asked[0][0].evaluation.text
    assert "[IMAGE1] my own edges" in asked[1][0].evaluation.text
    said = invoke(elsewhere, "--rows", rows, "--path", "lok")
    assert said.exit_code == 2 and "no task 'lok'? The LoRA was trained on look, draw" in said.stderr


# ---- tasks of one's own ------------------------------------------------------------------------------------------


def test_a_task_file_names_phrases_holes_and_words(
    lora: Path, tmp_path: Path, asked: list[tuple[GridTask, int]]
) -> None:
    """Guards against holes in other columns than were asked for: several, and in reverse."""
    (tmp_path / "task.yaml").write_text(
        "kinds: {canny: {phrases: [chalk lines]}}\ncells: [canny, reference:a, reference:b, image]\n"
        "caption: a red bicycle\nholes: [canny, image]\n"
    )
    rows = drawn(tmp_path / "rows", r1=["canny.png", "reference-a.png", "reference-b.png", "image.png"],
                 r2=["2.png", "3.png"])  # fmt: skip
    files = done(lora, tmp_path / "task.yaml", "--rows", rows, "--out", tmp_path / "made")
    ((task, _),) = asked
    assert task.holes == (0, 3) and len(files) == 2 and "chalk lines" in task.evaluation.text
    assert task.evaluation.text.endswith("The last image of the last row depicts: a red bicycle")
    assert (task.cell(-1, 1)[0, 0] == (20, 0, 200)).all() and (task.cells()[1][0] == 0).all()
    few = drawn(tmp_path / "few", r1=["1.png", "2.png"])
    done(lora, "--rows", few, "--kinds", "canny,image", "--holes", "canny", "--count", 2, "--out", tmp_path / "more")
    assert [seed for _, seed in asked[1:]] == [0, 1] and asked[1][0].holes == (0,)
    assert len([file for file in (tmp_path / "more").glob("*.png") if "strip" not in file.name]) == 2


def test_several_folders_are_one_load_and_a_folder_may_be_the_query_alone(
    lora: Path, tmp_path: Path, asked: list[tuple[GridTask, int]]
) -> None:
    """Guards against a model of 24 GB that is loaded for each picture."""
    many = drawn(tmp_path / "many", **{f"r{row}": ["1.png", "2.png"] for row in (1, 2, 10, 9)}, r11=["1.png"])
    alone = drawn(tmp_path, ralone=["canny.png"]) / "alone"
    files = done(lora, "--rows", many, "--rows", alone, "--kinds", "canny,image", "--out", tmp_path / "made")
    assert [len(task.walk.rows) for task, _ in asked] == [5, 1] and len({*files}) == 2
    first = [task.cell(row, 0)[0, 0, 0] for task, _ in asked[:1] for row in range(5)]
    assert first == [0, 20, 60, 40, 80], "rows 1, 2, 9, 10, 11"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"r1": ["1.png"], "r2": ["1.png"]}, "1: no picture for column 2 (image); there is 1.png"),
        ({"r1": ["1.png", "1-b.png"], "r2": ["1.png"]}, "1: two pictures for column 1 (canny): 1-b.png, 1.png"),
        ({"r1": ["canny.png", "x.png"], "r2": ["1.png"]}, "x.png: which column? Begin its name with 1 to 2: 1 canny"),
        ({"r1": ["a.png"], "r2": ["a.png"]}, "1: 1 pictures (a.png); wanted: 2 (canny, image), in the order"),
        ({"r1": ["a.png", "b.png"], "r2": []}, "2: 0 pictures; wanted: 1 (canny), in the order of their names"),
    ],
)
def test_a_file_that_is_missing_or_doubled_is_named(tmp_path: Path, rows: dict[str, list[str]], words: str) -> None:
    folder = drawn(tmp_path / "rows", **rows)
    with pytest.raises(GraphError) as caught:
        read_rows(folder, ["canny", "image"])
    assert words in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cells: [canny, image]\nhole: [image]", "'hole'"),
        ("cells: [canny, imag]", "unknown kind 'imag'"),
        ("caption: nothing", "'cells'"),
    ],
)
def test_a_task_file_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_task(tmp_path / "task.yaml")


# ---- what comes out ----------------------------------------------------------------------------------------------


def test_a_picture_is_enlarged_with_details_of_its_own(lora: Path, tmp_path: Path) -> None:
    """Guards against a plain resize, and a strength without effect; the strip shows every cell with its name."""
    rows = drawn(tmp_path / "rows", r1=["1.png", "2.png"], r2=["1.png"])
    few = ("--rows", rows, "--kinds", "canny,image", "--set", "watch.sample_steps=2")
    sizes, pixels = [], []
    for number, more in enumerate(([], ["--upscale", 64], ["--upscale", 64, "--strength", 1])):
        (file,) = done(lora, *few, *more, "--out", tmp_path / f"made{number}")
        picture = Image.open(file).convert("RGB")
        sizes.append(picture.size)
        pixels.append(np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)).astype(int))
    assert sizes == [(32, 32), (64, 64), (64, 64)]
    assert not np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[1], pixels[2])
    said = json.loads(file.with_name(file.name.replace("-0.png", ".json")).read_text())
    assert said["sampled"] == {"seed": 0, "steps": 2, "guidance": 30.0, "upscale": 64, "strength": 1.0}
    strip = np.asarray(Image.open(file.with_name(file.name.replace("-0.png", "-strip.png"))))
    assert (strip[28:60, 12:44] == (0, 0, 200)).all() and strip.shape[0] > 28 + 2 * 44


def test_a_frozen_list_of_walks_is_answered_as_it_was_drawn(
    ground: Ground, lora: Path, tmp_path: Path, asked: list[tuple[GridTask, int]]
) -> None:
    """Guards against an evaluation of other items, holes or words than the list's; and a list that was changed."""
    config = ground.config()
    drawn_from = PathSampler(Graph.open(ground.graph), config.paths, seed=7, config=config.sampler)
    frozen = drawn_from.frozen(3, start=5)
    frozen.write(file := tmp_path / "walks.jsonl")
    done(lora, "--graph", ground.graph, "--walks", file, "--out", tmp_path / "made")
    wanted = [drawn_from.task(index, 32) for index in (5, 6, 7)]
    assert [replace(task.walk, path=own.walk.path) for (task, _), own in zip(asked, wanted, strict=True)] == [
        task.walk for task in wanted
    ]
    assert [task.evaluation for task, _ in asked] == [task.evaluation for task in wanted]
    file.write_text(file.read_text().replace('"holes":[0]', '"holes":[1]').replace('"index":5', '"index":6'))
    said = invoke(lora, "--graph", ground.graph, "--walks", file)
    assert said.exit_code == 2 and "changed since it was written" in said.stderr


def test_the_same_from_python(lora: Path, tmp_path: Path) -> None:
    """Guards against a command that can do what a program cannot."""
    sampler = graphbuild_train.LoraSampler(lora)
    black, grey = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 128, np.uint8)
    path = sampler.path("canny-to-image")
    made = sampler.make(sampler.from_rows([[black, grey], [black, None]], path, caption="a wall"), seed=3)
    again = sampler.make(sampler.from_rows([[black, grey], [black, None]], path, caption="a wall"), seed=4)
    assert made.pictures[0].size == (32, 32) and made.pictures[0].tobytes() != again.pictures[0].tobytes()
    assert made.strip().width > 2 * 32 and sampling.tasks_in(lora) == sampler.tasks
