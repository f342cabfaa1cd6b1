"""Short training runs on tiny models and a small graph, in this process or in one that kills itself.

`python -m tests.support.training JSON` trains in a process of its own; the keys are the arguments of `main`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild_train import checkpoint
from graphbuild_train.bases import tiny
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.config import TrainConfig, config_from
from graphbuild_train.journal import Journal, quiet_libraries
from graphbuild_train.objective import Noisy, Objective
from graphbuild_train.trainer import Trainer, train
from tests.support.annotators import build, complete
from tests.support.numerics import assert_close

PATHS = """
content: {from: caption, of: image}
paths:
  - {name: canny-to-image, type: conditional generation, cells: [canny, image]}
  - {name: image-to-canny, type: dense prediction, cells: [image, canny]}
  - {name: noise-to-image, type: restoration, cells: [gaussian_noise, image]}
"""
ROOT = Path(__file__).resolve().parents[2]
ROUNDINGS = 5 * 4 * 64
"""Of a LoRA after five steps: each adds gradients of four samples of about 64 tokens."""
NEVER = {"checkpoint": 0, "validate": 0, "sample": 0}
QUICK = {
    "dtype": "float32", "resolution": 32, "steps": 5, "batch": 4, "micro_batch": 2, "watch": NEVER,
    "sampler": {"split": "train", "validation": 0.2, "rows": [0.5, 0.5]},
    "lora": {"layers": "attn_ff", "rank": 4, "alpha": 64}, "optimiser": {"learning_rate": 1e-3},
}  # fmt: skip
"""A recipe of a few seconds; it lacks the model and the paths."""
AVERAGED = {"learning_rate": 1e-3, "ema": 0.9}
"""Its optimiser with a moving average of the weights."""


class Ground:
    """A graph of small photographs, a task list, and a tiny FLUX.1-Fill, in one folder."""

    def __init__(self, folder: Path, photos: Path) -> None:
        self.folder, self.graph = folder, folder / "graph"
        complete(build(photos, self.graph, ["canny"], shard_size=4))
        (folder / "tasks.yaml").write_text(PATHS)
        self.model = tiny.save(folder / "fill")

    def config(self, **changes: Any) -> TrainConfig:
        """`QUICK` with changes."""
        return config_from({**QUICK, "model": str(self.model), "paths": str(self.folder / "tasks.yaml"), **changes})

    def trainer(self, name: str, **changes: Any) -> Trainer:
        """A run in this process before its next step; what it says is in `said`."""
        console, graph = Console(file=io.StringIO(), width=200), None if "data" in changes else self.graph
        return Trainer(self.config(**changes), graph, self.folder / name, console=console)

    def trained(self, name: str, **changes: Any) -> Trainer:
        """A run in this process after its last step."""
        trainer = self.trainer(name, **changes)
        trainer.fit()
        return trainer

    def launch(self, name: str, *launcher: str, kill: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        """A run with its export in another process, or several with a launcher such as torchrun's.

        Args:
            kill: `step 12` or `save 10`: it kills itself after that step, or while that step's checkpoint is written.
        """
        document = {"config": asdict(self.config(**changes)), "graph": str(self.graph), "out": str(self.folder / name)}
        command = [sys.executable, *launcher, "-m", "tests.support.training", json.dumps({**document, "kill": kill})]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def grounded(folder: Path, photos: Path) -> Iterator[Ground]:
    """A `Ground`, and one thread as long as it is in use: the number of threads changes last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet_libraries()
    yield Ground(folder, photos)
    torch.set_num_threads(threads)


def said(trainer: Trainer) -> str:
    """What a run told people."""
    return trainer.journal.console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines that a run recorded."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def recorded(out: Path, name: str) -> list[Any]:
    """One value of each step that was recorded."""
    return [line[name] for line in metrics(out) if "loss" in line]


def state(out: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint: LoRA, moments of Adam, moving average."""
    saved = checkpoint.latest(out)
    assert saved is not None
    moments = {f"{at}.{name}": value for at, entry in saved.optimiser["state"].items() for name, value in entry.items()}
    parts = {"lora": saved.lora, "ema": saved.ema, "adam": moments}
    return {f"{part} {name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA, averages and both moments of a state, each as one vector. (Element by element Adam makes much of the
    last bits of gradients that are next to nothing.)"""
    ends = {"lora": ("lora", ""), "ema": ("ema", ""), "mean": ("adam", "exp_avg"), "square": ("adam", "exp_avg_sq")}
    named = {
        part: [name for name in sorted(state) if name.startswith(start) and name.endswith(end)]
        for part, (start, end) in ends.items()
    }
    return {part: torch.cat([state[name].flatten() for name in names]) for part, names in named.items() if names}


def assert_same_steps(found: Path, wanted: Path, mutant: Path) -> None:
    """Assert that two runs made the same steps up to rounding, and that a run with a known mistake did not."""
    assert state(found).keys() == state(wanted).keys()
    runs = [parts(state(out)) for out in (found, wanted, mutant)]
    for part in runs[1]:
        ours, theirs, wrong = (run[part] for run in runs)
        assert_close(ours, theirs, terms=ROUNDINGS, mutant=wrong)


@contextmanager
def uneven_passes() -> Iterator[None]:
    """A mistake: in this process every second pass of a step counts 1 % more than the one before."""
    loss_of, passes = Objective.loss_of, count()

    def uneven(self: Objective, predicted: Tensor, noisy: Noisy) -> Tensor:
        return loss_of(self, predicted, noisy) * (1.01 if next(passes) % 2 else 1)

    Objective.loss_of = uneven  # type: ignore[method-assign]
    yield
    Objective.loss_of = loss_of  # type: ignore[method-assign]


def seen(log: Path) -> list[list[Any]]:
    """Seed and walk of every sample that was trained on, in order, by the processes that wrote there."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def log_samples(log: Path) -> Callable[..., Any]:
    """Let all bases of this process write down what they encode; returns what puts an end to it."""
    encode = FluxFill.encode

    def logged(self: FluxFill, grid: GridBatch, seed: int) -> Any:
        with log.open("a") as file:
            file.writelines(f"{json.dumps([seed, index])}\n" for index in grid.index.tolist())
        return encode(self, grid, seed)

    FluxFill.encode = logged  # type: ignore[method-assign]
    return lambda: setattr(FluxFill, "encode", encode)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_after(step: int) -> None:
    record = Journal.step

    def recorded(self: Journal, number: int, done: Any) -> None:
        record(self, number, done)
        if number == step:
            _die()

    setattr(Journal, "step", recorded)  # noqa: B010


def _kill_while_saving(step: int) -> None:
    save = safetensors.torch.save_file

    def half(tensors: Any, file: Path, header: Any = None) -> None:
        save(tensors, file, header)
        if file.parent.name == f".tmp-step-{step:08d}" and file.stem == "optimiser":
            _die()

    setattr(checkpoint, "save_file", half)  # noqa: B010


def main(config: Mapping[str, Any], graph: str, out: str, kill: str) -> None:
    """Train and export, and be killed on the way if asked."""
    torch.set_num_threads(1)
    when, _, step = kill.partition(" ")
    if kill:
        {"step": _kill_after, "save": _kill_while_saving}[when](int(step))
    log_samples(Path(f"{out}.log"))
    train(config_from(config), graph, Path(out), console=Console(file=io.StringIO()))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
