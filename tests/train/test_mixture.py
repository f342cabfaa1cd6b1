"""The mixture of a step: independent draws of path and number of rows, as often as the list says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild_train import preflight
from graphbuild_train.export.lora_file import read_diffusers
from graphbuild_train.trainer import Trainer
from tests.support.annotators import build, complete
from tests.support.numerics import assert_close
from tests.support.training import Ground, grounded, state

KINDS = (
    "gaussian_noise", "poisson_noise", "salt_pepper_noise", "gray", "pixelate", "mosaic", "contrast_strengthen",
    "saturate_weaken", "oversharpen", "blur",
)  # fmt: skip
STEPS, BATCH = 200, 16


@pytest.fixture(scope="module")
def ground(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(tmp_path_factory.mktemp("mixture"), photos) as made:
        lines = [f"  - {{name: {kind}, cells: [{kind}, image], weight: {1 + at % 3}}}" for at, kind in enumerate(KINDS)]
        (made.folder / "many.yaml").write_text("\n".join(["paths:", *lines]))
        yield made


def trainer(ground: Ground, micro_batch: int, mix: str = "pass", repeat: str = "path") -> Trainer:
    sampler = {"split": "train", "rows": [0.3, 0.4, 0.3], "repeat": repeat}
    changes = {"paths": str(ground.folder / "many.yaml"), "sampler": sampler}
    return ground.trainer("mixed", batch=BATCH, micro_batch=micro_batch, mix=mix, **changes)


def drawn(trainer: Trainer) -> list[list[tuple[str, int]]]:
    """Path and number of rows of the samples of each step."""
    pairs = [(walk.path.name, len(walk.rows)) for walk in trainer.sampler.walks(0, STEPS * BATCH)]
    return [pairs[at : at + BATCH] for at in range(0, len(pairs), BATCH)]


@pytest.mark.numeric
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_mixes_tasks_as_independent_draws_do(ground: Ground, micro_batch: int) -> None:
    """Guards against steps that train one task each: their gradients vary twice as much, and validation is worse."""
    made = trainer(ground, micro_batch)
    paths, rows = made.sampler.probabilities(), made.config.sampler.rows
    chances = np.outer(list(paths.values()), rows).ravel()
    passes = BATCH // micro_batch
    wanted = (1 - (1 - chances) ** passes).sum()
    steps = drawn(made)
    assert np.mean([len(set(step)) for step in steps]) == pytest.approx(wanted, rel=0.05)

    counts = Counter(path for step in steps for path, _ in step[::micro_batch])
    expected = np.array(list(paths.values())) * STEPS * passes
    assert chisquare([counts[name] for name in paths], expected).pvalue > 0.001
    assert all(len(set(step[at : at + micro_batch])) == 1 for step in steps for at in range(0, BATCH, micro_batch))


def test_a_step_of_one_task_is_a_choice(ground: Ground) -> None:
    """Guards against a switch that does nothing."""
    assert {len(set(step)) for step in drawn(trainer(ground, 2, mix="step"))} == {1}


@pytest.mark.numeric
def test_a_pass_of_several_tasks_has_the_loss_of_each(ground: Ground) -> None:
    """Guards against words, holes or noise of one task that reach another in the same pass."""
    losses = {}
    for micro_batch in (1, 4):
        made = trainer(ground, micro_batch, "step", repeat="geometry")
        made._begin()
        with closing(made.grids) as grids, torch.no_grad():
            losses[micro_batch] = torch.cat([made._losses(*next(grids))[0] for _ in range(BATCH // micro_batch)])
    assert len({task for task, _ in drawn(made)[0]}) > 4
    assert_close(losses[4], losses[1], terms=10_000, mutant=losses[1].roll(1))


def test_passes_are_not_cut_otherwise_in_the_middle_of_a_run(ground: Ground) -> None:
    """Guards against a resume that draws other tasks, and against refusing to resume a run of before, whose steps had
    one task each."""
    made = ground.trained("cut", steps=1)
    with pytest.raises(GraphError, match="micro_batch 2 instead of 1"):
        ground.trainer("cut", steps=2, micro_batch=1)
    made.config = ground.config(steps=1, mix="step")
    document = made.document()
    del document["mix"]
    made.document = lambda: document  # type: ignore[method-assign]
    made.save()
    with pytest.raises(GraphError, match="mix 'step' instead of 'pass'"):
        ground.trainer("cut", steps=2)
    assert ground.trained("cut", steps=2, micro_batch=1, mix="step").step == 2


def test_several_graphs_train_together_and_resume_exactly(ground: Ground, photos: Path) -> None:
    """Guards against a resume that draws from other graphs, and against one that draws from their newer states."""
    complete(build(photos, other := ground.folder / "other", []))
    many = str(ground.folder / "many.yaml")
    data = [{"graph": str(ground.graph), "weight": 2}, {"graph": str(other), "paths": many}]
    whole = ground.trained("whole", data=data, steps=4)
    assert {whole.sampler.part(index).graph.url for index in range(16)} == {str(ground.graph), str(other)}
    told = [str(line) for line in preflight.lines(whole.setup) if isinstance(line, str)]
    assert any(line.startswith("66.7% of the grid tasks: tasks on ") for line in told)

    ground.trained("halves", data=data, steps=2)
    resumed = ground.trained("halves", data=data, steps=4)
    wanted, found = state(whole.out), state(resumed.out)
    assert wanted.keys() == found.keys() and all(found[name].equal(wanted[name]) for name in wanted)
    recipe = read_diffusers(resumed.export()).recipe
    assert recipe["snapshot"] == "+".join(Graph.open(place).digest for place in (ground.graph, other))
    assert "tasks`, `many" in (resumed.out / "README.md").read_text()
    with pytest.raises(GraphError, match="data"):
        ground.trainer("halves", data=[data[0], {**data[1], "weight": 3}], steps=4)
    with pytest.raises(GraphError, match="2 graphs, not with 1"):
        ground.trainer("halves", steps=4)
    with pytest.raises(GraphError, match="either one graph"):
        Trainer(ground.config(data=data), ground.graph, ground.folder / "both")
