"""In-context learning in small, on the CPU: `python tests/bench/bench_proof.py [--steps N] [--items N] [--walks N]`.

A transformer of FLUX.1-Fill's shape is trained from scratch on tasks that only the example rows tell, drawn by our
sampler from our graph, through our loader, objective and loop (`tests/bench/proof`); then it fills fixed walks of
held-out items. Printed is the mean squared error of the generated cell (pixels in 0..1) with 1, 2 and 3 rows, with rows
of another task, with rows whose pairs are exchanged, and of two baselines; with 95 % intervals, paired where two are
compared. Stopped, the same command goes on. It ends with 1 if a line of the proof does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROOF = Path(__file__).parent / "proof"
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(PROOF)]

import numpy as np
import pixels
import yaml
from numpy.typing import NDArray
from rich.console import Console

from graphbuild.engine.run import run
from graphbuild.sources import resolve
from graphbuild.store.files import replacing
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import HeldOut
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk
from graphbuild_train.config import TrainConfig
from graphbuild_train.evaluation.figures import interval
from graphbuild_train.evaluation.methods import MeanPicture, WrongRows, copied
from graphbuild_train.evaluation.walks import Questions
from graphbuild_train.recipes import configured, read_recipe
from graphbuild_train.trainer import Trainer

CONTROLS = ("wrong rows", "exchanged pairs", "copied condition", "mean picture")
Errors = dict[str, dict[int, float]]
"""What filled the hole -> walk -> mean squared error."""


class Exchanged(GridTask):
    """A task whose example rows have each other's results; with one example, its condition twice."""

    def node(self, row: int, column: int) -> Any:
        examples = len(self.walk.rows) - 1
        at = row % len(self.walk.rows)
        if at == examples or column == 0:
            return super().node(at, column)
        return super().node((at + 1) % examples, column) if examples > 1 else super().node(at, 0)


def recipe(folder: Path, sets: Sequence[str]) -> TrainConfig:
    """The recipe with its task list, and the tasks that it is not shown."""
    listed = folder / "incontext_tasks.yaml"
    listed.write_text(yaml.safe_dump(pixels.task_list()))
    config = configured({**read_recipe(PROOF / "incontext.yaml"), "paths": str(listed)}, sets)
    held_out = tuple(HeldOut(holes=(f"task_{name}",)) for name in pixels.HELD_OUT)
    return replace(config, sampler=replace(config.sampler, held_out=held_out))


def graph_of(folder: Path, items: int) -> Graph:
    """Scenes, and each of them changed by every task."""
    photos = pixels.write_scenes(folder / "scenes", items)
    run(resolve("folder", path=str(photos)), [pixels.Changes()], folder / "graph", executor="inline",
        console=Console(quiet=True))  # fmt: skip
    return Graph.open(folder / "graph")


def questions(graph: Graph, trainer: Trainer, walks: int) -> Questions:
    """Walks of held-out items with three rows, half of them of held-out tasks."""
    config = replace(trainer.config.sampler, split="validation", rows=(0.0, 0.0, 1.0), held_out=())
    sampler = PathSampler(graph, trainer.lists[0], seed=1, config=config)
    seen = [name for name in pixels.TASKS if name not in pixels.HELD_OUT]
    names = [pool[at // 2 % len(pool)] for at in range(walks) for pool in ((seen, pixels.HELD_OUT)[at % 2],)]
    drawn = [sampler.walk(index, path=name) for index, name in enumerate(names)]
    return Questions(sampler, drawn, trainer.config)


def measured(trainer: Trainer, asked: Questions, file: Path) -> Errors:
    """The error of every walk, kept in a file as they are made."""
    known: Errors = json.loads(file.read_text()) if file.exists() else {}
    found = {name: {int(at): value for at, value in errors.items()} for name, errors in known.items()}
    for walk in asked.walks:
        for name, made in _fills(trainer, asked, walk).items():
            if walk.index not in found.setdefault(name, {}):
                found[name][walk.index] = _error(made(), walk, asked)
        with replacing(file) as sink:
            sink.write(json.dumps(found).encode())
    return found


def _fills(trainer: Trainer, asked: Questions, walk: Walk) -> Mapping[str, Callable[[], Any]]:
    def generated(task: GridTask, _: Walk | None = None) -> list[Any]:
        (made,) = trainer.base.sample([task], seed=0, **trainer.base.sampling(trainer.config.watch))
        return [np.asarray(picture) for picture in made]

    tasks = {rows: asked.task(walk, rows - 1) for rows in (1, 2, 3)}
    three = tasks[3]
    assert three is not None
    exchanged = Exchanged(walk, three.drawing, three.resolution, cells=three.cell_config)
    return {
        **{f"R={rows}": lambda task=task: generated(task) for rows, task in tasks.items()},
        "wrong rows": lambda: WrongRows(asked, generated)(three, walk),  # type: ignore[arg-type]
        "exchanged pairs": lambda: generated(exchanged),
        "copied condition": lambda: copied(three, walk),
        "mean picture": lambda: MeanPicture(asked)(three, walk),
    }


def _error(made: Any, walk: Walk, asked: Questions) -> float:
    task = asked.task(walk, 0)
    assert task is not None and not isinstance(made, str), made
    truth = task.cell(-1, walk.holes[0])
    return float(np.square((made[0].astype(float) - truth) / 255).mean())


def told(errors: Errors, asked: Questions) -> bool:
    """Print the table, and whether the lines of the proof hold."""
    held = True
    for name, unseen in (("seen tasks", False), ("held-out tasks", True)):
        walks = [walk.index for walk in asked.walks if asked.unseen(walk) == unseen]
        rows = {key: np.array([values[at] for at in walks]) for key, values in errors.items()}
        print(f"{name}, {len(walks)} walks of held-out items")
        for key, values in rows.items():
            mean, low, high = interval(values.tolist())
            print(f"  {key:18}{mean:.4f} [{low:.4f}, {high:.4f}]")
        share = rows["R=3"].mean() / rows["R=1"].mean()
        most = 0.6 if unseen else 0.3
        lines = {
            "R=3 below R=2": _below(rows["R=3"], rows["R=2"]),
            "R=2 below R=1": _below(rows["R=2"], rows["R=1"]),
            f"R=3 at most {most} of R=1 (it is {share:.2f})": share <= most,
            "wrong rows above R=1": _below(rows["R=1"], rows["wrong rows"]),
            **{f"R=3 below {key}": _below(rows["R=3"], rows[key]) for key in CONTROLS[1:]},
        }
        for line, holds in lines.items():
            print(f"  {'holds' if holds else 'FAILS'}: {line}")
        held &= all(lines.values())
    return held


def _below(less: NDArray[np.float64], more: NDArray[np.float64]) -> bool:
    """Whether the paired difference is below zero with its whole interval."""
    return interval((less - more).tolist())[2] < 0


def main() -> int:
    """Make the graph, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("incontext-proof"))
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--walks", type=int, default=512)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    steps = [f"steps={asked.steps}"] if asked.steps else []
    graph = graph_of(asked.out, asked.items)
    trainer = Trainer(recipe(asked.out, [*asked.sets, *steps]), asked.out / "graph", asked.out / "run")
    trainer.fit()
    with trainer.finished():
        found = questions(graph, trainer, asked.walks)
        return 0 if told(measured(trainer, found, asked.out / "errors.json"), found) else 1


if __name__ == "__main__":
    sys.exit(main())
