"""Resuming: a run that is killed, at any moment, ends with the bits of one that was not."""

from __future__ import annotations

import shutil
import signal
import time
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild_train import checkpoint
from graphbuild_train.trainer import Trainer, train
from tests.support.annotators import build, complete, write_photos
from tests.support.training import NEVER, Ground, log_samples, metrics, recorded, seen, state


def test_twenty_steps_equal_those_of_a_run_killed_twice(ground: Ground) -> None:
    """Guards against a resume that starts Adam, the moving average, the noise or the data over; against half a
    checkpoint that is taken for a whole one; and against steps that are in the journal twice."""
    options = {
        "optimiser": {"learning_rate": 1e-3, "ema": 0.9, "warmup": 12}, "steps": 20, "walks": 32,
        "watch": {**NEVER, "checkpoint": 5, "validate": 5, "tasks": 2},
    }  # fmt: skip
    stop = log_samples(ground.folder / "whole.log")
    whole = ground.trained("whole", **options).out
    stop()
    assert ground.launch("killed", kill="save 10", **options).returncode == -signal.SIGKILL
    killed = ground.folder / "killed"
    assert [file.name for file in (killed / "checkpoints").iterdir() if file.name[0] != "."] == ["step-00000005"]
    assert ground.launch("killed", kill="step 12", **options).returncode == -signal.SIGKILL
    assert recorded(killed, "step") == list(range(1, 13))
    stop = log_samples(ground.folder / "killed.log")
    resumed = ground.trained("killed", **options)
    stop()

    assert resumed.restored is not None and resumed.restored.step == 10
    theirs, ours = state(whole), state(killed)
    assert theirs.keys() == ours.keys() and any(name.startswith("ema") for name in theirs)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert recorded(killed, "loss") == recorded(whole, "loss")
    assert recorded(killed, "step") == recorded(whole, "step") == list(range(1, 21))
    assert [line for line in metrics(killed) if "validation" in line] == [
        line for line in metrics(whole) if "validation" in line
    ]
    board = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(killed))
    assert [event.step for event in board.Reload().Scalars("train/loss")] == list(range(1, 21))
    order, again = seen(ground.folder / "whole.log"), seen(ground.folder / "killed.log")
    after_10 = 10 * 4 + 2 * 2  # two tasks are validated, at 15 and at 20
    assert again[-after_10:] == order[-after_10:] and len(order) == 20 * 4 + 5 * 2


def test_a_run_that_is_stopped_keeps_the_steps_it_has_done(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against hours lost to a cluster that takes its machine back: what was done since the last checkpoint is
    saved, unless the signal came in the middle of an update."""
    whole = ground.trained("unstopped", steps=4).out
    losses = Trainer._losses

    def stopped(self: Trainer, *arguments: Any) -> Any:
        if self.step == 2:
            raise KeyboardInterrupt
        return losses(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_losses", stopped)
        with pytest.raises(KeyboardInterrupt):
            ground.trained("stopped", steps=4)
    resumed = ground.trainer("stopped", steps=4)
    assert resumed.step == 2
    update, updates = torch.optim.AdamW.step, count()

    def interrupted(self: torch.optim.AdamW) -> Any:
        if next(updates):
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resumed.fit()
    assert checkpoint.steps(resumed.out) == [2]
    ground.trained("stopped", steps=4)
    assert recorded(resumed.out, "step") == [1, 2, 3, 4]
    ours, theirs = state(resumed.out), state(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_is_written_when_the_last_one_is_old(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against 500 slow steps that a cluster takes back at the 499th."""
    clock = count(0, 60)  # a minute passes whenever it is asked
    monkeypatch.setattr(
        "graphbuild_train.trainer.time",
        SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: float(next(clock))),
    )
    out = ground.trained("slow", steps=6, watch={**NEVER, "minutes": 2}).out
    assert checkpoint.steps(out) == [2, 4, 6]
    clock = count(0, 60)
    assert checkpoint.steps(ground.trained("quick", steps=6, watch={**NEVER, "minutes": 0}).out) == [6]


def test_another_config_is_refused_by_field_and_values(ground: Ground, tmp_path: Path) -> None:
    """Guards against a run that goes on with half of its steps made otherwise, and against refusing what is free."""
    ground.trained("fixed", steps=1, mix="step")
    for changes, words in (
        ({"optimiser": {"learning_rate": 2e-3}}, "optimiser.learning_rate 0.001 instead of 0.002"),
        ({"seed": 1}, "seed 0 instead of 1"),
        (
            {"lora": {"layers": "attn", "rank": 8, "alpha": 64}},
            "lora.layers 'attn_ff' instead of 'attn', lora.rank 4 instead of 8",
        ),
        ({"paths": "graph200k"}, "instead of 'graph200k"),
    ):
        with pytest.raises(GraphError, match=words) as caught:
            ground.trainer("fixed", mix="step", **changes)
        assert "fixed was trained with" in str(caught.value)
    assert ground.trained("fixed", steps=2, mix="step", micro_batch=4, watch={"validate": 0, "sample": 0}).step == 2


def test_a_task_list_is_known_by_what_it_says(ground: Ground, tmp_path: Path) -> None:
    """Guards against other tasks under the old name; moving the file changes nothing."""
    listed = tmp_path / "mine.yaml"
    listed.write_text((ground.folder / "tasks.yaml").read_text())
    ground.trained("listed", steps=1, paths=str(listed))
    (tmp_path / "moved").mkdir()
    moved = listed.rename(tmp_path / "moved" / "mine.yaml")
    assert ground.trainer("listed", paths=str(moved)).step == 1
    moved.write_text(moved.read_text().replace("[canny, image]", "[image, canny]"))
    with pytest.raises(GraphError, match=r"paths 'mine \w+' instead of 'mine \w+'"):
        ground.trainer("listed", paths=str(moved))


def test_the_number_of_steps_is_free_only_if_no_step_depends_on_it(ground: Ground) -> None:
    """Guards against a cosine that is stretched in the middle of a run."""
    cosine = {"optimiser": {"schedule": "cosine"}}
    ground.trained("cosine", steps=1, **cosine)
    with pytest.raises(GraphError, match="steps 1 instead of 2"):
        ground.trainer("cosine", steps=2, **cosine)


def test_a_second_run_into_the_folder_is_refused_before_anything_is_loaded(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against two runs that overwrite each other's checkpoints."""
    out = ground.folder / "busy"
    monkeypatch.setattr("graphbuild_train.trainer.Trainer", lambda *_, **__: pytest.fail("was begun"))
    with checkpoint.locked(out), pytest.raises(GraphError, match="is training into it"):
        train(ground.config(), ground.graph, out, console=Console(quiet=True))


def test_what_a_grown_graph_serves_does_not_change_a_run(ground: Ground, tmp_path: Path) -> None:
    """Guards against a resume that draws from items which came later: it is pinned to its snapshot."""
    trainer = ground.trained("pinned", steps=1)
    write_photos(photos_there := tmp_path / "more", range(24))
    complete(build(photos_there, grown := Path(shutil.copytree(ground.graph, tmp_path / "grown")), ["canny"]))
    assert Graph.open(grown).digest != trainer.sampler.snapshot
    resumed = Trainer(ground.config(), grown, trainer.out)
    assert resumed.sampler.snapshot == trainer.sampler.snapshot
    assert resumed.sampler.walk(9) == trainer.sampler.walk(9)


def test_a_finished_run_is_left_as_it_is(ground: Ground) -> None:
    """Guards against a last step that is made again each time the command is given."""
    before = ground.trained("done", steps=2).out
    kept = state(before), (before / "metrics.jsonl").read_text()
    ground.trained("done", steps=2)
    with pytest.raises(
        GraphError, match=r"done: 2 steps are done, more than steps: 1; ask for more or choose another --out"
    ):
        ground.trained("done", steps=1)
    assert kept[1] == (before / "metrics.jsonl").read_text()
    assert all(torch.equal(tensor, kept[0][name]) for name, tensor in state(before).items())
