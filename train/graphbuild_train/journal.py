"""Progress and records of a run: a bar or lines, metrics as JSON lines, loggers, sampled pictures."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from graphbuild.errors import GraphError
from graphbuild.tasks.grid import GridTask
from graphbuild_train import trackers
from graphbuild_train.forecast import peak_of
from graphbuild_train.validate import Validation

if TYPE_CHECKING:
    from PIL import Image

LINE_SECONDS = 10.0
_NOISE = ("CLIP can only handle", "Token indices sequence length", "No LoRA keys associated to")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step as it is reported."""

    loss: float
    """Mean over the batch before the update; it mostly reflects which noise levels were drawn."""
    norm: float
    """Norm of the gradient before clipping."""
    rate: float
    """Learning rate."""
    seconds: float
    waited: float
    """The part of `seconds` spent waiting for data."""
    work: float
    """FLOP of this process's forward and backward passes, 0 if unknown; what checkpointing computes again does not
    count."""


class Journal:
    """Records of a run, used as a `with` block around its steps. A process with a quiet console writes nothing.

    OUT/metrics.jsonl           one line per step: loss, norm, rate, seconds, waited, work; one per validation
    OUT/events.out.tfevents.*   the same for TensorBoard; other loggers keep theirs where they do
    OUT/samples/step-00000500/  the pictures sampled at a step, beside the task they answer

    Args:
        first: steps done before; later records of an earlier process are removed, as those steps run again.
        last: the step at which the run ends.
        loggers: names of `graphbuild_train.trackers`.
    """

    def __init__(
        self, out: Path, console: Console, *, first: int, last: int, loggers: Sequence[str] = ("tensorboard",)
    ) -> None:
        self.out, self.console, self.first, self.last, self.loggers = out, console, first, last, loggers
        self.peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        """TFLOP/s of the device, if known."""
        self._shown = self._began = 0.0

    def __enter__(self) -> Journal:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("steps", total=self.last, completed=self.first, note="")
        self._bar.start()
        self._began = time.monotonic()
        self._trackers: list[Any] = []
        self._metrics: Any = None
        if not self.console.quiet:
            if self.first:
                self.note(f"resuming after step {self.first} of {self.out}")
            after = self.first + 1 if self.first else 0
            self._trackers = trackers.started(self.loggers, self.out, after=after)
            self._metrics = _cut(self.out / "metrics.jsonl", after).open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self._trackers:
            tracker.finish()

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False)

    def say(self, lines: Iterable[str | Table]) -> None:
        """Print lines and tables; a quiet process does not compute them."""
        for line in () if self.console.quiet else lines:
            self.console.print(line, markup=False, highlight=False)

    def step(self, step: int, done: Step) -> None:
        """Record a step; show progress and time left."""
        self._write({"step": step, **asdict(done), **_memory()})
        words = self._words(done)
        self._bar.update(self._task, completed=step, note=words)
        if not self.console.is_terminal and time.monotonic() - self._shown > LINE_SECONDS:
            self._shown = time.monotonic()
            seconds = (self._shown - self._began) / (step - self.first) * (self.last - step)
            self.note(f"step {step}/{self.last}: {words}, {timedelta(seconds=round(seconds))} left")

    def validation(self, step: int, result: Validation | None) -> None:
        """Record a validation."""
        if result is None:
            return
        self._write({"step": step, "validation": asdict(result)})
        levels = " ".join(f"{value:.3f}" for value in result.by_level)
        self.note(f"step {step}: validation loss {result.loss:.4f} on {result.tasks} tasks; by noise level {levels}")

    def pictures(self, step: int, task: GridTask, made: Sequence[Image.Image]) -> None:
        """Save a task as a labelled picture, and what was sampled for its holes to the right of it."""
        from PIL import Image

        shown = [task.image(), *made]
        size = sum(picture.width for picture in shown), max(picture.height for picture in shown)
        whole = Image.new("RGB", size, "white")
        left = 0
        for picture in shown:
            whole.paste(picture, (left, 0))
            left += picture.width
        folder = self.out / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        whole.save(folder / f"{task.walk.index:07d}-{task.walk.path.name}.png")

    def _words(self, done: Step) -> str:
        speed = done.work / done.seconds / 1e12  # 0 where the base's work is unknown
        words = [f"loss {done.loss:.4f}", f"{1 / done.seconds:.2f} it/s", f"{done.waited / done.seconds:.0%} waiting"]
        if speed:
            words.append(f"{speed:.3g} TFLOP/s" + (f" (MFU {speed / self.peak:.0%})" if self.peak else ""))
        return ", ".join(words + [f"peak {size:.1f} GiB" for size in _memory().values()])

    def _write(self, document: dict[str, Any]) -> None:
        if self._metrics is None:
            return
        self._metrics.write(json.dumps(document) + "\n")
        self._metrics.flush()
        for tracker in self._trackers:
            tracker.log(dict(_scalars(document)), step=document["step"])  # which flushes: a kill loses nothing


def quiet_libraries() -> None:
    """Silence libraries: progress bars of model loading, warnings of prompts that CLIP truncates, and of text encoders
    without a LoRA."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.get_logger(library.__name__)  # makes the handler
        for handler in logging.getLogger(library.__name__).handlers:
            handler.addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _NOISE)


def _memory() -> dict[str, float]:
    """Peak GPU memory of this process in GiB; empty without a GPU."""
    return {"memory": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def _cut(metrics: Path, step: int) -> Path:
    """Remove the lines from a step on, and a truncated last line."""
    if metrics.exists():
        lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        try:
            before = [line for line in lines if json.loads(line)["step"] < step]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise GraphError(f"{metrics}: not what was written ({error}); move it away, a new one is begun") from error
        kept = metrics.with_name(f".{metrics.name}")
        kept.write_text("".join(before), encoding="utf-8")
        os.replace(kept, metrics)
    return metrics


def _scalars(document: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and numbers for loggers."""
    if "validation" not in document:
        return [(f"train/{name}", value) for name, value in document.items() if name != "step"]
    found = document["validation"]
    levels = [(f"validation/level {number}", value) for number, value in enumerate(found["by_level"])]
    types = [(f"validation/{name}", value) for name, value in found["by_type"].items()]
    return [("validation/loss", found["loss"]), *levels, *types]
