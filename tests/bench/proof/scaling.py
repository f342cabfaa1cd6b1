"""Scaling laws in small, on the CPU: `python tests/bench/proof/scaling.py [--steps 200 400 800]`.

The model and the tasks of `../bench_proof.py` with `visualcloze_dev`. Printed and drawn is the mean squared error of
the generated cell with three rows, on held-out tasks and pictures, against the steps trained:

- with 5, 15 and all 49 kinds of task in the training, at equal steps;
- with 49, where a step is of one task instead of one for each sample.

Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from bench_proof import HELD_OUT, TASKS, filled, graph_of, questions, recipe, squared
from plot import draw_curves

from graphbuild.store.files import replacing
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import HeldOut
from graphbuild_train.evaluation.figures import interval
from graphbuild_train.trainer import Trainer

OBJECTIVE = "visualcloze_dev"
RUNS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "5 tasks": (5, ()),
    "15 tasks": (15, ()),
    "49 tasks": (49, ()),
    "49 tasks, one a step": (49, ("mix=step", "sampler.repeat=path")),
}
"""Kinds of task that are trained, and settings."""
PANELS = {
    "kinds of task in the training": ("5 tasks", "15 tasks", "49 tasks"),
    "tasks in a step": ("49 tasks, one a step", "49 tasks"),
}
SETS = ("optimiser.schedule=constant", "watch.checkpoint=100")
Curve = dict[int, tuple[float, float, float]]
"""Steps -> mean squared error and its interval."""


def chosen(count: int) -> list[str]:
    """So many of the tasks that may be trained, evenly spread."""
    seen = [name for name in TASKS if name not in HELD_OUT]
    return [seen[at * len(seen) // count] for at in range(count)]


def error(graph: Graph, folder: Path, run: str, steps: int, walks: int) -> tuple[float, float, float]:
    """Train a run on to so many steps, and measure it."""
    count, sets = RUNS[run]
    config = recipe(folder, OBJECTIVE, [*SETS, *sets, f"steps={steps}"])
    spared = tuple(HeldOut(holes=(f"task_{name}",)) for name in TASKS if name not in chosen(count))
    config = replace(config, sampler=replace(config.sampler, held_out=spared))
    trainer = Trainer(config, folder / "graph", folder / run.replace(" ", "-").replace(",", ""))
    trainer.fit()
    asked = questions(graph, trainer, 2 * walks)
    held_out = [walk for walk in asked.walks if walk.path.name in HELD_OUT]
    with trainer.finished():
        made = filled(trainer, asked, "R=3", held_out)
    return interval([squared(own, walk, asked) for own, walk in zip(made, held_out, strict=True)])


def measured(graph: Graph, folder: Path, steps: Sequence[int], walks: int) -> dict[str, Curve]:
    """The curve of every run, kept in a file as they are made."""
    file = folder / "scaling.json"
    known: dict[str, dict[str, tuple[float, float, float]]] = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, Curve] = {run: {int(at): errors for at, errors in known.get(run, {}).items()} for run in RUNS}
    for run, curve in found.items():
        for at in sorted(steps):
            if at not in curve:
                curve[at] = error(graph, folder, run, at, walks)
                with replacing(file) as sink:
                    sink.write(json.dumps(found).encode())
            print(f"{run:24}{at:6} steps  {curve[at][0]:.4f} [{curve[at][1]:.4f}, {curve[at][2]:.4f}]", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("incontext-scaling"))
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 400, 800])
    parser.add_argument("--walks", type=int, default=128)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = measured(graph_of(asked.out, asked.items), asked.out, asked.steps, asked.walks)
    draw_curves({title: {run: found[run] for run in runs} for title, runs in PANELS.items()}, asked.out / "scaling.png")
    print(asked.out / "scaling.png")


if __name__ == "__main__":
    main()
