"""The command line of the trainer: what a user types, from a graph to a picture."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VisualClozePipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from graphbuild.store.graph import Graph
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.visualcloze import generate
from graphbuild_train import cli, sampling, trackers
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.export.lora_file import read_diffusers, save_diffusers
from graphbuild_train.recipes import configured
from tests.support.hub import hub
from tests.support.training import Ground, metrics, recorded

WEIGHTS = "pytorch_lora_weights.safetensors"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def run(ground: Ground, *arguments: object) -> Result:
    return done("run", "tiny", "--graph", ground.graph, *arguments)


def refused(result: Result, words: str, code: int = 2) -> None:
    """One line, no traceback."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("graphbuild-train: ") and words in line, line


@pytest.fixture(scope="module")
def out(ground: Ground) -> Path:
    """The shipped recipe `tiny`, stopped after two steps and gone on with to the fourth."""
    folder = ground.folder / "run"
    larger = ("--set", "optimiser.learning_rate=0.05", "--set", "watch={tasks: 1, samples: 1, sample_steps: 1}")
    run(ground, "--out", folder, "--steps", 2, *larger)
    again = run(ground, "--out", folder, "--steps", 4, *larger)
    assert again.stdout.split() == [str(folder / WEIGHTS)]
    assert "resuming after step 2" in again.stderr and "validation loss" in again.stderr
    return folder


# ---- from a graph to a picture --------------------------------------------------------------------------------------


def test_the_tiny_recipe_goes_from_a_graph_to_a_lora_that_a_fresh_pipeline_loads(out: Path) -> None:
    """Guards against the first thing that anybody tries."""
    assert recorded(out, "step") == [1, 2, 3, 4]
    assert {"README.md", WEIGHTS, "metrics.jsonl", "checkpoints", "samples", "tiny-model"} <= {
        file.name for file in out.iterdir()
    }
    pipelines: Any = VisualClozePipeline
    pipe = pipelines.from_pretrained(out / "tiny-model", resolution=32)
    pipe.set_progress_bar_config(disable=True)
    rows = [[Image.effect_noise((64, 64), 50).convert("RGB")] * 2, [Image.new("RGB", (64, 64), "red"), None]]
    task = {"task_prompt": "edges to picture", "content_prompt": None, "image": rows}

    def picture() -> bytes:
        draws = torch.Generator().manual_seed(0)
        (made,) = generate(pipe, task, generator=draws, num_inference_steps=2, upsampling_strength=0.0)
        return made.tobytes()

    without = picture()
    assert picture() == without
    pipe.load_lora_weights(out, weight_name=WEIGHTS)
    assert picture() != without


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's library
def test_a_lora_is_pushed_with_its_card_and_nothing_else(
    out: Path, ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against checkpoints and photographs on the Hub, and against a login that is missed after training."""
    larger = ("--set", "optimiser.learning_rate=0.05", "--set", "watch={tasks: 1, samples: 1, sample_steps: 1}")
    with hub(monkeypatch) as server:
        again = run(ground, "--out", out, "--steps", 4, *larger, "--push", "lab/grids")
        assert f"pushed: {server.url}/lab/grids" in again.stderr and server.private == ["models/lab/grids"]
        files = server.repositories["models/lab/grids"]
        assert files == {name: (out / name).read_bytes() for name in (WEIGHTS, "README.md")}
        refused = invoke("run", "tiny", "--graph", ground.graph, "--out", tmp_path / "o", "--push", "other/grids")
        assert refused.exit_code == 2 and "you are me on the Hub" in refused.stderr and not (tmp_path / "o").exists()


def test_a_logger_that_is_not_installed_is_named_before_the_run(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a model that is loaded for nothing."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    options = ("--out", tmp_path / "o", "--set", "watch.loggers=[tensorboard, wandb]")
    refused = invoke("run", "tiny", "--graph", ground.graph, *options)
    assert refused.exit_code == 2 and "watch.loggers: 'wandb' is not installed: pip install wandb" in refused.stderr


def test_libraries_do_not_drown_what_a_run_says(
    ground: Ground, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against pages about CLIP's 77 tokens and bars of every file that is loaded."""
    result = run(ground, "--out", tmp_path / "o", "--steps", 1, "--set", "watch.samples=1")
    lines = [line for line in result.stderr.splitlines() if line]
    assert "it/s" not in "".join(capfd.readouterr()) and "truncated" not in result.output
    assert len(lines) < 12 and lines[0].startswith("flux_fill ") and lines[1].startswith("LoRA: 15 layers")


def test_a_dry_run_says_what_it_takes_and_trains_nothing(ground: Ground, tmp_path: Path) -> None:
    """Guards against a question that costs a night."""
    result = run(ground, "--out", tmp_path / "o", "--dry-run")
    assert "largest pass, 2 x 4 cells: memory" in result.stderr and "conditional generation" in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_forecast_says_what_fits(ground: Ground, tmp_path: Path) -> None:
    """Guards against a card that is rented to find out."""
    model = tmp_path / "configs"
    shutil.copytree(ground.model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    said = done("forecast", "tiny", "--model", model, "--card", 24).stdout
    assert "largest pass: 2 x 2 x 2 cells of 64 px" in said and "fits 24 GB" in said
    assert "smallest card with checkpointing: 0: 16 GB" in said and "cached VAE posteriors: " in said
    refused(invoke("forecast", "tiny", "--card", 12), "card: 12; allowed: 16, 24, 40, 80, 141")


def test_a_first_argument_that_is_a_file_means_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the short form that the documentation shows."""
    monkeypatch.setattr(sys, "argv", ["graphbuild-train", "mine.yaml", "--graph", "g"])
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert sys.argv[1:] == ["run", "mine.yaml", "--graph", "g"]


def test_validate_prints_the_newest_checkpoint_s_losses(ground: Ground, out: Path) -> None:
    """Guards against a number that does not belong to the weights on the disk."""
    rates = ("--set", "optimiser.learning_rate=0.05", "--set", "watch.tasks=1")
    result = done("validate", "tiny", "--graph", ground.graph, "--out", out, *rates)
    told = json.loads(result.stdout)
    last = [line for line in metrics(out) if "validation" in line][-1]
    assert told == {"step": 4, **last["validation"]} and len(told["by_level"]) == 8


def test_a_lora_is_exported_for_comfyui(out: Path, tmp_path: Path) -> None:
    """Guards against a form that the command line cannot reach."""
    file = tmp_path / "new" / "comfy.safetensors"
    assert done("export", out, "--format", "kohya", "--out", file).stdout.strip() == str(file)
    assert all(name.startswith("lora_unet_") for name in load_file(file))
    again = done("export", out / WEIGHTS, "--out", tmp_path / "again").stdout.strip()
    assert load_file(again).keys() == load_file(out / WEIGHTS).keys()


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path, photos: Path) -> Path:
    """Two rows of one's own pictures, the second without its last; names are in the order of the columns."""
    for row, names in (("1", ("a", "b")), ("2", ("a",))):  # the two rows begin with the same picture
        (tmp_path / "rows" / row).mkdir(parents=True)
        for number, name in enumerate(names):
            shutil.copy(photos / f"p0{2 * number}.jpg", tmp_path / "rows" / row / f"{name}.jpg")
    return tmp_path / "rows"


def test_a_lora_makes_the_last_picture_of_own_rows(out: Path, rows: Path, tmp_path: Path) -> None:
    """Guards against a LoRA that can be used with the pictures of a graph only."""
    few = ("--set", "watch.sample_steps=2")
    options = ("--rows", rows, "--kinds", "canny,image", "--out", tmp_path / "made", *few)
    plain = done("sample", out, *options).stdout.split()
    assert len(plain) == 1
    with Image.open(plain[0]) as picture:
        assert picture.size[0] >= 64
        first = picture.tobytes()
    (told,) = done("sample", out, *options, "--caption", "a red bicycle").stdout.split()
    with Image.open(told) as picture:
        assert picture.tobytes() != first


def test_own_rows_are_shown_as_they_are(
    out: Path, rows: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against columns that are shuffled, rows that change places, and words that get lost."""
    asked: list[Any] = []

    def sample(self: FluxFill, tasks: Sequence[GridTask], **_: Any) -> list[list[Any]]:
        asked.extend((task.holes, task.pipeline_kwargs()) for task in tasks)  # before they are let go
        return [[Image.new("RGB", (64, 64)) for _ in task.holes] for task in tasks]

    monkeypatch.setattr(FluxFill, "sample", sample)
    done("sample", out, "--rows", rows, "--kinds", "canny,image", "--caption", "a red bicycle", "--out", tmp_path)
    ((holes, said),) = asked
    first, second = (np.array(Image.open(photos / f"p0{number}.jpg").convert("RGB")) for number in (0, 2))
    shown = [[None if cell is None else np.array(cell) for cell in row] for row in said["image"]]
    assert shown[1][1] is None and holes == (1,)
    assert all(cell is not None and wanted is not None and same_centre(cell, wanted) for cell, wanted in
               ((shown[0][0], first), (shown[0][1], second), (shown[1][0], first)))  # fmt: skip
    assert "a red bicycle" in said["content_prompt"]


def same_centre(cell: Any, picture: Any) -> bool:
    """Whether a cell is the centre of a picture."""
    (height, width), (high, wide) = cell.shape[:2], picture.shape[:2]
    top, left = (high - height) // 2, (wide - width) // 2
    return bool((cell == picture[top : top + height, left : left + width]).all())


def test_a_lora_answers_tasks_of_a_graph(ground: Ground, out: Path, tmp_path: Path) -> None:
    """Guards against a file whose own recipe cannot be read back."""
    few = ("--set", "watch.sample_steps=1", "--out", tmp_path / "made")
    made = done("sample", out / WEIGHTS, "--graph", ground.graph, "--count", 2, *few).stdout.split()
    assert [Path(file).name.split("-")[0] for file in made] == ["0000000", "0000001"]


def test_tasks_of_a_graph_are_those_of_held_out_items_with_truth_and_words(
    ground: Ground, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a LoRA that is judged by what it was trained on, and pictures that nobody can score."""
    black = Image.new("RGB", (64, 64))
    monkeypatch.setattr(FluxFill, "sample", lambda self, tasks, **_: [[black] * len(task.holes) for task in tasks])
    made = done("sample", out, "--graph", ground.graph, "--count", 12, "--out", tmp_path).stdout.split()
    config = configured(sampling.recipe_in(out), [])
    trained = PathSampler(Graph.open(ground.graph), config.paths, config=config.sampler)
    held = PathSampler(trained.graph, config.paths, config=replace(config.sampler, split="validation"))
    pool = {item for walk in trained.walks(0, 200) for item in walk.rows}
    said = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    queried = {item for document in said for item in document["rows"]}
    assert len(pool) == 15 and len(queried) == 3 and not pool & queried
    ids = Graph.open(ground.graph).items()["item_id"].to_pylist()
    for document, file in zip(said, sorted(made), strict=True):
        (hole,) = document["holes"]
        assert document["items"] == [ids[item] for item in document["rows"]]
        assert document["words"].startswith("A grid layout") and document["sampled"]["seed"] == 0
        truth = np.asarray(Image.open(file.replace(".png", "-truth.png")))
        task = held.task(document["index"], 64)
        assert (task.walk.rows, task.walk.holes) == (tuple(document["rows"]), (hole,))
        assert (truth == task.cell(-1, hole)).all() and truth.std() > 0
    again = done("sample", out, "--graph", ground.graph, "--split", "train", "--out", tmp_path / "t").stdout.split()
    assert {*json.loads(Path(again[0].replace("-0.png", ".json")).read_text())["rows"]} <= pool
    refused(invoke("sample", out, "--graph", ground.graph, "--split", "test"), "split: 'test'; allowed: validation, t")


def test_a_checkpoint_is_a_lora(ground: Ground, out: Path, tmp_path: Path) -> None:
    """Guards against a run that was stopped and has nothing to sample from or to export."""
    saved = out / "checkpoints" / "step-00000002"
    assert sampling.recipe_in(saved)["paths"] == sampling.recipe_in(out)["paths"]
    assert read_diffusers(saved).recipe["steps_done"] == 2
    done("export", saved, "--format", "kohya", "--out", tmp_path / "two.safetensors")
    newest, whole = load_file(out / "checkpoints" / "step-00000004" / WEIGHTS), load_file(out / WEIGHTS)
    assert newest.keys() == whole.keys() and all(torch.equal(newest[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ("canny", "--kinds canny: allowed: two or more"),
        ("", "which task? The LoRA was trained on canny-to-image, image-to-canny"),
        ("canny,depth,image", "wanted: 3 (canny, depth, image)"),
        ("canny,imag", "unknown kind 'imag'"),
        ("canny,caption", "caption"),
    ],
)
def test_rows_that_do_not_fit_are_refused(out: Path, rows: Path, kinds: str, words: str) -> None:
    """Guards against a picture made from the wrong columns."""
    refused(invoke("sample", out, "--rows", rows, "--kinds", kinds), words)


def test_a_picture_that_cannot_be_read_is_named(out: Path, rows: Path) -> None:
    """Guards against a traceback of a decoder that does not say which of one's files is meant."""
    (rows / "1" / "b.jpg").write_text("no picture")
    refused(invoke("sample", out, "--rows", rows, "--kinds", "canny,image"), str(rows / "1" / "b.jpg"))


def test_rows_and_pictures_are_in_the_order_of_their_numbers(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the tenth row becoming the second, so that another picture is made than the one that lacks."""
    for row in range(1, 11):
        (tmp_path / "rows" / str(row)).mkdir(parents=True)
        for name in ("2-a", "10-b")[: 2 - (row == 10)]:
            Image.new("RGB", (64, 64), (20 * row, len(name), 0)).save(tmp_path / "rows" / str(row) / f"{name}.png")
    shown: list[Any] = []
    black = Image.new("RGB", (64, 64))
    monkeypatch.setattr(FluxFill, "sample", lambda self, tasks, **_: shown.extend(tasks[0].cells()) or [[black]])
    done("sample", out, "--rows", tmp_path / "rows", "--kinds", "canny,image", "--out", tmp_path / "made")
    colours = [[tuple(cell[0, 0, :2].tolist()) for cell in row] for row in shown]
    assert colours == [[(20 * row, 3), (20 * row, 4) if row < 10 else (0, 0)] for row in range(1, 11)]


def test_a_file_that_names_code_is_not_trusted(out: Path, tmp_path: Path) -> None:
    """Guards against a LoRA from anywhere that imports a module of its author's choice when pictures are made."""
    lora = read_diffusers(out)
    save_diffusers(replace(lora, recipe={**lora.recipe, "base": "evil:Base"}), tmp_path)
    words = "base 'evil:Base'; no code is loaded because a file names it, name it yourself: --set base=evil:Base"
    refused(invoke("sample", tmp_path, "--graph", "nowhere"), words)
    refused(invoke("sample", tmp_path, "--graph", "nowhere", "--set", "base=math:pi"), "")
