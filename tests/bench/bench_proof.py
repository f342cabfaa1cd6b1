"""In-context learning in small, on the CPU: `python tests/bench/bench_proof.py [--full] [--objective NAME]`.

For each objective a small transformer is trained from scratch on tasks that only the example rows tell, drawn by our
sampler from our graph, through our loader, objective and loop (`tests/bench/proof`); then it fills fixed walks of
held-out items. Printed is the mean squared error of the generated cell (pixels in 0..1) with 1, 2 and 3 rows, with rows
of another task, with rows whose pairs are exchanged, and of two baselines; with 95 % intervals, paired where two are
compared. Stopped, the same command goes on.

`--full`, or `make proof`, is the proof itself, of five objectives in about two hours; it ends with 1 if a line of it
does not hold. Without it, one objective is trained for some minutes: rows help already, not as much as the lines say.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PROOF = Path(__file__).parent / "proof"
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(PROOF)]

import numpy as np
import yaml
from changes import HELD_OUT, TASKS, Changes, opposite, task_list, write_scenes
from numpy.typing import NDArray
from plot import Figures, draw_errors, draw_walks
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
from tests.support.benchmarks import record

BASES = {
    "visualcloze_fill": "pixels:PixelFill", "visualcloze_dev": "pixels:PixelDev",
    "onediffusion": "pixels:PixelDev", "onepic": "pixels:PixelCanvas", "flux2_klein": "pixels:PixelKlein",
}  # fmt: skip
"""Of each objective."""
OWN = {"onediffusion": ("logit_std=2",)}
"""Settings of an objective. Its shown views have noise in training, each at a level of its own, and none when a hole is
filled: with the standard deviation 1, three levels in 100,000 are below .05, and a model from scratch knows none."""


class Size(NamedTuple):
    """How much is made, trained (steps of each objective) and measured."""

    items: int
    steps: Mapping[str, int]
    walks: int


FULL = Size(4000, dict.fromkeys(BASES, 5000), 512)
SMALL = Size(500, {"visualcloze_dev": 500}, 64)
CONTROLS = ("wrong rows", "exchanged pairs", "copied condition", "mean picture")
AT_ONCE = 64
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


def recipe(folder: Path, objective: str, sets: Sequence[str]) -> TrainConfig:
    """The recipe with its task list, and the tasks that it is not shown."""
    listed = folder / "incontext_tasks.yaml"
    listed.write_text(yaml.safe_dump(task_list()))
    own = {"paths": str(listed), "objective": objective, "base": BASES[objective]}
    config = configured({**read_recipe(PROOF / "incontext.yaml"), **own}, [*OWN.get(objective, ()), *sets])
    held_out = tuple(HeldOut(holes=(f"task_{name}",)) for name in HELD_OUT)
    return replace(config, sampler=replace(config.sampler, held_out=held_out))


def graph_of(folder: Path, items: int) -> Graph:
    """Scenes, and each of them changed by every task."""
    photos = write_scenes(folder / "scenes", items)
    run(resolve("folder", path=str(photos)), [Changes()], folder / "graph", executor="inline",
        console=Console(quiet=True))  # fmt: skip
    return Graph.open(folder / "graph")


def questions(graph: Graph, trainer: Trainer, walks: int) -> Questions:
    """Walks of held-out items with three rows, half of them of held-out tasks."""
    config = replace(trainer.config.sampler, split="validation", rows=(0.0, 0.0, 1.0), held_out=())
    sampler = PathSampler(graph, trainer.lists[0], seed=1, config=config)
    seen = [name for name in TASKS if name not in HELD_OUT]
    names = [pool[at // 2 % len(pool)] for at in range(walks) for pool in ((seen, HELD_OUT)[at % 2],)]
    drawn = [sampler.walk(index, path=name) for index, name in enumerate(names)]
    return Questions(sampler, drawn, trainer.config)


def measured(trainer: Trainer, asked: Questions, file: Path) -> Errors:
    """The error of every walk, kept in a file as they are made."""
    known: Errors = json.loads(file.read_text()) if file.exists() else {}
    found = {name: {int(at): value for at, value in errors.items()} for name, errors in known.items()}
    baselines: dict[str, Any] = {"copied condition": copied, "mean picture": MeanPicture(asked)}
    for first in range(0, len(asked.walks), AT_ONCE):
        for name in (*(f"R={rows}" for rows in (1, 2, 3)), *CONTROLS):
            errors = found.setdefault(name, {})
            walks = [walk for walk in asked.walks[first : first + AT_ONCE] if walk.index not in errors]
            if name in baselines:
                made = [baselines[name](_present(asked.task(walk, 2)), walk)[0] for walk in walks]
            else:
                made = filled(trainer, asked, name, walks)
            errors |= {walk.index: squared(own, walk, asked) for walk, own in zip(walks, made, strict=True)}
        with replacing(file) as sink:
            sink.write(json.dumps(found).encode())
    return found


def filled(trainer: Trainer, asked: Questions, name: str, walks: Sequence[Walk]) -> list[NDArray[np.uint8]]:
    """The hole of each walk as the model fills it, shown so many rows or others than its own."""
    tasks = [_task(asked, name, walk) for walk in walks]
    made = trainer.base.sample(tasks, seed=0, **trainer.base.sampling(trainer.config.watch)) if tasks else []
    return [np.asarray(picture) for (picture,) in made]


def _task(asked: Questions, name: str, walk: Walk) -> GridTask:
    """What the model is shown."""
    if name.startswith("R="):
        return _present(asked.task(walk, int(name[2:]) - 1))
    three = _present(asked.task(walk, 2))
    if name == "exchanged pairs":
        return Exchanged(walk, three.drawing, three.resolution, cells=three.cell_config)
    if name == "wrong rows":
        other = asked.sampler.walk(walk.index, path=opposite(walk.path.name))
        misled: Any = WrongRows(replace(asked, walks=[walk, other]), lambda task, _: task)  # type: ignore[arg-type, return-value]
        return misled(three, walk)  # type: ignore[no-any-return]
    return three


def _present(task: GridTask | None) -> GridTask:
    assert task is not None
    return task


def squared(made: NDArray[np.uint8], walk: Walk, asked: Questions) -> float:
    """The mean squared error of what fills a hole, of pixels in 0..1."""
    truth = _present(asked.task(walk, 0)).cell(-1, walk.holes[0])
    return float(np.square((made.astype(float) - truth) / 255).mean())


def told(objective: str, errors: Errors, asked: Questions) -> tuple[bool, Figures]:
    """Print the table; whether the lines of the proof hold, and the figures by seen and held-out tasks."""
    held, figures = True, {}
    for name, unseen in (("seen tasks", False), ("held-out tasks", True)):
        walks = [walk.index for walk in asked.walks if asked.unseen(walk) == unseen]
        rows = {key: np.array([values[at] for at in walks]) for key, values in errors.items()}
        print(f"{objective}, {name}, {len(walks)} walks of held-out items")
        figures[name] = {key: interval(values.tolist()) for key, values in rows.items()}
        for key, (mean, low, high) in figures[name].items():
            print(f"  {key:18}{mean:.4f} [{low:.4f}, {high:.4f}]")
        share = rows["R=3"].mean() / rows["R=1"].mean()
        one, three = (float(rows[key].mean()) for key in ("R=1", "R=3"))
        record(
            f"{objective}, {name}: 3 rows, peer 1 row", ours=three, peer=one, unit="MSE", ratio=one / three, limit=1.0
        )
        most = 0.6 if unseen else 0.3
        lines = {
            "R=3 below R=2": _below(rows["R=3"], rows["R=2"]),
            "R=2 below R=1": _below(rows["R=2"], rows["R=1"]),
            f"R=3 at most {most} of R=1 (it is {share:.2f})": share <= most,
            "wrong rows above R=1": _below(rows["R=1"], rows["wrong rows"]),
            **{f"R=3 below {key}": _below(rows["R=3"], rows[key]) for key in CONTROLS[2:]},
        }
        for line, holds in lines.items():
            print(f"  {'holds' if holds else 'FAILS'}: {line}")
        held &= all(lines.values())
    return held, figures


def _below(less: NDArray[np.float64], more: NDArray[np.float64]) -> bool:
    """Whether the paired difference is below zero with its whole interval."""
    return interval((less - more).tolist())[2] < 0


def shown(trainer: Trainer, asked: Questions, file: Path) -> None:
    """A picture of some walks of held-out tasks: the examples, the condition, what was made with 1, 2 and 3 rows."""
    walks = [walk for walk in asked.walks if asked.unseen(walk)][:40:5]
    made = [filled(trainer, asked, f"R={rows}", walks) for rows in (1, 2, 3)]
    strips = []
    for walk, *own in zip(walks, *made, strict=True):
        task = _present(asked.task(walk, 2))
        given = [task.cell(row, column) for row in (0, 1) for column in (0, 1)]
        strips.append([*given, task.cell(2, 0), *own, task.cell(2, 1)])
    draw_walks(strips, file)


def proved(objective: str, graph: Graph, out: Path, sets: Sequence[str], walks: int) -> tuple[bool, Figures]:
    """Train an objective, and measure it."""
    began = time.monotonic()
    trainer = Trainer(recipe(out, objective, sets), out / "graph", out / objective)
    trainer.fit()
    trained = time.monotonic() - began
    with trainer.finished():
        asked = questions(graph, trainer, walks)
        errors = measured(trainer, asked, out / objective / "errors.json")
        shown(trainer, asked, out / objective / "walks.png")
    print(
        f"{objective}: {trained / 60:.0f} min of training, {(time.monotonic() - began - trained) / 60:.0f} of measuring"
    )
    return told(objective, errors, asked)


def main() -> int:
    """Make the graph, train, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all objectives, steps and walks")
    parser.add_argument("--out", type=Path, help="where everything is kept; without it, nowhere")
    parser.add_argument("--objective", action="append", choices=[*BASES])
    parser.add_argument("--items", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--walks", type=int)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    asked = parser.parse_args()
    size = FULL if asked.full else SMALL
    with tempfile.TemporaryDirectory(prefix="graphbuild-proof-") as temporary:
        out = asked.out or Path(temporary)
        graph = graph_of(out, asked.items or size.items)
        found = {}
        for objective in asked.objective or size.steps:
            steps = asked.steps or {**FULL.steps, **size.steps}[objective]
            sets = [*asked.sets, f"steps={steps}"]
            found[objective] = proved(objective, graph, out, sets, asked.walks or size.walks)
        draw_errors({objective: figures for objective, (_, figures) in found.items()}, out / "errors.png")
    if asked.out:
        print(f"{out}/errors.png, {out}/*/walks.png")
    return 0 if not asked.full or all(held for held, _ in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
