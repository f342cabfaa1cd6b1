"""What fills the holes of a grid task: the LoRA, or a baseline that it has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.tasks.cells import stretch
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.walk import Walk
from graphbuild_train.evaluation.walks import Questions, shortened
from graphbuild_train.sampling import LoraSampler

LORA = "lora"
BASELINES = ("copy", "mean", "wrong_rows", "base")
"""By name: the first given cell of the query row; the mean picture of the task's targets on the other side of the
split; the LoRA with context rows of another task; the base without the LoRA."""
PEERS = ("omnigen",)
"""Other models, which are asked for by name; see `graphbuild_train.evaluation.peers`."""
NEED_A_LORA = ("wrong_rows", "base")
WITHOUT_ROWS = ("copy", "mean", "omnigen")
"""What does not look at context rows."""
TITLES: Mapping[str, str] = {
    "copy": "copied condition", "mean": "mean picture", "base": "base without LoRA",
    "omnigen": "OmniGen", "wrong_rows": "LoRA, rows of another task", "lora": "LoRA",
}  # fmt: skip
"""In the order of tables."""
_MEAN_OF = 32


class Method(Protocol):
    """Fills holes.

    Returns:
        one picture per hole, H x W x 3 RGB uint8, or why the task cannot be filled.
    """

    def __call__(self, task: GridTask, walk: Walk) -> Sequence[Pixels] | str: ...


def copied(task: GridTask, walk: Walk) -> list[Pixels] | str:
    """The first given cell of the query row."""
    given = [column for column in range(len(task.kinds)) if column not in task.holes]
    return [task.cell(-1, given[0]) for _ in task.holes] if given else "nothing is given"


class MeanPicture:
    """The mean of a task's targets on the side of the split that is not evaluated."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self._known: dict[tuple[str, str], Pixels] = {}

    def __call__(self, task: GridTask, walk: Walk) -> list[Pixels] | str:
        sampler = self.questions.trained
        if sampler is None or walk.path.name not in {path.name for path in sampler.paths}:
            return "the other side of the split does not serve it"
        return [stretch(self._mean(walk, task.kinds[hole].name), task.frames[-1].size) for hole in task.holes]

    def _mean(self, walk: Walk, kind: str) -> Pixels:
        key = walk.path.name, kind
        if key not in self._known:
            sampler, side = self.questions.trained, self.questions.config.resolution
            assert sampler is not None
            tasks = [sampler.task(sampler.walk(index, path=walk.path.name), side) for index in range(_MEAN_OF)]
            names = [[shown.name for shown in task.kinds] for task in tasks]
            cells = [task.cell(-1, shown.index(kind)) for task, shown in zip(tasks, names, strict=True)]
            self._known[key] = np.rint(np.mean(cells, 0)).astype(np.uint8)
        return self._known[key]


class Generated:
    """Pictures of a LoRA, or of its base."""

    def __init__(self, sampler: LoraSampler, seed: int, *, without_lora: bool = False) -> None:
        self.sampler, self.seed, self.without_lora = sampler, seed, without_lora

    def __call__(self, task: GridTask, walk: Walk) -> list[Pixels]:
        with switched_off(self.sampler.base.bare, self.without_lora):
            made = self.sampler.make(task, seed=self.seed).pictures
        return [task.frames[-1].cell(np.asarray(picture.convert("RGB"))) for picture in made]


@contextmanager
def switched_off(model: Any, off: bool) -> Iterator[None]:
    """The model without its LoRA, if `off`."""
    if off:
        model.disable_adapters()
    try:
        yield
    finally:
        if off:
            model.enable_adapters()


class WrongRows:
    """Pictures of a LoRA whose context rows are of another task with as many columns: what they say must matter."""

    def __init__(self, questions: Questions, generated: Generated) -> None:
        self.questions, self.generated = questions, generated

    def __call__(self, task: GridTask, walk: Walk) -> list[Pixels] | str:
        rows = len(task.walk.rows)
        if rows < 2:
            return "there are no context rows"
        other = self._other(walk, rows)
        if other is None:
            return "no other task has as many columns and rows"
        return self.generated(_Misled(task, self.questions.sampler.task(other, task.resolution)), walk)

    def _other(self, walk: Walk, rows: int) -> Walk | None:
        """A walk of the next task of this width."""
        alike = [other for other in self.questions.walks if len(other.columns) == len(walk.columns)]
        names = list(dict.fromkeys(other.path.name for other in alike))
        if len(names) < 2:
            return None
        wanted = names[(names.index(walk.path.name) + 1) % len(names)]
        found = [shortened(other, rows) for other in alike if other.path.name == wanted]
        long = [other for other in found if other is not None]
        return long[walk.index % len(long)] if long else None


class _Misled(GridTask):
    """A grid task with the context rows of another one."""

    def __init__(self, task: GridTask, other: GridTask) -> None:
        super().__init__(task.walk, task.drawing, task.resolution, cells=task.cell_config)
        self._other = other

    def node(self, row: int, column: int) -> Node:
        at = row % len(self.walk.rows)
        return super().node(at, column) if at == len(self.walk.rows) - 1 else self._other.node(at, column)


def check(baselines: Sequence[str], *, lora: bool) -> None:
    """Refuse baselines that there cannot be.

    Raises:
        ValueError: their names.
    """
    if unknown := [name for name in baselines if name not in BASELINES + PEERS]:
        raise ValueError(f"baseline: {unknown[0]!r}; allowed: {', '.join(BASELINES + PEERS)}, none")
    if not lora and (needy := [name for name in baselines if name in NEED_A_LORA]):
        raise ValueError(f"baseline: {needy[0]!r} needs a LoRA; allowed without one: {', '.join(WITHOUT_ROWS)}")
    if not lora and not baselines:
        raise ValueError("neither a LoRA nor a baseline; name one of them")


def methods(
    questions: Questions, sampler: LoraSampler | None, baselines: Sequence[str], seed: int,
    peers: Mapping[str, Method] = MappingProxyType({}),
) -> dict[str, Method]:  # fmt: skip
    """The LoRA, if there is one, and baselines and other models by name."""
    found: dict[str, Method] = {"copy": copied, "mean": MeanPicture(questions), **peers}
    if sampler is not None:
        generated = Generated(sampler, seed)
        found[LORA] = generated
        found["wrong_rows"] = WrongRows(questions, generated)
        found["base"] = Generated(sampler, seed, without_lora=True)
    return {name: found[name] for name in TITLES if name in baselines or (name == LORA and sampler)}
