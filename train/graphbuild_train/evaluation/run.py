"""An evaluation: every walk is filled by every method, judged, and counted; stopped, it goes on where it was."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from graphbuild.hashing import digest_of
from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import Kind
from graphbuild.store.files import replacing
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.walk import Walk
from graphbuild_train.evaluation.figures import Figure, interval, interval_of_sets
from graphbuild_train.evaluation.judge import FID, Judge, example_of
from graphbuild_train.evaluation.methods import TITLES, WITHOUT_ROWS, Method
from graphbuild_train.evaluation.walks import Questions
from graphbuild_train.metrics.control import Controls
from graphbuild_train.metrics.example import PICTURES
from graphbuild_train.metrics.frechet import frechet

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """One hole of one walk, filled by one method with so many context rows.

    Attributes:
        hole: shown column.
    """

    method: str
    context: int
    walk: Walk
    hole: int

    @property
    def task(self) -> str:
        """Its name in the tables: the path, and of several holes which."""
        name = self.walk.path.name
        return name if len(self.walk.holes) == 1 else f"{name}: {self.walk.kinds[self.hole]}"

    @property
    def file(self) -> str:
        """Its picture, relative to the evaluation's folder."""
        return f"pictures/{self.method}/context-{self.context}/{self.name}.png"

    @property
    def name(self) -> str:
        """Of its files: walk and hole; a path may be called anything."""
        return f"{self.walk.index:07d}-{self.hole}"


class Evaluation:
    """Pictures and their figures, in a folder.

    Args:
        contexts: numbers of context rows.
        controls: makes given conditions again from pictures.
        share: which of how many processes this is; each fills and judges its own walks.

    Attributes:
        left_out: method and task -> why this process made no picture.
    """

    def __init__(
        self,
        out: Path,
        questions: Questions,
        methods: Mapping[str, Method],
        *,
        judge: Judge,
        controls: Controls,
        contexts: Sequence[int],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.out, self.questions, self.methods = out, questions, methods
        self.judge, self.controls, self.contexts, self.share = judge, controls, contexts, share
        self.left_out: dict[str, str] = {}
        for kind in sorted({kind for walk in questions.walks for kind in walk.kinds}):
            controls.annotator(kind)  # tells what is left out, also of a run whose pictures are all judged

    # ---- pictures ------------------------------------------------------------------------------------------------

    def run(self, progress: Progress) -> None:
        """Fill and judge the walks of this process, as far as that is not done."""
        rank, world = self.share
        for method, context in self.settings():
            for walk in self.questions.walks[rank::world]:
                self._walk(method, context, walk)
                progress(method)

    def settings(self) -> list[tuple[str, int]]:
        """Each method with each number of context rows that makes a difference to it."""
        numbers = dict.fromkeys(self.methods, self.contexts)
        numbers |= dict.fromkeys(WITHOUT_ROWS, self.contexts[:1])
        numbers["wrong_rows"] = [number for number in self.contexts if number]
        return [(name, number) for name in self.methods for number in numbers[name]]

    def _walk(self, method: str, context: int, walk: Walk) -> None:
        task = self.questions.task(walk, context)
        if task is None:
            return
        answers = [Answer(method, context, walk, hole) for hole in walk.holes]
        if not all((self.out / answer.file).exists() for answer in answers):
            made = self.methods[method](task, walk)
            if isinstance(made, str):
                self.left_out[f"{TITLES[method]}, {walk.path.name}"] = made
                return
            for answer, picture in zip(answers, made, strict=True):
                _save(self.out / answer.file, picture)
        for answer in answers:
            self._show(task, answer)
            if not self._judged(answer):
                self._judge(task, answer)

    def _show(self, task: GridTask, answer: Answer) -> None:
        """The query row and the truth, once for all methods."""
        for column in range(len(task.kinds)):
            file = self.out / shown_file(answer.walk, column)
            if not file.exists():
                _save(file, task.cell(-1, column))

    # ---- figures -------------------------------------------------------------------------------------------------

    def _judge(self, task: GridTask, answer: Answer) -> None:
        values = self.judge.values(example_of(task, answer.hole, _load(self.out / answer.file), self.controls))
        document = {"judge": self._judge_digest, "values": values}
        file = self._values_file(answer)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as sink:
            sink.write(json.dumps(document).encode())

    def _judged(self, answer: Answer) -> dict[str, float]:
        """What was measured, by the same metrics with the same weights; empty if nothing was."""
        try:
            document = json.loads(self._values_file(answer).read_bytes())
        except FileNotFoundError:
            return {}
        return dict(document["values"]) if document["judge"] == self._judge_digest else {}

    def _values_file(self, answer: Answer) -> Path:
        return self.out / f"figures/{answer.method}/context-{answer.context}/{answer.name}.json"

    @property
    def _judge_digest(self) -> str:
        return digest_of(self.judge.identity)

    def answers(self) -> Iterator[Answer]:
        """Those that have pictures, of all processes, in the order of methods, contexts and walks."""
        walks = sorted(self.questions.walks, key=lambda walk: walk.index)
        for method, context in self.settings():
            found = [Answer(method, context, walk, hole) for walk in walks for hole in walk.holes]
            yield from (answer for answer in found if (self.out / answer.file).exists())

    def figures(self) -> list[Figure]:
        """All figures; the order in which pictures were made does not matter."""
        cells: dict[tuple[str, str, int], list[Answer]] = defaultdict(list)
        for answer in self.answers():
            cells[answer.task, answer.method, answer.context].append(answer)
        order = list(dict.fromkeys(task for task, _, _ in cells))
        ranked = sorted(cells.items(), key=lambda cell: order.index(cell[0][0]))
        return [figure for _, answers in ranked for figure in self._of(answers)]

    def _of(self, answers: Sequence[Answer]) -> Iterator[Figure]:
        """The figures of one task, method and context."""
        first, values = answers[0], [self._judged(answer) for answer in answers]
        kind = first.walk.path.declared[first.walk.columns[first.hole]]
        facts: dict[str, Any] = {
            "task": first.task, "table": table_of(kind, first), "unseen": self.questions.unseen(first.walk),
            "method": first.method, "context": first.context,
        }  # fmt: skip
        for name in self.judge.names:
            if found := [value[name] for value in values if name in value]:
                yield Figure(**facts, metric=name, count=len(found), **_named(interval(found)))
        if FID in self.judge.names and facts["table"] != "estimation" and len(answers) > 1:
            made = self._features([self.out / answer.file for answer in answers])
            truth = self._features([self.out / shown_file(answer.walk, answer.hole) for answer in answers])
            found_of_sets = interval_of_sets(frechet, made, truth)
            yield Figure(**facts, metric=FID, count=len(answers), **_named(found_of_sets))

    def _features(self, files: Sequence[Path]) -> NDArray[np.float64]:
        return np.stack([self.judge.features(_load(file)) for file in files])


def table_of(kind: Kind, answer: Answer) -> str:
    """The table of a task: `style`, `subject`, `estimation` of maps, or else `generation`."""
    given = [name for column, name in enumerate(answer.walk.kinds) if column not in answer.walk.holes]
    if kind.family not in PICTURES:
        return "estimation"
    if kind.family == "style" and "style_reference" in given:
        return "style"
    return "subject" if "reference" in given else "generation"


def shown_file(walk: Walk, column: int) -> str:
    """The picture of a column of the query row, the truth for a hole; relative to the evaluation's folder."""
    return f"pictures/truth/{walk.index:07d}-{column}.png"


def document_of(figures: Sequence[Figure], left_out: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that an evaluation found, as JSON values."""
    return {**facts, "left_out": dict(left_out), "figures": [asdict(figure) for figure in figures]}


def _named(found: tuple[float, float, float]) -> dict[str, Any]:
    return dict(zip(("value", "low", "high"), found, strict=True))


def _save(file: Path, picture: Pixels) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as sink:
        Image.fromarray(picture).save(sink, "PNG")


def _load(file: Path) -> Pixels:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))
