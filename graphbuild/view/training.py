"""A folder of `graphbuild-train`: its losses, and the pictures sampled on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphbuild.errors import GraphError
from graphbuild.view.charts import Chart, Point, line_chart, thinned

_STEP = re.compile(r"step-(\d{1,12})")
_MOST_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training folder holds.

    Attributes:
        steps: records of optimiser steps, `validations` of validations, both in order.
        samples: name of a task -> step -> file.
    """

    folder: Path
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    samples: Mapping[str, Mapping[int, Path]]

    @property
    def sampled_steps(self) -> list[int]:
        return sorted({step for files in self.samples.values() for step in files})

    def charts(self) -> list[Chart]:
        """Losses in training and validation, the latter also by noise level and by type of task."""
        drawn = [
            line_chart("Training loss, means of neighbouring steps", {"loss": thinned(_series(self.steps, "loss"))}),
            line_chart("Validation loss", {"loss": _series(self.validations, "loss")}),
            line_chart("Validation loss by noise level, 0 is clean", self._parts(_levels)),
            line_chart("Validation loss by type of task", self._parts(lambda found: found.get("by_type"))),
            line_chart("Learning rate", {"rate": thinned(_series(self.steps, "rate"))}),
        ]
        return [chart for chart in drawn if chart is not None]

    def _parts(self, part: Any) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = {}
        for record in self.validations:
            values = part(record)
            for name, value in (values if isinstance(values, dict) else {}).items():
                if isinstance(value, int | float):
                    found.setdefault(str(name), []).append((record["step"], value))
        return found


def read_training(folder: Path) -> Training:
    """The records of a folder, as far as they are written: a run may be under way.

    Raises:
        GraphError: the folder has neither metrics nor samples.
    """
    metrics, samples = folder / "metrics.jsonl", folder / "samples"
    if not metrics.is_file() and not samples.is_dir():
        raise GraphError(f"{folder}: no metrics.jsonl and no samples/; give a folder that graphbuild-train wrote")
    records = list(_records(metrics))
    validations = [{"step": r["step"], **r["validation"]} for r in records if isinstance(r.get("validation"), dict)]
    return Training(
        folder=folder,
        steps=[record for record in records if "loss" in record],
        validations=validations,
        samples=_samples(samples),
    )


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_MOST_LINE):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the last line may be half written
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def _samples(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for step in sorted(folder.glob("step-*")):
        if (match := _STEP.fullmatch(step.name)) and step.is_dir() and not step.is_symlink():
            for file in sorted(step.glob("*.png")):
                found.setdefault(file.stem, {})[int(match[1])] = file
    return found


def _levels(record: Mapping[str, Any]) -> dict[str, Any]:
    levels = record.get("by_level")
    count = len(levels) if isinstance(levels, list) else 0
    return {f"level {(number + 0.5) / count:.2f}": levels[number] for number in range(count)}  # type: ignore[index]


def _series(records: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    return [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
