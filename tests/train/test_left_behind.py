"""What a run leaves behind: records for machines and people, checkpoints, pictures, and an export with its card."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from graphbuild_train import journal as progress
from graphbuild_train.trainer import Step, Trainer
from tests.support.training import AVERAGED, Ground, metrics, said


@pytest.fixture(scope="module")
def watched(ground: Ground) -> Trainer:
    """A run that is watched at every second step and exported."""
    watch = {"checkpoint": 2, "keep": 1, "validate": 2, "tasks": 2, "sample": 2, "samples": 1, "sample_steps": 2}
    trainer = ground.trained("watched", steps=3, optimiser=AVERAGED, watch=watch)
    trainer.export()
    return trainer


def test_a_run_is_recorded_for_machines_people_and_tensorboard(watched: Trainer) -> None:
    """Guards against a run of which nothing can be said afterwards."""
    board_file = import_module("tensorboard.backend.event_processing.event_accumulator")
    lines = metrics(watched.out)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 3]
    assert {"loss", "norm", "rate", "seconds", "waited", "work"} <= lines[1].keys()
    assert 0 < lines[1]["waited"] < lines[1]["seconds"] and lines[1]["work"] > 1e8
    assert "step 0: validation loss" in said(watched) and " it/s, " in said(watched) and "TFLOP/s" in said(watched)
    board = board_file.EventAccumulator(str(watched.out)).Reload()
    assert {"train/loss", "train/rate", "validation/loss", "validation/level 7"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3]
    assert [folder.name for folder in sorted((watched.out / "checkpoints").iterdir())] == ["step-00000003"]


def test_speed_and_memory_are_said_and_recorded_where_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a slow run on a GPU that nobody notices."""
    monkeypatch.setattr(progress, "_memory", lambda: {"memory": 3.25})
    console = Console(file=io.StringIO(), width=200)
    journal = progress.Journal(tmp_path, console, first=0, last=9)
    journal.peak = 4.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=iter((100.0, 110.0, 110.0)).__next__))
    with journal:
        journal.step(1, Step(loss=0.5, norm=1.0, rate=1e-4, seconds=2.0, waited=0.5, work=4e12))
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "step 1/9: loss 0.5000, 0.50 it/s, 25% waiting, 2 TFLOP/s (MFU 50%), peak 3.2 GiB, 0:01:20 left\n"
    )
    (line,) = metrics(tmp_path)
    assert (line["memory"], line["work"], line["waited"]) == (3.25, 4e12, 0.5)


def test_pictures_are_sampled_on_the_way(watched: Trainer) -> None:
    """Guards against a sampler that is first tried when the LoRA is published."""
    files = sorted(watched.out.glob("samples/*/*.png"))
    assert [file.parent.name for file in files] == ["step-00000002", "step-00000003"]
    with Image.open(files[0]) as picture:
        assert picture.width > 3 * 32


def test_the_export_holds_the_average_its_recipe_and_a_card(watched: Trainer) -> None:
    """Guards against an export of the raw weights, and against a file of which nobody knows where it comes from."""
    with safe_open(watched.out / "pytorch_lora_weights.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["graphbuild"])
        found = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == watched.ema.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in watched.ema.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in watched.lora.items())
    assert (recipe["snapshot"], recipe["steps_done"]) == (watched.sampler.snapshot, 3)
    card = (watched.out / "README.md").read_text()
    assert "VisualClozePipeline" in card and "not stated: 18 items" in card


def test_before_the_first_step_people_are_told_what_it_takes(ground: Ground) -> None:
    """Guards against finding out after a night that no path is served, or that memory does not suffice."""
    from graphbuild_train import preflight

    trainer = ground.trainer("before", micro_batch=4, walks=8, cache_gb=0.00001)
    trainer.journal.say(preflight.lines(trainer.setup))
    words = said(trainer)
    assert "LoRA: 15 layers, 10,752 parameters" in words and "largest pass, 4 x 4 cells: memory" in words
    assert "TFLOP at most, the device's speed is not known" in words
    assert "VAE cache: at most" in words and "% of them" in words
    assert [line.split() for line in words.splitlines()[-3:]] == [
        ["conditional", "generation", "1", "1", "15..15", "0.333"],
        ["dense", "prediction", "1", "1", "15..15", "0.333"],
        ["restoration", "1", "1", "15..15", "0.333"],
    ]
